"""A caller that floods the gateway waits for its own requests alone (case 627)."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.errors import MailboxFull
from agentmesh_node.gateway.requesters import Requester
from agentmesh_node.gateway.shares import AT_ONCE, MOST, Shares
from support import eventually, run

FLOOD, OTHER = Requester("CALLERS", "flood"), Requester("CALLERS", "other")


@pytest.mark.case(627)
def test_of_one_caller_some_are_served_at_a_time_and_others_find_their_places() -> None:
    async def main() -> None:
        shares, gate = Shares(), asyncio.Event()
        served: list[tuple[Requester, int]] = []

        async def serve(requester: Requester, number: int) -> None:
            async with shares.place(requester):
                served.append((requester, number))
                if requester is FLOOD:
                    await gate.wait()

        flood = [asyncio.ensure_future(serve(FLOOD, number)) for number in range(MOST)]
        await eventually(lambda: len(served) == AT_ONCE)
        await serve(OTHER, 0)
        assert served == [*((FLOOD, number) for number in range(AT_ONCE)), (OTHER, 0)]
        with pytest.raises(MailboxFull):
            await serve(FLOOD, MOST)
        flood[AT_ONCE].cancel()
        gate.set()
        await asyncio.gather(*flood, return_exceptions=True)
        assert [number for requester, number in served if requester is FLOOD] == [n for n in range(MOST) if n != AT_ONCE]
        await serve(FLOOD, MOST)
        assert not shares._of, "who asks nothing takes no room"

    run(main())
