"""How many requests of callers a second a process takes for the agents of one prefix: the next ones wait for their time.

Shares bound how much of a flood is under way at a time; the turns that it becomes still keep the node busy, which all share. A
rate leaves the node idle in between. Each process counts for itself what it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

AHEAD_S = 0.1
"""So much of a second's requests are taken at once from a prefix that has asked for nothing lately: few requests never wait."""


class PrefixRates:
    """The rates of all prefixes. A request waits inside its place (`Shares`), so that few do; the others wait for a place."""

    def __init__(self, per_s: float, now: Callable[[], float] | None = None) -> None:
        """`per_s` is the rate of one prefix, 0 is none; `now` a monotonic clock; by default that of the loop."""
        self._period = 1.0 / per_s if per_s else 0.0
        self._ahead = max(AHEAD_S, self._period)
        self._now = now or asyncio.get_running_loop().time
        self._next: dict[str, float] = {}
        """The time of each prefix's next request, if all of them came evenly."""
        self._turned = 0.0

    async def turn(self, prefix: str) -> None:
        """Return when the next request of this prefix may be taken."""
        if not self._period:
            return
        now = self._now()
        self._forget(now)
        due = max(self._next.get(prefix, now), now)
        self._next[prefix] = due + self._period
        if (wait := due + self._period - self._ahead - now) > 0:
            await asyncio.sleep(wait)

    def _forget(self, now: float) -> None:
        """Drop the prefixes whose time is over, now and then."""
        if now - self._turned >= 1.0:
            self._next = {prefix: due for prefix, due in self._next.items() if due > now}
            self._turned = now
