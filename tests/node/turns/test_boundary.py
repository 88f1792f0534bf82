"""When a running turn may be handed to another node: between its calls, and at no other moment (case 670)."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh_node.turns.boundary import Boundary
from support import run


class Told:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self, turn: int) -> None:
        self.times += 1


async def soon() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.case(670)
def test_a_call_that_is_open_is_waited_for_and_the_next_one_does_not_begin() -> None:
    async def main() -> None:
        told = Told()
        calls = Boundary(told)
        await calls.begin()
        calls.leave()
        following = asyncio.ensure_future(calls.begin())
        await soon()
        assert told.times == 0 and not following.done()
        calls.end()
        assert told.times == 1
        await soon()
        assert not following.done(), "the next owner makes it"
        following.cancel()

    run(main())


@pytest.mark.case(670)
def test_a_turn_with_no_call_open_that_needs_none_ends_by_itself() -> None:
    async def main() -> None:
        told = Told()
        calls = Boundary(told)
        await calls.begin()
        calls.leave()
        calls.end()
        await soon()
        assert told.times == 0, "its answer was the last thing that it waited for"

    run(main())


@pytest.mark.case(670)
def test_a_call_that_only_waits_does_not_hold_up_the_hand_over_and_goes_on_nowhere_but_there() -> None:
    async def main() -> None:
        told, answer = Told(), asyncio.Event()
        calls = Boundary(told)

        async def ask() -> None:
            await calls.begin()
            async with calls.resting():
                await answer.wait()
            calls.end()

        asking = asyncio.ensure_future(ask())
        await soon()
        assert told.times == 0
        calls.leave()
        assert told.times == 1
        answer.set()
        await soon()
        assert not asking.done()
        calls.closed = True
        asking.cancel()
        await asyncio.wait([asking])
        assert calls.open == 1, "it was cut off in the middle"

    run(main())


def test_a_turn_that_does_not_say_what_is_open_is_never_handed_on() -> None:
    async def main() -> None:
        told = Told()
        calls = Boundary(told, leaving=True)
        calls.leave()
        async with calls.resting():  # as a tool of it does that asks another agent
            await soon()
        assert told.times == 0

    run(main())
