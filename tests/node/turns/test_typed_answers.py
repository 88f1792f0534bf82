"""Answers of a declared type from a backend that knows nothing of types: one misfit is told, and what a takeover finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from agentmesh.backend import Event, Kept, Stream, Turn
from agentmesh.errors import BackendError, BadAnswer, TooLarge
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh_node.backends.codex.steps import EarlierSteps
from agentmesh_node.tools.loop_steps import ReplayedSteps
from agentmesh_node.turns.typed_answers import MisfitStep, TypedBackend
from support import run


class Sum(msgspec.Struct):
    total: int


GOOD, BAD = '{"total": 3}', "three"
USAGE = Event.usage(input_tokens=2, output_tokens=1)


class Parts:
    """A backend that plays streams, one for each prompt, and notes what it was given."""

    def __init__(self, *streams: list[Event | Exception]) -> None:
        self.streams = streams
        self.prompted: list[tuple[Any, str, Turn]] = []
        self.resumed: list[Any] = []
        self.closed = 0
        self.released = 0

    async def start_session(self) -> Any:
        return {"next": 0}

    async def resume_session(self, session: Any) -> Any:
        self.resumed.append(session)
        return session

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        self.prompted.append((session, prompt, turn))
        given = self.streams[session["next"]]
        if isinstance(given[0], Exception):
            raise given[0]
        return Stream(self._events(given), session)

    async def _events(self, given: list[Event | Exception]) -> AsyncIterator[Event]:
        try:
            for event in given:
                await asyncio.sleep(0)
                assert isinstance(event, Event)
                yield event
        finally:
            self.closed += 1

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        return {"next": session["next"] + 1}

    async def terminate_session(self, session: Any) -> None:
        pass

    async def release(self) -> None:
        self.released += 1


class Steps(UnjournaledSteps):
    """Steps that go through JSON, as those of a journal do."""

    most = 10_000

    async def take(self, step: Any) -> None:
        body = msgspec.json.encode(step)
        if len(body) > self.most:
            raise TooLarge
        await super().take(msgspec.json.decode(body))


def says(text: str, *before: Event) -> list[Event | Exception]:
    return [*before, Event.text(text), USAGE, Event.result(text)]


def play(backend: Parts, steps: Steps | None = None, kept: tuple[Kept, ...] = ()) -> tuple[list[Event], Any]:
    """The events of one turn, and its session."""

    async def go() -> tuple[list[Event], Any]:
        typed = TypedBackend(backend, AnswerType(Sum))
        turn = Turn("a", "1", 1, steps=steps if steps is not None else Steps(), attachments=("file",), kept=kept)
        stream = await typed.prompt({"next": 0}, "add", turn)
        events = [event async for event in stream.events]
        session = stream.session
        return events, typed.update_session(session, events[-1].data) if events[-1].kind == "result" else session

    return run(go())


def said(events: list[Event]) -> list[str]:
    return [f"{e.kind}{' void' if e.data.get('restart') else ''}{' again' if e.replayed else ''}" for e in events]


@pytest.mark.case(761)
def test_an_answer_that_fits_comes_in_its_canonical_form() -> None:
    backend = Parts(says(GOOD))
    events, session = play(backend)
    assert said(events) == ["text", "usage", "result"]
    assert events[-1].data["text"] == '{"total":3}'
    assert session == {"next": 1}
    assert backend.closed == 1


@pytest.mark.case(763)
def test_a_misfit_is_told_once_and_its_text_is_void() -> None:
    backend, steps = Parts(says(BAD), says(GOOD)), Steps(key="t")
    events, session = play(backend, steps)
    assert said(events) == ["text", "text void", "usage", "text", "usage", "result"]
    assert events[1].data["retry"]["reason"] == "bad_answer"
    assert events[-2].data == {"input_tokens": 4, "output_tokens": 2}, "a usage event counts the turn"
    assert (events[-1].data["text"], session) == ('{"total":3}', {"next": 2})
    (_, first, _), (at, told, turn) = backend.prompted
    assert (first, at) == ("add", {"next": 1})
    assert "it is no JSON" in told and '"total"' in told
    assert (turn.attachments, turn.kept, turn.committed, turn.steps.key) == ((), (), {"next": 0}, "t/misfit")
    assert backend.closed == 2


@pytest.mark.case(763)
def test_a_second_misfit_ends_the_turn_with_the_session_that_has_both() -> None:
    events, session = play(Parts(says(BAD), says('{"total": "3"}')))
    assert (events[-1].kind, events[-1].data["code"], events[-1].data["reason"]) == ("error", "bad_answer", "bad_answer")
    assert "Expected `int`" in events[-1].data["message"]
    assert events[-1].data["text"] == '{"total": "3"}'
    assert session == {"next": 2}


@pytest.mark.case(764)
def test_a_later_owner_goes_on_behind_the_misfit() -> None:
    tool = [
        Event("tool_use", {"id": "c", "name": "look", "input": {}}),
        Event("tool_result", {"id": "c", "ok": True, "text": "x"}),
    ]
    first, steps = Parts(says(BAD, *tool), [BackendError("gone")]), Steps()
    play(first, steps)
    (step,) = steps.taken
    backend = Parts([BackendError("never asked again")], says(GOOD))
    events, session = play(backend, Steps((step,)))
    assert said(events) == [
        "tool_use again", "tool_result again", "text again", "text void again", "usage again", "text", "usage", "result",
    ]  # fmt: skip
    assert (backend.resumed, session) == ([{"next": 1}], {"next": 2})
    assert [prompt for _, prompt, _ in backend.prompted] == [MisfitStep.among(steps.taken)[1].told]  # type: ignore[index]


@pytest.mark.case(764)
def test_the_second_prompts_steps_are_its_own() -> None:
    class Stepping(Parts):
        async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
            await turn.steps.take({"of": prompt[:3]})
            return await super().prompt(session, prompt, turn)

    backend, steps = Stepping(says(BAD), says(GOOD)), Steps()
    play(backend, steps)
    assert [step.get("of", step.get("step")) for step in steps.taken] == ["add", "intent", "You"]
    again = Stepping(says(BAD), says(GOOD))
    play(again, Steps(steps.taken))
    ((_, _, turn),) = again.prompted
    assert turn.steps.taken[0] == {"of": "You"}


@pytest.mark.case(768)
def test_steps_of_a_misfit_are_read_by_backends_of_an_older_build() -> None:
    value = MisfitStep("told", {"next": 1}, (USAGE,)).value()
    EarlierSteps([value])
    assert not ReplayedSteps([value]).answered


@pytest.mark.case(763)
def test_what_the_journal_cannot_keep_is_not_told() -> None:
    class Small(Steps):
        most = 10

    events, _ = play(Parts(says(BAD), says(GOOD)), Small())
    assert events[-1].data["code"] == "bad_answer"


@pytest.mark.case(763)
def test_a_second_prompt_that_is_refused_ends_the_turn() -> None:
    events, session = play(Parts(says(BAD), [BackendError("no", details={"reason": "overloaded", "retryable": True})]))
    assert (events[-1].data["reason"], events[-1].data["code"], session) == ("overloaded", "backend_error", {"next": 1})


@pytest.mark.case(761)
def test_a_result_without_a_text_has_what_was_said() -> None:
    backend = Parts([Event.text('{"total"'), Event.text(": 3}"), Event.result()])
    assert play(backend)[0][-1].data["text"] == '{"total":3}'


def test_usage_of_an_answer_that_calls_tools_is_not_held_back() -> None:
    use = Event("tool_use", {"id": "c", "name": "look", "input": {}})
    backend = Parts([Event.text("let me see"), use, USAGE, Event("thinking", {"text": "so"}), *says(GOOD)])
    assert said(play(backend)[0]) == ["text", "tool_use", "usage", "thinking", "text", "usage", "result"]


def test_a_stream_without_an_end_has_none() -> None:
    assert said(play(Parts([Event.text("well"), USAGE]))[0]) == ["text", "usage"]


def test_the_backend_lets_go() -> None:
    backend = Parts()
    run(TypedBackend(backend, AnswerType(Sum)).release())
    assert backend.released == 1


def test_the_error_is_that_of_a_turn() -> None:
    assert BadAnswer().code == "bad_answer"
