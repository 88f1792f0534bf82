"""Runs a process's signs of life apart from its main loop, on a connection of their own.

A node's heartbeat (`heartbeat`) and a supervisor's lease and pings (`lease_and_pings`) must go on while the main loop is busy,
and must end when it hangs. In a real process they have a thread; a simulation runs them in its one loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from agentmesh.edge.address import API
from agentmesh.edge.connection import connect
from agentmesh.edge.login import NO_LOGIN, Login
from agentmesh.edge.transport import Transport
from agentmesh.errors import Unavailable

START_TIMEOUT_S = 15.0
"""How long the first connection may take."""
CHECK_S = 0.25
"""How often a main loop notes that it turns, and how often that is checked."""
HUNG = 70
"""Exit code of a process whose loop hangs."""


class LivenessLoop(Protocol):
    """Runs the signs of life of one process."""

    async def connect(self, name: str) -> Transport:
        """Open a connection of its own."""

    def start(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin to run `main`."""

    async def join(self, timeout: float) -> None:
        """Return when `main` has ended, or after `timeout` seconds."""

    def end_process(self) -> None:
        """End the whole process, at once."""


async def begin(
    liveness: LivenessLoop, name: str, main: Callable[[], Coroutine[Any, Any, None]], started: asyncio.Future[None], what: str
) -> None:
    """Start `main` and return when it has set `started`.

    Raises:
        Unavailable: it has not set it within START_TIMEOUT_S; `what` says what fails.
    """
    liveness.start(name, main)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await started
    except TimeoutError:
        raise Unavailable(f"{what}; is the NATS server reachable?") from None


class LivenessThread:
    """A thread with an event loop of its own."""

    def __init__(self, servers: str | Sequence[str], *, api: str = API, mesh: str | None = None, login: Login = NO_LOGIN) -> None:
        """All are as for `agentmesh.edge.connection.connect`."""
        self._login = login
        self._servers = servers
        self._api = api
        self._mesh = mesh
        self._thread: threading.Thread | None = None

    async def connect(self, name: str) -> Transport:
        """See `LivenessLoop.connect`."""
        # The process had a connection a moment ago: one that is gone meanwhile is waited for.
        return await connect(
            self._servers,
            name=name,
            connect_timeout=START_TIMEOUT_S,
            wait_s=START_TIMEOUT_S,
            api=self._api,
            mesh=self._mesh,
            login=self._login,
        )

    def start(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See `LivenessLoop.start`."""
        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name=name, daemon=True)
        self._thread.start()

    async def join(self, timeout: float) -> None:
        """See `LivenessLoop.join`."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, timeout)

    def end_process(self) -> None:
        """See `LivenessLoop.end_process`. Nothing is shut down: the loop that would do that hangs."""
        os._exit(HUNG)
