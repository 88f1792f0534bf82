"""How a message gets to its handler, without a connection."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from agentmesh.edge.subscription import LiveSubscription
from agentmesh.edge.transport import Message
from support import run

pytestmark = pytest.mark.quick


class Forgetful:
    """A connection that only forgets."""

    def gap(self) -> None:
        raise AssertionError("nothing was dropped")

    def forget(self, sid: int) -> None: ...

    async def fade(self, sid: int) -> None: ...


@pytest.mark.parametrize("steps", range(4))
def test_a_handler_is_ended_at_any_step_without_a_word(steps: int) -> None:
    """Also before its first: its connection may be closed in the pass of the loop in which the message came."""
    seen: list[str] = []

    async def handler(message: Message) -> None:
        seen.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("ended")

    async def main() -> None:
        subscription = LiveSubscription(Forgetful(), 1, "a", "", handler)
        subscription.deliver(Message("a", b"", {}))
        for _ in range(steps):
            await asyncio.sleep(0)
        await subscription.stop()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(main())
        gc.collect()
    assert seen == (["begun", "ended"] if steps else [])
    assert [str(warning.message) for warning in told] == []
