"""The keeper of several node processes; tests/live/test_workers.py has real ones."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from agentmesh_node.process.signals import EXIT_INTERRUPTED, EXIT_OK, StopSignal
from agentmesh_node.process.workers import Workers
from support import run


class Starting:
    """A keeper is told to end once its worker has been ready, has died, and is about to start again."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._said_ready = asyncio.Event()
        self._again = asyncio.Event()
        self._ended = asyncio.Event()
        self._lives = 0

    async def run(self, own_id: str) -> tuple[int, bool]:
        """The worker's lives: one that is ready and dies, and one that is ended by a signal before it is ready."""
        self._lives += 1
        if self._lives == 1:
            self._workers._ready.add(own_id)
            self._workers._were_ready.add(own_id)
            await self._said_ready.wait()
            return -9, True
        self._again.set()
        await self._ended.wait()
        return EXIT_INTERRUPTED, False

    def ready(self, line: str) -> None:
        """As `StopSignal.ready`."""
        self._said_ready.set()

    async def stop(self, part: asyncio.Task[None]) -> None:
        """As `StopSignal.stop`."""
        await self._again.wait()

    def signal(self, number: int) -> None:
        """As `Workers._signal`."""
        self._ended.set()


@pytest.mark.case(222)
def test_a_worker_that_is_starting_again_when_all_are_told_to_end_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        workers = Workers("n", 1, str.encode)
        world = Starting(workers)
        monkeypatch.setattr(workers, "_run", world.run)
        monkeypatch.setattr(workers, "_signal", world.signal)
        assert await workers.serve(cast("StopSignal", world), "n ready", None) == EXIT_OK

    run(main())
