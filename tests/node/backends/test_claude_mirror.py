"""What is kept of a run while it lasts, and what of it is marked in the journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs

from agentmesh.backend import Turn
from agentmesh.errors import Fenced
from agentmesh.steps import UnjournaledSteps
from agentmesh_node.backends.claude import mirror as mirror_module
from agentmesh_node.backends.claude.mirror import Mirror
from agentmesh_node.backends.claude.transcript import events, standing, tokens
from agentmesh_node.backends.own_loop import OwnLoop
from agentmesh_node.turns.boundary import Boundary
from support import eventually, run

KEY: Any = {"project_key": "p", "session_id": "s"}


def said(uuid: str, *blocks: dict[str, Any], **message: Any) -> dict[str, Any]:
    return {"type": "assistant", "uuid": uuid, "message": {"id": f"m-{uuid}", "model": "m", "content": list(blocks), **message}}


def told(uuid: str, content: Any) -> dict[str, Any]:
    return {"type": "user", "uuid": uuid, "message": {"role": "user", "content": content}}


WORDS = {"type": "text", "text": "well"}
CALL = {"type": "tool_use", "id": "t1", "name": "mcp__agent__lend", "input": {}}
GIVEN = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "lent"}, {"type": "image"}]}
TURN = [told("before", "earlier"), told("p", "lend"), said("a1", WORDS), said("a2", CALL), told("r1", [GIVEN])]


def loop(boundary: Boundary | None = None) -> OwnLoop:
    turn = Turn("coder", "17", 1)
    return OwnLoop(turn if boundary is None else structs.replace(turn, calls=boundary))


class Kept:
    """A store that keeps everything at once, or nothing."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def append(self, key: Any, entries: Any) -> None:
        if self.error is not None:
            raise self.error


def test_answers_and_results_behind_what_the_run_is_told_are_marked() -> None:
    async def main() -> None:
        steps = UnjournaledSteps()
        async with Mirror(Kept(), "p", steps, loop()) as mirror:  # type: ignore[arg-type]
            await mirror.append(KEY, TURN[:2])  # type: ignore[arg-type]
            await mirror.append(KEY, [said("a0", WORDS, model="<synthetic>")])  # type: ignore[list-item]
            assert not steps.taken
            await mirror.append(KEY, TURN[2:])  # type: ignore[arg-type]
            await eventually(lambda: steps.taken, what="the mark")
            assert steps.taken[-1] == {"step": "kept", "entry": "r1"}

    run(main())


@pytest.mark.case(723)
def test_the_turn_may_go_on_elsewhere_behind_the_results_of_all_tools_and_nowhere_else() -> None:
    async def main() -> None:
        reached: list[int] = []
        steps, boundary = UnjournaledSteps(), Boundary(reached.append, 17)
        own_loop = loop(boundary)
        await own_loop.begin()
        another = {**CALL, "id": "t2"}
        given = {**GIVEN, "tool_use_id": "t2"}
        async with Mirror(Kept(), "p", steps, own_loop) as mirror:  # type: ignore[arg-type]
            boundary.leave()
            for entry in (*TURN[:4], said("a3", another), told("r1", [GIVEN])):
                await mirror.append(KEY, [entry])  # type: ignore[list-item]
                if entry["uuid"] not in ("before", "p"):
                    mark = {"step": "kept", "entry": entry["uuid"]}
                    await eventually(lambda mark=mark: steps.taken[-1:] == (mark,), what="the mark")
                assert reached == [], "a call is open, or the model answers"
            asked = asyncio.create_task(own_loop.goes_on())
            await asyncio.sleep(0)
            assert asked.done()
            await mirror.append(KEY, [told("r2", [given])])  # type: ignore[list-item]
            await eventually(lambda: reached == [17], what="the boundary")
            assert steps.taken[-1] == {"step": "kept", "entry": "r2"}
            asked = asyncio.create_task(own_loop.goes_on())
            await asyncio.sleep(0)
            assert not asked.done(), "what the model asks for now is asked for elsewhere"
            asked.cancel()
        own_loop.end()

    run(main())


def test_a_call_is_known_when_the_answer_that_makes_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "STORED_S", 0.05)

    async def main() -> None:
        async with Mirror(Kept(), "p", UnjournaledSteps(), loop()) as mirror:  # type: ignore[arg-type]
            assert not await mirror.stored("t1")
            monkeypatch.setattr(mirror_module, "STORED_S", 30)
            waiting = asyncio.create_task(mirror.stored("t1"))
            await mirror.append(KEY, TURN)  # type: ignore[arg-type]
            assert await waiting

    run(main())


def test_what_could_not_be_stored_is_neither_marked_nor_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "STORED_S", 0.05)

    async def main() -> None:
        steps = UnjournaledSteps()
        async with Mirror(Kept(Fenced("another")), "p", steps, loop()) as mirror:  # type: ignore[arg-type]
            with pytest.raises(Fenced):
                await mirror.append(KEY, TURN)  # type: ignore[arg-type]
            assert not await mirror.stored("t1")
        assert steps.taken == ()

    run(main())


def test_how_far_a_turn_came() -> None:
    assert not standing([], "p").begun
    assert not standing(TURN[:2], "p").begun
    broken = standing(TURN[:4], "p")
    assert [call.id for call in broken.open] == ["t1"]
    whole = standing(TURN, "p")
    assert (whole.begun, whole.open, whole.final) == (True, (), None)
    answer = said("a3", {"type": "text", "text": "here you are"}, stop_reason="end_turn")
    assert standing([*TURN, answer], "p").final == "here you are"
    # An answer's blocks are entries of their own: without its text it is not whole.
    assert standing([*TURN, said("a3", {"type": "thinking", "thinking": "hm"}, stop_reason="end_turn")], "p").final is None
    assert standing([*TURN, said("a3", WORDS, stop_reason="max_tokens")], "p").final is None
    assert not standing(TURN, "another prompt").begun


def test_what_happened_is_replayed_up_to_the_mark() -> None:
    found = list(events(standing(TURN, "p"), "a2"))
    assert [(event.kind, event.replayed) for event in found] == [
        ("text", True),
        ("tool_use", True),
        ("tool_result", False),
        ("usage", True),
    ]
    assert found[1].data["name"] == "lend"
    assert found[2].data == {"id": "t1", "ok": True, "text": "lent\n[image]"}
    assert not any(event.replayed for event in events(standing(TURN, "p"), None) if event.kind != "usage")


def test_the_tokens_of_an_answer_in_several_entries_count_once() -> None:
    usage = {"input_tokens": 3, "output_tokens": 2, "cache_creation_input_tokens": 5}
    parts = [said(uuid, WORDS, id="same", usage=usage) for uuid in ("a1", "a2")]
    found = tokens(standing([told("p", "x"), *parts], "p"))
    assert found == {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 0, "cache_write_input_tokens": 5}
