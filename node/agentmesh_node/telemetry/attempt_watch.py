"""Publishes that an attempt began, once it has run for a moment (docs/design/039-attempts-that-nobody-ended.md).

Attempts are many and short: each costs an entry of a queue, and one timer serves all of a node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from agentmesh.trace.spans import Began

LASTS_S = 0.02
"""How long an attempt must have run. A shorter one is told by its record alone."""

LATE_S = 1.0
"""Beyond it the process had stood still."""

type Still = Callable[[], Began | None]
"""The fact of an attempt that still runs; None if it has ended."""


class AttemptWatch:
    """Watches the attempts of one node."""

    def __init__(
        self,
        tell: Callable[[Began], None],
        *,
        monotonic: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        """
        Args:
            tell: publishes the fact.
            monotonic: the time, in seconds.
            later: calls what it is given after so many seconds.
        """
        self._tell = tell
        self._monotonic = monotonic
        self._later = later
        self._watched: deque[tuple[float, Still]] = deque()

    def watch(self, still: Still) -> None:
        """An attempt begins now. `still` is called once, after a moment."""
        self._watched.append((self._monotonic() + LASTS_S, still))
        if len(self._watched) == 1:
            self._later(LASTS_S, self._look)

    def _look(self) -> None:
        now, watched = self._monotonic(), self._watched
        while watched and watched[0][0] <= now:
            due, still = watched.popleft()
            if now - due > LATE_S:
                watched.append((now + LASTS_S, still))  # the process stood still: what has come meanwhile may end the attempt
                continue
            if (fact := still()) is not None:
                self._tell(fact)
        if watched:
            self._later(max(0.001, watched[0][0] - now), self._look)
