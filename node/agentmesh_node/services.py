"""What a node's owners share: connections, the registry's live copy, kinds and backends, time and randomness."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import tempfile
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from agentmesh.agent import Agent, overridden
from agentmesh.backend import Backend, Room
from agentmesh.edge.blobs import Blobs
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.journal import Journal
from agentmesh.edge.registry import Registry, View
from agentmesh.edge.streams import DUPLICATE_WINDOW_S
from agentmesh.edge.transport import Transport
from agentmesh.errors import BackendError
from agentmesh.subjects import Subjects
from agentmesh.turn.values import Config
from agentmesh.wire import Restart, Spec
from agentmesh_node.run_queue import RunQueue
from agentmesh_node.settings import NodeSettings
from agentmesh_node.store_loss import StreamEnds
from agentmesh_node.telemetry.events import GATHER_S, Events
from agentmesh_node.telemetry.metrics import TurnMetrics
from agentmesh_node.telemetry.tracing import Tracing
from agentmesh_node.turns.budget_meter import prices_of, spec_limits
from agentmesh_node.turns.runner import Ports, Runner
from agentmesh_node.user_code.callback_threads import CallbackThreads

log = logging.getLogger("agentmesh.node")

GROUP = "agentmesh.backends"
DEFAULT_BACKEND = "scripted"
CLOCKS_DIFFER_S = 60.0
"""What the clocks of nodes may differ by."""
IDS = 256
"""Random ids that are made at a time."""
CROWDED_REST_S = 0.2
"""Idle time after which an agent rests, and sleeps, on a node that has too many awake."""


class Services:
    """Shared by the owners of one node. Clock and randomness are here, and nowhere else in an owner."""

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
        duplicate_window_s: float = DUPLICATE_WINDOW_S,
    ) -> None:
        self.now = ambient.now
        self.monotonic = ambient.monotonic
        self._random = ambient.token
        self._ids: list[str] = []
        self.transport = transport
        self.settings = settings
        self.subjects = Subjects(settings.root)
        self.registry = registry
        self.specs = specs
        self.journal = Journal(transport, self.subjects, blobs=Blobs(transport, self.subjects, ambient=ambient))
        self.ends = StreamEnds(transport, self.subjects)
        self.boot = boot
        self.epoch = epoch
        self.duplicate_window_s = duplicate_window_s
        """How long the server drops repetitions of a message id, as the mail's stream is configured."""
        self.remember_s = duplicate_window_s + CLOCKS_DIFFER_S
        """How long an agent knows the ids of mail that was purged."""
        self.rounds = RunQueue(transport)
        self.tracing = Tracing(settings.node_id)
        self.events = Events(
            transport,
            self.subjects,
            settings.node_id,
            self.now,
            content=settings.content,
            handlers=settings.handlers,
            later=partial(asyncio.get_running_loop().call_later, GATHER_S),
        )
        self._backends: dict[str, Any] = {}
        self._files = files_of(settings)
        self.prices = prices_of()
        self._counters = TurnMetrics()
        self._threads = CallbackThreads()
        self._places: dict[str, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.suspects = asyncio.Semaphore(1)
        """Held by the one agent that handles an input which may kill this process (design 4, "Poison")."""
        self.awake = 0
        """Agents that are loaded now."""

    @property
    def crowded(self) -> bool:
        """Whether more agents are loaded than should be."""
        return self.awake > self.settings.awake

    def rest_s(self) -> float:
        """How long an idle agent waits until it rests, in seconds."""
        return min(CROWDED_REST_S, self.settings.rest_s) if self.crowded else self.settings.rest_s

    def patience(self) -> float:
        """How long an agent that rests stays loaded, in seconds."""
        return 0.0 if self.crowded else self.settings.passivate_s

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a short piece of work that is kept and, at the end, awaited."""
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        else:
            self._finished(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a piece of work failed", exc_info=task.exception())

    async def close(self) -> None:
        """End what was spawned."""
        self.rounds.close()
        self.ends.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=5.0)
        self.events.publish()

    def token(self) -> str:
        """A random id of one subject token, which no stranger can guess. Only for the loop's own thread."""
        if not self._ids:
            # Each call to the system for randomness lets another thread run first; every record needs an id.
            many = self._random(8 * IDS)
            self._ids = [many[at : at + 16] for at in range(0, 16 * IDS, 16)]
        return self._ids.pop()

    # --- an agent's parts -------------------------------------------------------------------------------------------
    def runner(self, name: str, spec: Spec) -> Runner | None:
        """What runs the agent's code; None where this node does not serve its kind."""
        cls = self.settings.agents.get(spec.kind)
        if cls is None:
            return None
        limit = self.transport.max_payload - (128 << 10)
        ports = Ports(
            now=self.now,
            monotonic=self.monotonic,
            token=lambda: self._random(8),
            limit=limit,
            emit=self.events.emit,
            prices=self.prices,
            counters=self._counters,
            threads=self._threads,
        )
        backend = self.backend_name(spec)
        place = partial(self._place, backend)

        def factory(agent: Agent[Any], options: Mapping[str, Any]) -> Backend:
            make = self._backend(backend)
            if takes_room(make):
                room = Room(name, spec.incarnation, str(self._files / name), self.settings.root, self.transport, place)
                return make(agent, options, room=room)  # type: ignore[no-any-return]
            return make(agent, options)  # type: ignore[no-any-return]

        return Runner(cls, name, factory, ports, self.tracing)

    def _place(self, backend: str) -> AbstractAsyncContextManager[Any]:
        """One of the places for this backend's child processes."""
        bound = self.settings.children
        return self._places.setdefault(backend, asyncio.Semaphore(bound)) if bound else nullcontext()

    def backend_name(self, spec: Spec) -> str:
        """The spec's backend, else the class's, else the scripted one."""
        cls = self.settings.agents.get(spec.kind)
        return spec.backend or (cls.backend if cls is not None else None) or DEFAULT_BACKEND

    def _backend(self, name: str) -> Any:
        if name not in self._backends:
            found = next(iter(entry_points(group=GROUP, name=name)), None)
            if found is None:
                raise BackendError(f"there is no backend {name!r} on this node; install the package that brings it")
            self._backends[name] = found.load()
        return self._backends[name]

    def config(self, name: str, spec: Spec, runner: Runner | None) -> Config:
        """What the turn machine must know of the agent."""
        cls: type[Agent[Any]] = self.settings.agents.get(spec.kind, Agent)
        restart = spec.restart if spec.restart != Restart() else cls.restart or spec.restart
        return Config(
            name=name,
            kind=spec.kind,
            hooks=overridden(cls) if runner is not None else frozenset(),
            watchdog_s=spec.watchdog_s or cls.watchdog_s,
            max_attempts=cls.max_attempts,
            max_takeovers=cls.max_takeovers,
            restart=restart,
            state_version=cls.state_version,
            options=spec.options,
            budget=spec_limits(name, spec.budget),
            max_payload=self.transport.max_payload,
            snapshot_records=self.settings.snapshot_records,
            remember_s=self.remember_s,
        )


def takes_room(factory: Any) -> bool:
    """Whether a backend's factory has a parameter `room`."""
    try:
        return "room" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable without a readable signature
        return False


def files_of(settings: NodeSettings) -> Path:
    """Where the node's backends keep files, absolute."""
    top = Path(settings.files).absolute() if settings.files else Path(tempfile.gettempdir()) / f"agentmesh-{os.getuid()}"
    return top / settings.root / settings.node_id


__all__ = ["NodeSettings", "Services"]
