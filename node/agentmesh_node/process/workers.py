"""`mesh node --workers N`: several node processes on one machine, kept alive by a parent process that does nothing else.

A Python process uses one core; a machine has more. Each worker is an ordinary node with an id of its own, `<id>-<number>`. A
worker that dies is started again, with a pause that doubles while it keeps dying; a worker that an operator has drained is not.
A service manager does the same with a unit for each node; this is for where there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable

from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import MeshError
from agentmesh_node.process.health import OF_WORKERS, serving
from agentmesh_node.process.signals import EXIT_OK, StopSignal

log = logging.getLogger("agentmesh.workers")

PARENT = "MESH_WORKER_OF"
"""Variable with the parent's process id: a worker whose parent is gone drains and ends."""
RESTART = ExponentialBackoff(0.2, 10.0)
LASTED_S = 30.0
"""A worker that ran for so long has not died of its start: the pause begins anew."""
LOOK_S = 1.0


class StartFailed(MeshError):
    """A worker ended before it was ready, with `exit_code`."""

    code = "unavailable"

    def __init__(self, worker: str, exit_code: int) -> None:
        super().__init__(f"worker {worker} ended with {exit_code} before it was ready; its own complaint stands above")
        self.exit_code = exit_code


class Workers:
    """The workers of one node command."""

    def __init__(self, own_id: str, count: int, command: Callable[[str], bytes]) -> None:
        """`command` is what the worker of an id reads from its stdin: unlike its arguments, nobody else on the machine can."""
        self._ids = [f"{own_id}-{number}" for number in range(1, count + 1)]
        self._command = command
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._ready: set[str] = set()
        self._were_ready: set[str] = set()
        self._codes: dict[str, int] = {}
        self._stopping = False

    def not_ready(self) -> str | None:
        """Why not all workers work, or None."""
        missing = [own_id for own_id in self._ids if own_id not in self._ready]
        if self._stopping:
            return "draining"
        return f"not ready: {', '.join(missing)}" if missing else None

    async def serve(self, told: StopSignal, line: str, health_port: int | None) -> int:
        """Keep the workers running until a signal, then drain them. Returns the exit code: that of the first one that failed,
        else 0.

        Raises:
            StartFailed: a worker could not be started at all.
        """
        keepers = [asyncio.create_task(self._keep(own_id)) for own_id in self._ids]
        try:
            async with serving(health_port, self.not_ready, metrics=OF_WORKERS):
                first = asyncio.create_task(self._all_ready())
                await asyncio.wait((first, *keepers), return_when=asyncio.FIRST_COMPLETED)
                await cancel_and_wait(first)
                for keeper in keepers:
                    if keeper.done():
                        keeper.result()
                told.ready(line)
                await told.stop(asyncio.create_task(self._all_ended(keepers)))
                self._stopping = True
                self._signal(signal.SIGTERM)
                await asyncio.wait(keepers)
        finally:
            self._stopping = True
            self._signal(signal.SIGKILL)
            await cancel_and_wait(*keepers)
        return next((code for code in self._codes.values() if code != EXIT_OK), EXIT_OK)

    async def _all_ready(self) -> None:
        while self.not_ready() is not None:  # noqa: ASYNC110 - a moment, once
            await asyncio.sleep(0.02)

    async def _all_ended(self, keepers: list[asyncio.Task[None]]) -> None:
        """Return when all workers were drained from outside; raise if one fails."""
        await asyncio.gather(*keepers)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    async def _keep(self, own_id: str) -> None:
        pauses = iter(RESTART)
        loop = asyncio.get_running_loop()
        while not self._stopping:
            began = loop.time()
            code, was_ready = await self._run(own_id)
            # A worker that was about to start again when all had to end has nothing to drain, and ends at once.
            self._codes[own_id] = code if was_ready or not self._stopping else EXIT_OK
            if self._stopping or (code == EXIT_OK and was_ready):
                return
            if own_id not in self._were_ready:
                raise StartFailed(own_id, code)
            if loop.time() - began > LASTED_S:
                pauses = iter(RESTART)
            pause = next(pauses)
            log.error("a worker ended; starting it again", extra={"worker": own_id, "exit_code": code, "pause_s": pause})
            await asyncio.sleep(pause)

    async def _run(self, own_id: str) -> tuple[int, bool]:
        """One life of a worker: its exit code, and whether it was ready once."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agentmesh_node", "worker", "--id", own_id,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, PARENT: str(os.getpid())},
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which drains the workers
        )  # fmt: skip
        self._running[own_id] = process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it has ended already, and its exit code says why
            process.stdin.write(self._command(own_id))
            process.stdin.close()
            await process.stdin.wait_closed()
        was_ready = bool(await process.stdout.readline())
        if was_ready:
            self._ready.add(own_id)
            self._were_ready.add(own_id)
        try:
            return await process.wait(), was_ready
        finally:
            self._ready.discard(own_id)


async def orphaned() -> None:
    """Return when this worker's parent is gone; never, if this process is no worker."""
    parent = os.environ.get(PARENT, "")
    while not parent or os.getppid() == int(parent):  # noqa: ASYNC110 - nothing signals it
        await asyncio.sleep(LOOK_S)
