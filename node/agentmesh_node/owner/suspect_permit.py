"""The permit to run a suspect input: one agent of a node at a time has it, for so long at most (docs/architecture.md#poison)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmesh.edge.tasks import cancel_and_wait

LONGEST_S = 30.0
"""How long others wait for one suspect. An input that kills its node usually does so sooner. A suspect may be a turn of an hour;
or it may wait for the answer of another suspect, which would otherwise wait for the permit for ever."""


class SuspectPermit:
    """Waits for the node's permit, calls `granted`, and is given back in the end, granted or not."""

    def __init__(self, slot: asyncio.Semaphore, granted: Callable[[], None], longest_s: float = LONGEST_S) -> None:
        self._slot = slot
        self._granted = granted
        self._longest_s = longest_s
        self._held = False
        self._limit: asyncio.TimerHandle | None = None
        self._task = asyncio.get_running_loop().create_task(self._wait(), name="permit for a suspect input")

    async def _wait(self) -> None:
        await self._slot.acquire()
        self._held = True
        self._limit = asyncio.get_running_loop().call_later(self._longest_s, self._release)
        self._granted()

    async def give_back(self) -> None:
        """Let the next suspect begin. Idempotent."""
        await cancel_and_wait(self._task)
        self._release()

    def _release(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        if self._held:
            self._held = False
            self._slot.release()
