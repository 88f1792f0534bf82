"""Typed answers on the backends with an API: how the type is asked for, and how a misfit is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agentmesh.backend import Event, Kept, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.openai import OpenAIBackend
from fakes.messages import Answer, Call, FakeMessages, Tool
from fakes.responses import ResponsesServer
from fakes.responses import say as said
from node.backends.conversation import Conversation, Doubling, Plain
from support import run


class Sum(msgspec.Struct):
    """A sum."""

    total: int


class Loose(msgspec.Struct):
    by_name: dict[str, int]


pytestmark = pytest.mark.processes  # OpenAI's SDK starts `uname` with the first request of a process
SUM = AnswerType(Sum)
GOOD, BAD = '{"total": 4}', "It is four."
BACKENDS = {"anthropic": AnthropicBackend, "openai": OpenAIBackend}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with FakeMessages() as server:
        for name, url in (("ANTHROPIC", server.url), ("OPENAI", f"{server.url}/v1")):
            monkeypatch.setenv(f"{name}_BASE_URL", url)
            monkeypatch.setenv(f"{name}_API_KEY", "sk-a-key")
        yield server


def chat(backend: str, answer_type: AnswerType[Any] = SUM) -> type[Conversation]:
    return type("Typed", (Conversation,), {"made": BACKENDS[backend], "answer_type": answer_type})


def talk(kind: type[Conversation], *prompts: str, cls: Any = Plain, **options: Any) -> tuple[list[Event], Conversation]:
    """The events of the last turn, and the conversation."""

    async def within() -> tuple[list[Event], Conversation]:
        events: list[Event] = []
        async with kind(cls, **options) as talk:
            for prompt in prompts:
                events = await talk.say(prompt)
            return events, talk

    return run(within(), 60)


def texts(call: Call) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in call.messages]


@pytest.mark.case(762)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_api_is_asked_for_the_type_in_its_own_way(backend: str, fake: FakeMessages) -> None:
    fake.play([GOOD])
    events, _ = talk(chat(backend), "2 + 2?")
    assert events[-1].data["text"] == GOOD
    (call,) = fake.calls
    assert call.prompt == "2 + 2?"
    if backend == "anthropic":
        assert call.body["output_config"] == {"format": {"type": "json_schema", "schema": SUM.strict}}
    else:
        wanted = {"name": "Sum", "schema": SUM.strict, "strict": True}
        assert call.body["response_format"] == {"type": "json_schema", "json_schema": wanted}


@pytest.mark.case(762)
@pytest.mark.case(763)
def test_responses_is_asked_by_the_format_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with ResponsesServer([said(BAD), said(GOOD)]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key")
        events, _ = talk(chat("openai"), "2 + 2?", api="responses")
        assert events[-1].data["text"] == GOOD
        first, second = server.requests
    assert first.body["text"] == {"format": {"type": "json_schema", "name": "Sum", "schema": SUM.strict, "strict": True}}
    assert "Answer again" in second.texts("user")[-1]


@pytest.mark.case(762)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_server_that_knows_no_types_is_told_in_words(backend: str, fake: FakeMessages) -> None:
    fake.play([GOOD])
    talk(chat(backend), "2 + 2?", answer_by="prompt")
    (call,) = fake.calls
    assert not {"output_config", "response_format"} & call.body.keys()
    assert "fit this JSON schema" in call.prompt and '"total"' in call.prompt
    assert call.prompt.startswith("2 + 2?")


@pytest.mark.case(762)
def test_what_is_left_out_is_told_in_words(fake: FakeMessages) -> None:
    fake.play([GOOD])
    talk(chat("openai"), "2 + 2?", leave_out=["response_format"])
    assert "fit this JSON schema" in fake.calls[0].prompt


@pytest.mark.case(762)
def test_a_schema_that_the_api_cannot_express_is_told_in_words_or_not_strict(fake: FakeMessages) -> None:
    fake.play(['{"by_name": {}}'])
    loose = AnswerType(Loose)
    talk(chat("anthropic", loose), "who?")
    talk(chat("openai", loose), "who?")
    of_anthropic, of_openai = fake.calls
    assert "output_config" not in of_anthropic.body and "fit this JSON schema" in of_anthropic.prompt
    wanted = of_openai.body["response_format"]["json_schema"]
    assert (wanted["strict"], wanted["schema"]) == (False, loose.schema)


@pytest.mark.case(762)
def test_options_of_the_agent_go_first(fake: FakeMessages) -> None:
    fake.play([GOOD])
    talk(chat("anthropic"), "2 + 2?", output_config={"effort": "low"})
    talk(chat("openai"), "2 + 2?", response_format={"type": "json_object"})
    of_anthropic, of_openai = fake.calls
    assert of_anthropic.body["output_config"]["effort"] == "low"
    assert of_anthropic.body["output_config"]["format"]["schema"] == SUM.strict
    assert of_openai.body["response_format"] == {"type": "json_object"}


@pytest.mark.case(763)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_misfit_is_told_once_within_the_turn(backend: str, fake: FakeMessages) -> None:
    fake.play([BAD, GOOD, GOOD])
    events, talked = talk(chat(backend), "2 + 2?")
    assert events[-1].data["text"] == GOOD
    shown = [event.data for event in events if event.kind in ("text", "usage")]
    at = next(place for place, data in enumerate(shown) if data.get("restart"))
    assert shown[at]["retry"] == {"reason": "bad_answer", "attempt": 2}
    assert "".join(data.get("text", "") for data in shown[:at]) == BAD, "void is what came since the last usage"
    first, second = fake.calls
    assert texts(second)[: len(texts(first))] == texts(first)
    assert "it is no JSON" in second.prompt and "Answer again" in second.prompt
    assert [step["step"] for step in talked.steps.taken] == ["answer", "answer"]
    assert talked.steps.taken[1]["told"] in second.prompt


@pytest.mark.case(763)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_misfit_ends_the_turn_and_another_prompt_goes_on(backend: str, fake: FakeMessages) -> None:
    fake.play([BAD, '{"total": "4"}', GOOD])
    events, _ = talk(chat(backend), "2 + 2?")
    error = events[-1].data
    assert (events[-1].kind, error["code"], error["reason"], error["type"]) == ("error", "bad_answer", "bad_answer", "Sum")
    assert error["text"] == '{"total": "4"}' and "Expected `int`" in error["problem"]
    events, _ = talk(chat(backend), "2 + 2?", "and now?")
    assert events[-1].kind == "result"


@pytest.mark.case(763)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_second_answer_may_call_tools_and_counts_as_one_of_the_turn(backend: str, fake: FakeMessages) -> None:
    use = Answer(tools=(Tool("double", {"number": 2}),))
    fake.play([use, BAD, use, GOOD])
    events, _ = talk(chat(backend), "2 + 2?", cls=Doubling)
    assert [event.data["ok"] for event in events if event.kind == "tool_result"] == [True, True]
    assert events[-1].data["text"] == GOOD
    fake.play([use, BAD, use, GOOD])
    events, _ = talk(chat(backend), "2 + 2?", cls=Doubling, max_iterations=2)
    assert events[-1].data["reason"] == "max_iterations"


@pytest.mark.case(764)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_later_owner_goes_on_behind_what_is_committed(backend: str, steps: int, fake: FakeMessages) -> None:
    fake.play([BAD, GOOD])
    _, talked = talk(chat(backend), "2 + 2?")
    taken = msgspec.json.decode(msgspec.json.encode(talked.steps.taken[:steps]))
    told = fake.calls[1].messages
    fake.play([GOOD])

    async def again() -> list[Event]:
        async with chat(backend)() as later:
            turn = Turn("a", "1", 1, steps=UnjournaledSteps(tuple(taken), "t1"), answer_type=SUM)
            stream = await later.backend.prompt(await later.backend.start_session(), "2 + 2?", turn)
            return [event async for event in stream.events]

    replayed = run(again(), 60)
    assert replayed[-1].data["text"] == GOOD
    assert [event.kind for event in replayed if event.replayed and event.data.get("restart")] == ["text"]
    calls = fake.calls[2:]
    assert [call.messages for call in calls] == [told][: 2 - steps]


@pytest.mark.case(764)
def test_a_turn_that_was_interrupted_behind_a_misfit_is_shown_as_it_was(fake: FakeMessages) -> None:
    fake.play([BAD, GOOD])
    _, talked = talk(chat("anthropic"), "2 + 2?")
    kept = Kept(name="t1", number=1, prompt="2 + 2?", steps=talked.steps.taken)
    fake.play(['{"total": 5}'])

    async def next_turn() -> list[Event]:
        async with chat("anthropic")() as later:
            turn = Turn("a", "2", 2, steps=UnjournaledSteps(key="t2"), answer_type=SUM, kept=(kept,))
            stream = await later.backend.prompt(await later.backend.start_session(), "and 5?", turn)
            return [event async for event in stream.events]

    assert run(next_turn(), 60)[-1].data["text"] == '{"total": 5}'
    roles = [message["role"] for message in fake.calls[-1].messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
