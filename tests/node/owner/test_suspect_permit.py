"""Leave for suspect inputs: one at a time, but nobody waits for ever."""

from __future__ import annotations

import asyncio

from agentmesh_node.owner.suspect_permit import SuspectPermit
from support import eventually, run


def test_one_has_leave_at_a_time_and_the_next_follows_when_it_is_given_back() -> None:
    async def scenario() -> None:
        slot, granted = asyncio.Semaphore(1), list[str]()
        first = SuspectPermit(slot, lambda: granted.append("first"))
        second = SuspectPermit(slot, lambda: granted.append("second"))
        third = SuspectPermit(slot, lambda: granted.append("third"))
        await eventually(lambda: granted == ["first"])
        await third.give_back()
        await first.give_back()
        await first.give_back()
        await eventually(lambda: granted == ["first", "second"])
        await second.give_back()
        assert not slot.locked()
        assert granted == ["first", "second"], "who gave it back while it waited never gets it"

    run(scenario())


def test_a_suspect_that_waits_for_another_suspect_does_not_hold_it_up_for_ever() -> None:
    async def scenario() -> None:
        slot, granted = asyncio.Semaphore(1), list[str]()
        waits = SuspectPermit(slot, lambda: granted.append("waits"), longest_s=0.05)
        other = SuspectPermit(slot, lambda: granted.append("other"))
        await eventually(lambda: granted == ["waits", "other"])
        await waits.give_back()  # releases nothing a second time
        assert slot.locked()
        await other.give_back()
        assert not slot.locked()

    run(scenario())
