"""The decisions of a supervisor, for people: one log line and one event each."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from agentmesh import semconv
from agentmesh.edge.transport import Disconnected, Transport
from agentmesh.subjects import Subjects
from agentmesh.wire import encode, format_time
from agentmesh_node.telemetry.instruments import own

log = logging.getLogger("agentmesh.supervisor")

EVENT_SOURCE = "_supervisor"
"""Takes the place of the agent in the subject of supervisors' events."""
MAX_EVENTS = 10_000
"""Most events that wait to be published; beyond that the oldest are dropped. They are for people to read, not state."""


class DecisionLog:
    """Logs each decision, and publishes it as an event on `mesh.event._supervisor.<kind>`."""

    def __init__(self, transport: Transport, subjects: Subjects, supervisor_id: str, wall_clock: Callable[[], float]) -> None:
        self._transport = transport
        self._subjects = subjects
        self._id = supervisor_id
        self._wall_clock = wall_clock
        self._events: deque[tuple[str, bytes]] = deque(maxlen=MAX_EVENTS)
        self._wake = asyncio.Event()
        self._instruments = own()

    def add(self, kind: str, reason: str, *, level: int = logging.INFO, **fields: Any) -> None:
        """Log `kind` with its fields now, and publish it soon (by `run`)."""
        self._instruments.tally(semconv.DECISIONS_COUNTER, {semconv.DECISION: kind}).value += 1
        log.log(level, kind, extra={**fields, "reason": reason, "supervisor": self._id})
        body = {"v": 1, "kind": kind, "time": format_time(self._wall_clock()), **fields, "reason": reason, "supervisor": self._id}
        self._events.append((self._subjects.event(EVENT_SOURCE, kind), encode(body)))
        self._wake.set()

    async def run(self) -> None:
        """Publish the events as they are added, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Publish the events that wait. Without a connection they are dropped: the log has them."""
        while self._events:
            subject, body = self._events.popleft()
            try:
                await self._transport.publish(subject, body)
            except Disconnected:
                self._events.clear()
