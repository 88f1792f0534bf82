"""Threads for plain callbacks. Callbacks of one agent that hang do not keep those of others from running.

A thread cannot be killed, so a callback that hangs holds its thread until the process ends. Therefore a call holds one of the
node's slots only for a short time: a longer call gives its slot back and runs on without one. Instead the number of threads
that an agent may leave behind is bounded: beyond that its callbacks are refused, which is handled like any crash of its own
code. `anyio.to_thread` has no such slot: its limiter counts a thread until it ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from agentmesh.errors import Busy
from agentmesh_node.user_code.threads import CaughtError, in_thread

AT_ONCE = 32
"""Most plain callbacks of a node that run at the same time, not counting those that have run longer than SLOT_S."""
SLOT_S = 0.5
"""How long a callback holds one of these slots."""
LEFT_BEHIND = 4
"""Most threads that one agent may leave behind: threads in which a cancelled callback still runs."""


class CallbackThreads:
    """The threads of one node's plain callbacks. Used on its loop only."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)
        self._running: Counter[str] = Counter()

    async def run(self, agent: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What `function` returns, in a thread and in a copy of this context, as `asyncio.to_thread` would.

        Raises:
            BaseException: what `function` raises.
            Busy: too many callbacks of this agent hang in threads, or the system can start no more.
        """
        if self._running[agent] > LEFT_BEHIND:
            raise Busy(f"{self._running[agent]} plain callbacks of {agent} hang in their threads; make them end, or `async`")
        await self._places.acquire()
        release = _Once(self._places.release)
        overtime = asyncio.get_running_loop().call_later(SLOT_S, release)
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
