"""Pauses between tries of what may succeed later: a stream that elects a leader, a server that restarts, an owner in takeover.

They have no jitter: how many try at once is bounded where it matters (a node's activations, an owner's effects). Why this is no
library's: docs/design/018-what-recurs-stands-once.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExponentialBackoff:
    """Pauses in seconds, without end: the first one, then each twice the one before, up to the longest.

    Each `iter()` begins anew, so what has succeeded once takes a new one.
    """

    first_s: float
    longest_s: float

    def __iter__(self) -> Iterator[float]:
        pause = min(self.first_s, self.longest_s)
        while True:
            yield pause
            pause = min(2 * pause, self.longest_s)


CALL_RETRY = ExponentialBackoff(0.02, 1.0)
"""For a call that somebody waits for."""
UPKEEP_RETRY = ExponentialBackoff(0.05, 2.0)
"""For what must be done in the end and nobody waits for: writes to the registry, activations."""
