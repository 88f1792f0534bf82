"""The backends that come with the mesh against the suite that third parties run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Backend, Event, Stream, Turn
from agentmesh.errors import BackendError
from agentmesh.testing import BackendConformance
from agentmesh.tools import tool
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.openai import OpenAIBackend
from agentmesh_node.backends.scripted import Delay, Fail, ScriptedBackend
from fakes import responses
from fakes.messages import Answer, Call, FakeMessages, Item, Refusal, Tool


def play(prompt: str) -> Any:
    """What the scripted agent answers."""
    if prompt == "fail":
        return Fail("told to")
    if prompt == "endless":
        return [Event.text("well"), Delay(3600.0), Event.result("never")]
    return [Event.text("you said "), Event.text(prompt), Event.usage(input_tokens=1, output_tokens=2), Event.result()]


class Player(Agent[Any]):
    script = staticmethod(play)


class TestScripted(BackendConformance):
    failing_prompt = "fail"
    endless_prompt = "endless"

    def backend(self) -> Backend:
        return ScriptedBackend(Player(), {})


@tool(effect="pure")
async def double(number: int) -> int:
    """Double a number."""
    return 2 * number


@tool()
async def note(text: str) -> str:
    """Note something down, once."""
    return f"noted {text}"


class Calculator(Agent[Any]):
    tools = (double, note)


def model(call: Call) -> Item:
    """Calls two tools, then another, then answers."""
    if call.prompt == "fail":
        return Refusal(status=400, message="told to")
    if call.prompt == "endless":
        return Answer(text="well, " * 2000, delay_s=0.1, chunk=2)
    if call.is_chat:
        results = len([m for m in call.messages if m["role"] == "assistant" and m.get("tool_calls")])
        turn = sum(1 for m in call.messages if m["role"] == "user")
    else:
        results = len([m for m in call.messages if m["role"] == "user" and m["content"][0]["type"] == "tool_result"])
        turn = sum(1 for m in call.messages if m["role"] == "user" and m["content"][0]["type"] == "text")
    match results - 2 * (turn - 1):
        case 0:
            return Answer(text="let me see", tools=(Tool("double", {"number": 2}), Tool("note", {"text": "two"})))
        case 1:
            return Answer(tools=(Tool("double", {"number": "four"}),))
    return "it is four"


class TestAnthropic(BackendConformance):
    failing_prompt = "fail"
    endless_prompt = "endless"

    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with FakeMessages(model) as fake:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
            monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-conformance")
            yield

    def backend(self) -> Backend:
        return AnthropicBackend(Calculator(), {"attempts": 1})


@pytest.mark.processes
class TestChatCompletions(BackendConformance):
    failing_prompt = "fail"
    endless_prompt = "endless"

    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with FakeMessages(model) as fake:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", "sk-conformance")
            yield

    def backend(self) -> Backend:
        return OpenAIBackend(Calculator(), {"attempts": 1})


def responding(body: dict[str, Any]) -> responses.Reply:
    """What `model` says, in Responses."""
    prompts = responses.Seen(body, {}).texts("user")
    if prompts[-1] == "fail":
        return responses.Reply(status=400, failure={"message": "told to"})
    if prompts[-1] == "endless":
        return responses.Reply((responses.Text("well, " * 2000, pieces=5000, gap_s=0.1),))
    calls = sum(1 for item in body["input"] if item.get("type") == "function_call")
    match calls - 3 * (len(prompts) - 1):
        case 0:
            first = responses.Call("double", {"number": 2}, id=f"c{calls}")
            second = responses.Call("note", {"text": "two"}, id=f"n{calls}")
            return responses.Reply((responses.Text("let me see"), first, second))
        case 2:
            return responses.Reply((responses.Call("double", {"number": "four"}, id=f"d{calls}"),))
    return responses.say("it is four")


@pytest.mark.processes
class TestResponses(BackendConformance):
    failing_prompt = "fail"
    endless_prompt = "endless"

    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with responses.ResponsesServer(responding) as fake:
            monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
            monkeypatch.setenv("OPENAI_API_KEY", "sk-conformance")
            yield

    def backend(self) -> Backend:
        return OpenAIBackend(Calculator(), {"api": "responses", "attempts": 1})


# --- what the suite must notice -----------------------------------------------------------------------------------------
class Sound:
    """A backend in order, to be broken in one place."""

    async def start_session(self) -> Any:
        return {"said": []}

    async def resume_session(self, session: Any) -> Any:
        return session

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        return Stream(self.events(prompt, turn), {"said": [*session["said"], prompt]})

    async def events(self, prompt: str, turn: Turn) -> AsyncIterator[Event]:
        if prompt == "fail":
            yield Event.error("told to")
            return
        if turn.steps.taken:
            yield Event("text", {"text": "step"}, replayed=True)
        else:
            await turn.steps.take({"n": 1})
            yield Event.text("step")
        if prompt == "endless":
            await asyncio.Event().wait()
        yield Event.result("done")

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        return session

    async def terminate_session(self, session: Any) -> None:
        pass


class SessionOfObjects(Sound):
    async def start_session(self) -> Any:
        return {"said": [], "lock": object()}


class TwoEnds(Sound):
    async def events(self, prompt: str, turn: Turn) -> AsyncIterator[Event]:
        async for event in super().events(prompt, turn):
            yield event
        yield Event.result("once more")


class NoEnd(Sound):
    async def events(self, prompt: str, turn: Turn) -> AsyncIterator[Event]:
        yield Event.text("well")


class Scribbler(Sound):
    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        session["said"].append(prompt)
        return Stream(self.events(prompt, turn), session)


class Mute(Sound):
    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        if prompt == "fail":
            raise BackendError("no")
        return await super().prompt(session, prompt, turn)


class Deaf(Sound):
    async def events(self, prompt: str, turn: Turn) -> AsyncIterator[Event]:
        try:
            async for event in super().events(prompt, turn):
                yield event
        except asyncio.CancelledError:
            yield Event.error("cancelled")


class Hasty(Sound):
    async def events(self, prompt: str, turn: Turn) -> AsyncIterator[Event]:
        async for event in super().events("soon done", turn):
            yield event


class Forgetful(Sound):
    async def events(self, prompt: str, turn: Turn) -> AsyncIterator[Event]:
        await turn.steps.take({"n": 1})
        yield Event.text("step")
        yield Event.result("done")


class Misshapen(Sound):
    async def events(self, prompt: str, turn: Turn) -> AsyncIterator[Event]:
        yield Event("tool_result", {"id": "t1", "ok": True, "text": "of no call"})
        yield Event.result("done")


class Restless(Sound):
    async def resume_session(self, session: Any) -> Any:
        return {**session, "said": [*session["said"], "resumed"]}


def failures(made: type[Sound]) -> set[str]:
    """The tests of the suite that `made` fails."""

    class Suite(BackendConformance):
        failing_prompt = "fail"
        endless_prompt = "endless"
        patience_s = 20.0

        def backend(self) -> Backend:
            return made()

    found = set()
    for name in (name for name in dir(Suite) if name.startswith("test_")):
        try:
            getattr(Suite(), name)()
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - a broken backend may raise anything
            found.add(name)
    return found


def test_the_suite_passes_a_sound_backend() -> None:
    assert failures(Sound) == set()


@pytest.mark.parametrize(
    ("broken", "noticed"),
    [
        (SessionOfObjects, "test_a_new_session_is_a_json_value"),
        (TwoEnds, "test_a_turn_ends_in_exactly_one_terminal_event"),
        (NoEnd, "test_a_turn_ends_in_exactly_one_terminal_event"),
        (Scribbler, "test_a_turn_leaves_the_session_that_it_was_given_alone"),
        (Mute, "test_a_turn_that_fails_says_why_and_the_next_one_is_answered"),
        (Deaf, "test_a_turn_that_is_cancelled_ends_at_once_and_the_next_one_is_answered"),
        (Hasty, "test_a_turn_that_is_cancelled_ends_at_once_and_the_next_one_is_answered"),
        (Forgetful, "test_a_turn_whose_steps_are_all_taken_takes_no_more"),
        (Misshapen, "test_events_have_the_shapes_of_their_kinds"),
        (Restless, "test_a_session_that_is_resumed_again_is_not_changed_again"),
    ],
)
def test_the_suite_notices_a_broken_backend(broken: type[Sound], noticed: str) -> None:
    assert noticed in failures(broken)
