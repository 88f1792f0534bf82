"""Keeps a process's estimate of the servers' time: asks the leaders of the mesh's streams, one after another."""

from __future__ import annotations

import asyncio
import logging
from typing import get_args

from agentmesh.edge.clock import Ambient
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.server_time import compare_clocks
from agentmesh.edge.tasks import Background
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotPermitted
from agentmesh.server_clock import WINDOW_S, ServerClock
from agentmesh.subjects import StreamRole, Subjects

log = logging.getLogger("agentmesh.node")

LOOK_S = 2.0
"""Wait for one answer."""
WRONG_S = 2.0
"""Own clocks that are further off are logged."""


class ServerTime:
    """The servers' time for one process, between `start` and `close`."""

    def __init__(self, transport: Transport, subjects: Subjects, ambient: Ambient) -> None:
        self._t = transport
        self._monotonic = ambient.monotonic
        # One server may be wrong, and leads some of the streams: ask for all of them.
        self._streams = [subjects.stream(role) for role in get_args(StreamRole.__value__)]
        self._period_s = WINDOW_S / (2 * len(self._streams))
        self._asking = Background("ask for the servers' time")
        self._told = False
        self.clock = ServerClock(ambient.monotonic, ambient.now)
        self._timers = subjects.stream("timer")
        self._timers_clock = ServerClock(ambient.monotonic, ambient.now, window_s=0.0)

    def timers_now(self) -> float:
        """The time as the server has it that fires timers now: what "in ten seconds" counts from. A server with another clock
        that leads other streams does not matter to it."""
        return self._timers_clock.newest() if self._timers_clock.known else self.clock.now()

    async def start(self) -> None:
        """Ask all leaders at once, and go on asking. A mesh that does not answer now leaves the clock unknown for a while."""
        await asyncio.gather(*(self._ask(stream) for stream in self._streams))
        self._tell()
        self._asking.begin(self._run())

    async def close(self) -> None:
        """Stop asking."""
        await self._asking.close()

    async def _run(self) -> None:
        while self._streams:
            for stream in list(self._streams):
                await asyncio.sleep(self._period_s)
                if self._t.connected:
                    await self._ask(stream)
                    self._tell()

    async def _ask(self, stream: str) -> None:
        try:
            clocks = (self.clock, self._timers_clock) if stream == self._timers else (self.clock,)
            await compare_clocks(self._t, stream, *clocks, monotonic=self._monotonic, timeout=LOOK_S)
        except NotPermitted as error:
            self._streams.remove(stream)
            log.warning("the servers' time cannot be asked of %s: %s", stream, error.message)
        except EDGE_ERRORS as error:
            log.debug("no time from %s: %s", stream, error)

    def _tell(self) -> None:
        """Log once that this machine's clock is wrong, and once that it is right again."""
        ahead = self.clock.ahead_s()
        wrong = ahead is not None and abs(ahead) > WRONG_S
        if ahead is None or wrong == self._told:
            return
        self._told = wrong
        if wrong:
            log.warning(
                "this machine's clock and the NATS servers' differ; deadlines go by the servers': synchronise them",
                extra={"ahead_s": round(ahead, 1)},
            )
        else:
            log.info("this machine's clock and the NATS servers' agree again")
