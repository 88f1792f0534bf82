"""An estimate of the NATS servers' time, by which deadlines are measured (docs/design/025-time-by-the-servers-clock.md).

Pure: it hears of time stamps and reads a monotonic clock. `agentmesh.edge.server_time` brings it the stamps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

WINDOW_S = 60.0
"""How long a stamp counts. Within this time every stream has been asked (`edge/server_time_keeper.py`), so that no single server
decides, and what a wrong one has said is forgotten."""
WIDEST_S = 1.0
"""A stamp whose request took longer is not used: it says too little about when the server wrote it."""
SLOWEST = 0.5
"""How fast the estimate goes on while it is too far ahead, in seconds per second: it never jumps back."""


class _Sample(NamedTuple):
    heard: float
    offset: float
    """The server's time less the monotonic clock: at most this, since the server stamped it after the request was sent."""


class ServerClock:
    """The servers' time, as far as this process can tell, by its own monotonic clock.

    Of the stamps of the last minute the least counts: one server that is ahead makes no deadline pass early. A server that is
    behind makes deadlines pass late, as long as its stamps count.

    Args:
        monotonic: a clock for durations, in seconds.
        wall: this process's own clock, in seconds since the epoch. Only what it says before the first stamp is used.
        window_s: how long a stamp counts, in seconds; 0: the newest alone does.
    """

    __slots__ = (
        "_floor",
        "_monotonic",
        "_offset",
        "_plain",
        "_read",
        "_samples",
        "_since",
        "_slow",
        "_wall",
        "_window_s",
        "known",
    )

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float], *, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._monotonic = monotonic
        self._wall = wall
        self._samples: deque[_Sample] = deque()
        """Ascending in both fields: a stamp that is not the least of those that outlive it is dropped."""
        self._offset = wall() - monotonic()
        self._since = 0.0
        self._slow = False
        """Whether it is too far ahead, and goes slower."""
        self._floor = 0.0
        """The estimate at `_since`, which it does not fall behind."""
        self._read = False
        """Whether somebody goes by the estimate already."""
        self._plain = False
        """Whether the estimate is the offset and nothing else: it is read, known, and at full speed."""
        self.known = False
        """Whether a server's time has been heard. Until then the process's own clock is followed."""

    def now(self) -> float:
        """The servers' time, in seconds since the epoch. Once `known`, it never goes back."""
        if self._plain:  # an owner asks ten times a turn
            return self._monotonic() + self._offset
        at = self._monotonic()
        if not self._read:
            self._read = self.known
        if not self._slow:
            self._plain = self._read
            return at + self._offset
        right, slow = at + self._offset, self._floor + (at - self._since) * SLOWEST
        self._slow = slow > right
        return max(right, slow)

    def observe(self, stamp: float, sent: float, heard: float) -> None:
        """Take a server's time into account.

        Args:
            stamp: what the server said, in seconds since the epoch.
            sent: when it was asked, by the monotonic clock.
            heard: when its answer came, by the same.
        """
        if heard - sent > WIDEST_S:
            if not self.known:
                self._set(stamp - heard)  # at least that late: better than a clock that was never compared
            return
        offset = stamp - sent
        samples = self._samples
        while samples and samples[0].heard <= heard - self._window_s:
            samples.popleft()
        while samples and samples[-1].offset >= offset:
            samples.pop()
        samples.append(_Sample(heard, offset))
        self._set(samples[0].offset)

    def ahead_s(self) -> float | None:
        """By how many seconds this process's own clock is ahead of the servers'; None as long as that is not known."""
        return self._wall() - self._monotonic() - self._offset if self.known else None

    def newest(self) -> float:
        """The servers' time as `now` will have it once it goes at full speed again: it may go back."""
        return self._monotonic() + self._offset

    def _set(self, offset: float) -> None:
        if self._read and offset < self._offset:
            self._floor, self._since = self.now(), self._monotonic()
            self._slow, self._plain = True, False
        self.known = True
        self._offset = offset
