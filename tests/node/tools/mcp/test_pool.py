"""Children of a node: started when they are called, shared where they may be, and no more than the node has places for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.mcp import pool
from node.tools.mcp.serving import TURN, alive, box, call, pids, stdio
from support import eventually, run

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _as_by_default() -> Iterator[None]:
    yield
    pool.bound_children(pool.CHILDREN)


def living(notes: Path) -> list[int]:
    return [pid for pid in pids(notes) if alive(pid)]


@pytest.mark.case(425)
def test_a_child_starts_when_a_tool_of_it_is_called_and_the_list_is_known_from_an_agent_of_the_class(notes: Path) -> None:
    async def check() -> None:
        first = box(stdio(notes))
        listed = await first.specs()
        await first.close()
        assert len(pids(notes)) == 1
        second = box(stdio(notes))
        assert await second.specs() == listed
        assert second.effect("shop__add") == "pure"
        assert len(pids(notes)) == 1, "nothing was started for that"
        assert (await call(second, "add", a=1, b=2)).text == "3"
        assert len(pids(notes)) == 2
        await second.close()
        assert living(notes) == []

    run(check(), 60)


@pytest.mark.case(425)
def test_agents_share_a_child_where_its_declaration_allows_it(notes: Path) -> None:
    async def check() -> None:
        boxes = [box(stdio(notes, shared=True)) for _ in range(3)]
        for each in boxes:
            await each.specs()
        assert [r.text for r in await asyncio.gather(*(call(each, "add", a=1, b=2) for each in boxes))] == ["3"] * 3
        assert len(pids(notes)) == 1
        await boxes[0].close()
        await boxes[1].close()
        assert (await call(boxes[2], "add", a=2, b=2)).text == "4"
        assert len(living(notes)) == 1
        await boxes[2].close()
        assert living(notes) == []

    run(check(), 60)


@pytest.mark.case(425)
def test_a_child_that_nobody_uses_ends_for_one_that_is_needed(notes: Path) -> None:
    pool.bound_children(2)

    async def check() -> None:
        boxes = [box(stdio(notes)) for _ in range(4)]
        for each in (*boxes, *boxes):
            await each.specs()
            assert (await call(each, "pay", amount=1)).text == "paid 1"
            assert len(living(notes)) <= 2
        for each in boxes:
            await each.close()
        assert living(notes) == []

    run(check(), 120)


@pytest.mark.case(425)
def test_a_call_that_finds_no_place_waits_and_then_fails(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.bound_children(1)

    async def check() -> None:
        busy, other = box(stdio(notes, timeout_s=600)), box(stdio(notes))
        await other.specs()
        holding = asyncio.create_task(look_long(busy))
        await eventually(lambda: len(pids(notes)) == 2, what="the second child")
        waiting = asyncio.create_task(call(other, "pay", amount=1))
        begun = lambda: (held := other._servers[0]._session) is not None and held._lock.locked()  # noqa: E731
        await eventually(begun, what="the wait for a place")
        monkeypatch.setattr(pool, "ADMIT_S", 0.2)
        third = box(stdio(notes, env={"OTHER": "1"}, optional=True))
        await third.specs()
        assert third.notice(TURN) == (
            "Some of your tools are not there now: the MCP server shop cannot be used: this node runs as many servers as it may, "
            "and all of its 1 are in use (MESH_MCP_CHILDREN). Go on without them."
        )
        holding.cancel()
        await asyncio.wait((holding,))
        assert (await waiting).text == "paid 1", "a place was given back"
        for each in (busy, other, third):
            await each.close()

    run(check(), 60)


async def look_long(toolbox: Toolbox) -> Result:
    await toolbox.specs()
    return await toolbox.run(Call("c1", "shop__hang", {}), TURN)


def test_a_place_whose_child_does_not_end_is_waited_for_and_not_asked_for_again_and_again(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ADMIT_S", 0.1)

    async def check() -> None:
        places = pool.ServerPool(1)
        stuck, other = (places.session(stdio(notes, name=name), {}) for name in ("stuck", "other"))
        await places.admit(stuck)
        with pytest.raises(BackendError, match="MESH_MCP_CHILDREN"):
            await places.admit(other)
        places.leave(stuck)
        await places.admit(other)

    run(check(), 30)
