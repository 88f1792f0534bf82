"""Typed answers of the claude backend, by the real Claude Code, offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from agentmesh.backend import Event, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh.subjects import Subjects
from agentmesh_node.backends.claude.transcript import standing
from agentmesh_node.turns.typed_answers import MisfitStep, TypedBackend
from fakes.messages import Answer, Call, FakeMessages, Tool
from node.backends.claude_desk import Desk, desk, pointed_at
from support import Server, run

pytestmark = pytest.mark.processes


class Sum(msgspec.Struct):
    """A sum."""

    total: Annotated[int, msgspec.Meta(le=10)]


class Loose(msgspec.Struct):
    by_name: dict[str, int]


def gives(**value: Any) -> Answer:
    return Answer(tools=(Tool("StructuredOutput", value),))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with FakeMessages() as found:
        pointed_at(found, monkeypatch)
        yield found


async def say(
    room: Desk, session: Any, steps: UnjournaledSteps, type: Any = Sum, *, machine: str = "n1", number: int = 1
) -> tuple[list[Event], Any]:
    """A turn as the runner makes it: its events, and the session that is committed."""
    known = AnswerType(type)
    backend = TypedBackend(room.backend(machine), known)
    turn: Turn = msgspec.structs.replace(room.turn(steps, number=number), answer_type=known)
    stream = await backend.prompt(session, "2 + 2?", turn)
    events = [event async for event in stream.events]
    last = events[-1]
    return events, backend.update_session(stream.session, last.data) if last.kind == "result" else stream.session


@pytest.mark.case(762)
def test_claude_code_has_its_model_give_the_answer(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    def model(call: Call) -> Any:
        return ["It is four.", gives(total="four"), gives(total=4)][min(call.number, 2)]

    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            fake.play(model)
            events, session = await say(room, await room.backend().start_session(), UnjournaledSteps(key="t"))
            assert events[-1].data["text"] == '{"total":4}'
            schemas = [tool["input_schema"] for tool in fake.calls[0].body["tools"] if tool["name"] == "StructuredOutput"]
            assert schemas[0]["required"] == ["total"]
            # A node that is lost before the turn's record finds the answer in the transcript.
            entries = await room.store.load({"project_key": "life", "session_id": session["session_id"]})
            assert entries is not None
            prompt = next(entry["uuid"] for entry in entries if entry.get("type") == "user")
            final = standing(entries, prompt).final
            assert final is not None and json.loads(final) == {"total": 4}

    run(main(), 120)


@pytest.mark.case(763)
@pytest.mark.case(764)
def test_what_claude_code_lets_pass_is_told_in_a_second_run(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            fake.play([gives(total=40), gives(total=4)])
            begun = await room.backend().start_session()
            _, before = await say(room, begun, UnjournaledSteps(key="t0"), number=1)
            fake.play([gives(total=40), gives(total=4)])
            steps = UnjournaledSteps(key="t")
            events, after = await say(room, before, steps, number=2)
            assert events[-1].data["text"] == '{"total":4}'
            told = json.dumps(fake.calls[-1].messages)
            assert "Expected `int` <= 10" in told and told.count("Answer again") == 2
            kept = {session for _, session in await room.store.sessions()}
            assert {before["session_id"], after["session_id"]} <= kept, "until the record stands, both are needed"
            # Another node goes on behind the misfit: the first answer is not asked for again.
            place, step = MisfitStep.among(steps.taken) or (0, None)
            assert step is not None
            asked = len(fake.calls)
            fake.play([gives(total=5)])
            events, _ = await say(room, before, UnjournaledSteps(steps.taken[: place + 1], "t"), machine="n2", number=2)
            assert events[-1].data["text"] == '{"total":5}'
            assert "Answer again" in json.dumps(fake.calls[-1].messages)
            assert len(fake.calls) == asked + 1

    run(main(), 180)


@pytest.mark.case(763)
def test_a_model_that_never_does_ends_the_turn(server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages) -> None:
    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            fake.play(["It is four."])
            events, _ = await say(room, await room.backend().start_session(), UnjournaledSteps(key="t"))
            assert events[-1].data["code"] == "bad_answer" and "no JSON" in events[-1].data["problem"]
            fake.play([gives(total="four")])
            events, _ = await say(room, await room.backend().start_session(), UnjournaledSteps(key="t2"), number=2)
            assert (events[-1].data["code"], events[-1].data["reason"]) == ("bad_answer", "bad_answer")
            assert "/total: must be integer" in events[-1].data["message"]

    run(main(), 180)


@pytest.mark.case(762)
def test_a_schema_that_no_provider_can_hold_to_is_told_in_words(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    async def main() -> None:
        async with desk(server, subjects, tmp_path) as room:
            fake.play(['{"by_name": {"a": 1}}'])
            events, _ = await say(room, await room.backend().start_session(), UnjournaledSteps(key="t"), Loose)
            assert events[-1].data["text"] == '{"by_name":{"a":1}}'
            assert "fit this JSON schema" in json.dumps(fake.calls[0].messages)

    run(main(), 120)
