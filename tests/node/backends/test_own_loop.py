"""Turns that run in a process of their own: where they may go on elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.backend import Turn
from agentmesh_node.backends.own_loop import OwnLoop
from agentmesh_node.turns.boundary import Boundary
from support import eventually, run

pytestmark = pytest.mark.case(723)


def of(boundary: Boundary) -> OwnLoop:
    return OwnLoop(Turn("coder", "17", 1, calls=boundary))


def test_it_goes_on_elsewhere_behind_a_step_and_while_nothing_has_begun() -> None:
    async def main() -> None:
        reached: list[int] = []
        boundary = Boundary(reached.append, 1)
        loop = of(boundary)
        await loop.begin()
        await loop.settled()
        boundary.leave()
        assert boundary.open == 1 and reached == [], "the process runs"
        async with loop.inside.calls.resting():
            assert reached == [], "what one of its tools waits for is no boundary"
        held = asyncio.create_task(loop.settled())
        await eventually(lambda: reached == [1])
        assert not held.done()
        held.cancel()
        await asyncio.wait((held,))
        loop.end()
        loop.end()
        assert boundary.open == 0
        later = asyncio.create_task(of(boundary).begin())
        await eventually(lambda: len(reached) == 2, what="a turn that has not begun goes at once")
        later.cancel()

    run(main())


def test_a_turn_that_ends_is_no_boundary() -> None:
    async def main() -> None:
        reached: list[int] = []
        boundary = Boundary(reached.append, 1)
        loop = of(boundary)
        await loop.begin()
        boundary.leave()
        loop.end()
        assert reached == [] and boundary.told

    run(main())
