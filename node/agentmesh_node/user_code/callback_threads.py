"""Threads for plain callbacks, such that those of one agent that hang do not keep another's from running.

A thread cannot be killed, so a callback that hangs holds its thread until the process ends. Therefore a call holds one of the
node's places for a short time only: one that lasts gives its place back and runs on beside them. What an agent may leave behind
is bounded instead: beyond that its callbacks are refused, which is counted, logged and answered as any crash of its own code.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from agentmesh.errors import Busy
from agentmesh_node.user_code.threads import CaughtError, in_thread

log = logging.getLogger("agentmesh.node")

AT_ONCE = 32
"""Plain callbacks of a node that run at the same time, those not counted that have lasted longer than PLACE_S."""
PLACE_S = 0.5
"""How long a callback holds one of these places."""
LEFT_BEHIND = 4
"""Threads that one agent may have left behind: a callback of it was cancelled, and goes on in its thread."""


class CallbackThreads:
    """The threads of one node's plain callbacks. Used on its loop only."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._running: Counter[str] = Counter()

    async def run(self, agent: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What `function` returns, in a thread and in a copy of this context, as `asyncio.to_thread` would.

        Raises:
            BaseException: what `function` raises.
            Busy: too many callbacks of this agent hang in threads, or the system gives no more of them.
        """
        if self._running[agent] > LEFT_BEHIND:
            raise Busy(f"{self._running[agent]} plain callbacks of {agent} hang in their threads; make them end, or `async`")
        await self._places.acquire()
        release = _Once(self._places.release)
        overtime = asyncio.get_running_loop().call_later(PLACE_S, release)
        self._running[agent] += 1

        def over() -> None:
            self._running[agent] -= 1
            if not self._running[agent]:
                del self._running[agent]

        try:
            value = await in_thread(lambda: function(*arguments), {}, agent, kind="callback", over=over)
        finally:
            overtime.cancel()
            release()
        if isinstance(value, CaughtError):
            raise value.error
        return value


class _Once:
    """Calls `action` the first time that it is called."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()
