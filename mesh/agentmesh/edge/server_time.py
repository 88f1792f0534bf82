"""Asks the servers for their time."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agentmesh.edge.api import call_api
from agentmesh.edge.transport import Transport
from agentmesh.server_clock import ServerClock
from agentmesh.wire import parse_time


class _LeadersTime(msgspec.Struct):
    ts: str | None = None


_info = msgspec.json.Decoder(_LeadersTime)


async def compare_clocks(
    t: Transport, stream: str, *clocks: ServerClock, monotonic: Callable[[], float], timeout: float = 5.0
) -> None:
    """Tell `clocks` what time the leader of `stream` has: the clock by which it stamps what it stores.

    Args:
        monotonic: the clock that `clocks` read.

    Raises:
        ApiError: there is no such stream.
        Unavailable: no connection, no leader, no answer in time.
    """
    sent = monotonic()
    info = _info.decode(await call_api(t, f"STREAM.INFO.{stream}", timeout=timeout))
    if info.ts is not None:
        stamp, heard = parse_time(info.ts), monotonic()
        for clock in clocks:
            clock.observe(stamp, sent, heard)
