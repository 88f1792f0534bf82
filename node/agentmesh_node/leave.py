"""Leave to handle a suspect input: one agent of a node at a time has it (design 4, "Poison")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Leave:
    """Waits for its turn, calls `granted`, and is given back in the end, whether it came or not."""

    def __init__(self, slot: asyncio.Semaphore, granted: Callable[[], None]) -> None:
        self._slot = slot
        self._granted = granted
        self._held = False
        self._task = asyncio.get_running_loop().create_task(self._wait(), name="leave for a suspect input")

    async def _wait(self) -> None:
        await self._slot.acquire()
        self._held = True
        self._granted()

    async def give_back(self) -> None:
        """Let the next one begin. Idempotent."""
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._held:
            self._held = False
            self._slot.release()
