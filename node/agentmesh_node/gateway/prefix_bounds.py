"""How many messages of callers may wait for the agents of one prefix: a team that floods its own agents fills no more than that.

Nodes tell in their leases how much waits for the agents that they run, by the first token of their names. What this process has
taken since then it counts itself. So a bound costs no request, and several processes together may exceed it by what they take in
the time between two leases.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from agentmesh import names
from agentmesh.edge.registry import Entry, Registry, View, decode_node
from agentmesh.errors import BadRequest, MailboxFull

CALLERS_WAITING = 10_000
"""The default bound of one prefix."""
LEASES_S = 1.0
"""What was taken is counted for one to two times this long: by then the leases tell of it, or it is consumed."""


class PrefixBounds:
    """Counts what waits. `start` before the first count, then `close`."""

    def __init__(self, registry: Registry, limit: int, now: Callable[[], float] | None = None) -> None:
        """`limit` is that of one prefix, `now` a monotonic clock; by default that of the loop."""
        self._limit = limit
        self._now = now or asyncio.get_running_loop().time
        self._view = View(registry, ["nodes.*"], self._observe)
        self._told: dict[str, dict[str, int]] = {}
        """What waits by prefix, of each lease that tells of any."""
        self._taken: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._turned = 0.0
        self._started = False
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Follow the leases, unless that is done already: a mesh that no other account asks anything has no use for them.

        Raises:
            Unavailable: the registry cannot be read.
        """
        if self._started:
            return
        async with self._starting:
            if not self._started:
                await self._view.start()
                self._started = True

    async def close(self) -> None:
        """Follow them no more."""
        if self._started:
            await self._view.close()

    def take(self, agent: str) -> None:
        """Count one message of a caller to `agent`.

        Raises:
            MailboxFull: too many wait for the agents of its prefix.
        """
        prefix = names.prefix_of(agent)
        waiting = self.waiting(prefix)
        if waiting >= self._limit:
            raise MailboxFull(
                f"{waiting} messages wait for agents of {prefix!r}, and {self._limit} may: send again later",
                details={"prefix": prefix, "waiting": waiting, "limit": self._limit},
            )
        self._taken[prefix] += 1

    def waiting(self, prefix: str) -> int:
        """How many messages wait for the agents of a prefix, as far as this process knows."""
        elapsed = self._now() - self._turned
        if elapsed >= LEASES_S:
            self._before = self._taken if elapsed < 2 * LEASES_S else Counter()
            self._taken, self._turned = Counter(), self._now()
        told = sum(lease.get(prefix, 0) for lease in self._told.values())
        return told + self._taken[prefix] + self._before[prefix]

    def _observe(self, entry: Entry) -> None:
        try:
            waiting = {} if entry.value is None else decode_node(entry).waiting
        except BadRequest:
            waiting = {}
        if waiting:
            self._told[entry.key] = waiting
        else:
            self._told.pop(entry.key, None)
