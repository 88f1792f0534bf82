"""Shared by a node's owners: the connection, the registry's copy, time and randomness, telemetry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from agentmesh.edge.blobs import Blobs
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.journal import Journal
from agentmesh.edge.registry import Registry, View
from agentmesh.edge.stream_configs import DUPLICATE_WINDOW_S
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Transport
from agentmesh.subjects import Subjects
from agentmesh_node.formats import Formats
from agentmesh_node.run_queue import RunQueue
from agentmesh_node.settings import NodeSettings
from agentmesh_node.store_loss import StreamEnds
from agentmesh_node.telemetry.attempt_watch import AttemptWatch
from agentmesh_node.telemetry.events import GATHER_S, Events
from agentmesh_node.telemetry.otel import trace_ratio
from agentmesh_node.telemetry.trace_facts import SpanTeller
from agentmesh_node.telemetry.tracing import Tracing, span_export

log = logging.getLogger("agentmesh.node")

CLOCKS_DIFFER_S = 60.0
"""How far the clocks of the servers may differ, and of nodes of older builds."""
IDS = 256
"""How many random ids are made at a time."""
FOREIGN_REPORT_S = 60.0
"""How often foreign messages in one agent's journal are reported, at most."""
MOST_REPORTED = 10_000
"""Agents of which that is remembered."""
LOOKING_BACK = 4
"""For how many agents at a time a node looks for what their former owners have left untold."""
CROWDED_REST_S = 0.2
"""Idle time after which an agent rests, and sleeps, on a node that has too many awake."""


class Services:
    """Shared by the owners of one node. An owner takes clock and randomness only from here: `ambient.now` is the servers' time,
    as the node estimates it (`server_time`), so that all owners of an agent measure by one clock."""

    def __init__(
        self,
        *,
        transport: Transport,
        settings: NodeSettings,
        registry: Registry,
        specs: View,
        boot: str,
        epoch: int,
        ambient: Ambient = SYSTEM,
        timers_now: Callable[[], float] | None = None,
        duplicate_window_s: float = DUPLICATE_WINDOW_S,
    ) -> None:
        self.now = ambient.now
        self.timers_now = timers_now or ambient.now
        """The time that a timer counts from, in seconds since the epoch."""
        self.monotonic = ambient.monotonic
        self.random_token = ambient.token
        self._ids: list[str] = []
        self.transport = transport
        self.settings = settings
        self.subjects = Subjects(settings.root)
        self.registry = registry
        self.specs = specs
        blobs = Blobs(transport, self.subjects, ambient=ambient)
        self.journal = Journal(transport, self.subjects, blobs=blobs, on_foreign=self._report_foreign)
        self._reported: dict[str, float] = {}
        """When foreign messages in an agent's journal were reported last."""
        self.ends = StreamEnds(transport, self.subjects)
        self.formats = Formats(registry, ambient.monotonic)
        self.boot = boot
        self.epoch = epoch
        self.duplicate_window_s = duplicate_window_s
        """How long the mail stream drops repetitions of a message id."""
        self.remember_s = duplicate_window_s + CLOCKS_DIFFER_S
        """How long an agent remembers the ids of purged mail."""
        self.run_queue = RunQueue(transport)
        export = span_export()
        self.tracing = Tracing(export)
        loop = asyncio.get_running_loop()
        gather = partial(loop.call_later, GATHER_S)
        self.events = Events(
            transport,
            self.subjects,
            settings.node_id,
            self.now,
            content=settings.content,
            handlers=settings.handlers,
            later=gather,
        )
        self.traces = SpanTeller(
            transport,
            self.subjects,
            settings.trace_facts,
            later=gather,
            export=export.tell if export is not None else None,
            ratio=trace_ratio(),
        )
        self.attempts = AttemptWatch(self.traces.began, monotonic=ambient.monotonic, later=loop.call_later)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.suspects = asyncio.Semaphore(1)
        """Held by the one agent that handles an input that may kill this process (docs/architecture.md#poison)."""
        self.looking_back = asyncio.Semaphore(LOOKING_BACK)
        """Bounds how many agents are told of whose former owners left something untold (owner/predecessors.py)."""
        self.awake = 0
        """Agents that are loaded now."""

    @property
    def crowded(self) -> bool:
        """Whether too many agents are loaded."""
        return self.awake > self.settings.awake

    def rest_s(self) -> float:
        """How long an idle agent waits until it rests, in seconds."""
        return min(CROWDED_REST_S, self.settings.rest_s) if self.crowded else self.settings.rest_s

    def patience(self) -> float:
        """How long an agent that rests stays loaded, in seconds."""
        return 0.0 if self.crowded else self.settings.passivate_s

    def _report_foreign(self, agent: str, count: int, newest: int) -> None:
        """Tell of foreign messages in a journal: once in a while, since their sender decides how many there are."""
        now = self.monotonic()
        if now - self._reported.get(agent, -FOREIGN_REPORT_S) < FOREIGN_REPORT_S:
            return
        if len(self._reported) >= MOST_REPORTED:
            self._reported.clear()
        self._reported[agent] = now
        log.warning(
            "a journal holds messages that are not the mesh's: they are passed over",
            extra={"agent": agent, "count": count, "seq": newest},
        )
        self.events.emit(agent, "foreign_message", 0, {"count": count, "seq": newest})

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a short piece of work in a task that `close` awaits. Returns the task."""
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        else:
            self._finished(task)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a piece of work failed", exc_info=task.exception())

    async def close(self) -> None:
        """End what was spawned."""
        self.run_queue.close()
        self.ends.close()
        await self.formats.close()
        running = set(self._tasks)
        while running and await cancel_and_wait(*running, within_s=5.0):
            running = self._tasks - running  # spawned by what was ending
        self.events.publish()
        self.traces.publish()

    def token(self) -> str:
        """A random id of one subject token, which no stranger can guess. Only for the loop's own thread."""
        if not self._ids:
            # Each call to the system for randomness lets other threads run first, and every record needs an id.
            many = self.random_token(8 * IDS)
            self._ids = [many[at : at + 16] for at in range(0, 16 * IDS, 16)]
        return self._ids.pop()
