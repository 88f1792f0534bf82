"""Typed answers of the codex backend, by the real Codex, offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from agentmesh.backend import Event, Room
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh_node.backends.codex.backend import CodexBackend
from agentmesh_node.backends.codex.rollout import MemoryStore
from agentmesh_node.turns.typed_answers import MisfitStep, TypedBackend
from fakes.responses import ResponsesServer, say
from node.backends.codex import KEY, KEY_NAME, Plain, options, turn
from support import run

pytestmark = pytest.mark.processes


class Sum(msgspec.Struct):
    """A sum."""

    total: Annotated[int, msgspec.Meta(le=10)]


class Loose(msgspec.Struct):
    by_name: dict[str, int]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)


@pytest.fixture
def fake() -> Iterator[ResponsesServer]:
    with ResponsesServer() as server:
        yield server


class Desk:
    """Backends on several machines that share a store."""

    def __init__(self, where: Path, fake: ResponsesServer) -> None:
        self.where, self.fake, self.store = where, fake, MemoryStore()

    def made(self, machine: str) -> CodexBackend:
        room = Room("coder", "life", str(self.where / machine), "mesh", None)
        return CodexBackend(Plain(), options(self.fake), room=room, store=self.store)

    async def turn(self, made: CodexBackend, session: Any, steps: UnjournaledSteps, type: Any = Sum) -> tuple[list[Event], Any]:
        """A turn as the runner makes it: its events, and the session that is committed."""
        known = AnswerType(type)
        backend = TypedBackend(made, known)
        stream = await backend.prompt(session, "2 + 2?", msgspec.structs.replace(turn(), steps=steps, answer_type=known))
        events = [event async for event in stream.events]
        last = events[-1]
        after = backend.update_session(stream.session, last.data) if last.kind == "result" else stream.session
        return events, msgspec.json.decode(msgspec.json.encode(after))


@pytest.mark.case(762)
def test_codex_asks_its_provider_for_the_type(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [say('{"total": 4}'), say('{"by_name": {}}')]

    async def main() -> None:
        desk = Desk(tmp_path, fake)
        made = desk.made("n1")
        events, session = await desk.turn(made, await made.start_session(), UnjournaledSteps(key="t1"))
        assert events[-1].data["text"] == '{"total":4}'
        events, _ = await desk.turn(made, session, UnjournaledSteps(key="t2"), Loose)
        assert events[-1].data["text"] == '{"by_name":{}}'

    run(main(), 120)
    first, second = fake.requests
    assert first.body["text"]["format"]["schema"] == AnswerType(Sum).strict
    assert "format" not in second.body.get("text", {}) and "fit this JSON schema" in json.dumps(second.body["input"])


@pytest.mark.case(763)
@pytest.mark.case(764)
def test_a_misfit_is_told_in_the_same_thread(fake: ResponsesServer, tmp_path: Path) -> None:
    async def main() -> None:
        desk = Desk(tmp_path, fake)
        made = desk.made("n1")
        fake.script = [say('{"total": 1}'), say('{"total": 40}'), say('{"total": 4}')]
        _, before = await desk.turn(made, await made.start_session(), UnjournaledSteps(key="t1"))
        steps = UnjournaledSteps(key="t2")
        events, after = await desk.turn(made, before, steps)
        assert events[-1].data["text"] == '{"total":4}'
        assert "Expected `int` <= 10" in json.dumps(fake.requests[-1].body["input"])
        assert {*before["rollout"]["parts"]} <= {*after["old"], *after["rollout"]["parts"]}, "kept until the record stands"

        # Another node goes on behind the misfit: the first answer is not asked for again.
        place, _ = MisfitStep.among(steps.taken) or (0, None)
        asked, other = len(fake.requests), desk.made("n2")
        fake.script = [say('{"total": 5}')]
        events, after = await desk.turn(other, before, UnjournaledSteps(steps.taken[: place + 1], "t2"))
        assert events[-1].data["text"] == '{"total":5}'
        assert "Answer again" in json.dumps(fake.requests[-1].body["input"])
        assert len(fake.requests) == asked + 1

        # Had the turn been interrupted, the session before it would still be whole.
        fake.script = [say('{"total": 6}')]
        events, after = await desk.turn(other, before, UnjournaledSteps(key="t3"))
        assert events[-1].data["text"] == '{"total":6}'

        # What nothing needs any more is removed by the turns behind it.
        for number in (7, 8):
            fake.script = [say(f'{{"total": {number}}}')]
            events, after = await desk.turn(other, after, UnjournaledSteps(key=f"t{number}"))
        await other.terminate_session(after)
        await made.release()

    run(main(), 180)


@pytest.mark.case(763)
def test_a_second_misfit_ends_the_turn(fake: ResponsesServer, tmp_path: Path) -> None:
    fake.script = [say("four"), say("four"), say('{"total": 4}')]

    async def main() -> None:
        desk = Desk(tmp_path, fake)
        made = desk.made("n1")
        events, session = await desk.turn(made, await made.start_session(), UnjournaledSteps(key="t1"))
        assert (events[-1].data["code"], events[-1].data["text"]) == ("bad_answer", "four")
        events, _ = await desk.turn(made, session, UnjournaledSteps(key="t2"))
        assert events[-1].data["text"] == '{"total":4}'

    run(main(), 120)
