"""Deadlines by the servers' clock: what a caller means by a time of its own clock."""

from __future__ import annotations

import asyncio
import logging

from agentmesh import wire
from agentmesh.edge.clock import Ambient
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.server_time import compare_clocks
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotPermitted
from agentmesh.server_clock import ServerClock
from agentmesh.subjects import StreamRole, Subjects
from agentmesh.wire import MAX_TIME, format_time, parse_time

log = logging.getLogger("agentmesh.client")

FRESH_S = 20.0
"""How long a comparison of the clocks holds."""
UNKNOWN_S = 60.0
"""Pause after one that failed. A user who may not ask does not try again."""
LOOK_S = 1.0
"""Wait for the answers."""
AGREE_S = 0.5
"""Clocks that differ by less are taken as equal: an answer may take as long."""
_ASKED: tuple[StreamRole, ...] = ("mail", "result")
"""Streams whose leaders are asked. Mail is stamped by the first one's."""


class CallersClock:
    """What a caller's clock differs from the servers'. It is compared when it is needed, not before."""

    def __init__(self, transport: Transport, subjects: Subjects, ambient: Ambient) -> None:
        self._t = transport
        self._streams = [subjects.stream(role) for role in _ASKED]
        self._monotonic = ambient.monotonic
        self._now = ambient.now
        self._clock = ServerClock(ambient.monotonic, ambient.now)
        self._comparing = asyncio.Lock()
        self._due = float("-inf")

    async def now(self) -> float:
        """The servers' time in seconds since the epoch; this machine's, if no server tells."""
        return self._now() - await self._ahead_s()

    async def by_the_servers(self, moment: str) -> str:
        """The servers' time at which this machine's clock shows `moment`: both as RFC 3339."""
        ahead = await self._ahead_s()
        return format_time(min(MAX_TIME, max(0.0, parse_time(moment) - ahead))) if ahead else moment

    async def put_right(self, headers: dict[str, str]) -> None:
        """Write the times among `headers`, which are this machine's, as the servers' clock has them."""
        for name in (wire.DEADLINE, wire.END_BY):
            if name in headers:
                headers[name] = await self.by_the_servers(headers[name])

    async def _ahead_s(self) -> float:
        async with self._comparing:
            if self._monotonic() >= self._due:
                known = await asyncio.gather(*(self._compare(stream) for stream in self._streams))
                pause = FRESH_S if any(known) else UNKNOWN_S
                self._due = self._monotonic() + (pause if self._streams else float("inf"))
        ahead = self._clock.ahead_s()
        return 0.0 if ahead is None or abs(ahead) < AGREE_S else ahead

    async def _compare(self, stream: str) -> bool:
        try:
            await compare_clocks(self._t, stream, self._clock, monotonic=self._monotonic, timeout=LOOK_S)
        except NotPermitted:
            self._streams.remove(stream)  # each attempt would be an error in the server's log
            return False
        except EDGE_ERRORS as error:
            log.debug("no time from %s: %s", stream, error)
            return False
        return True
