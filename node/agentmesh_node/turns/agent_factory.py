"""Builds, for one agent, the runner of its code (class and backend), and the turn machine's configuration."""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from agentmesh.agent import Agent, overridden, plain_callbacks
from agentmesh.backend import Backend, Room
from agentmesh.errors import BackendError
from agentmesh.identity import Policy, callers_of
from agentmesh.registry_values import Restart, Spec
from agentmesh.turn.values import Config
from agentmesh_node.services import Services
from agentmesh_node.settings import ModelServer, NodeSettings
from agentmesh_node.telemetry.metrics import TurnMetrics
from agentmesh_node.tools.mcp.pool import bound_children
from agentmesh_node.turns.budget_meter import prices_of, spec_limits
from agentmesh_node.turns.runner import Ports, Runner
from agentmesh_node.user_code.callback_threads import CallbackThreads
from agentmesh_node.user_code.policies import BoundedPolicy

BACKENDS_GROUP = "agentmesh.backends"
"""The entry points under which packages offer backends."""
DEFAULT_BACKEND = "scripted"


class AgentFactory:
    """Builds runners and configurations for the agents of one node."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._files = files_of(services.settings)
        self._prices = prices_of()
        self.metrics = TurnMetrics(names=services.settings.metrics_agents)
        """What is measured of the turns of this node."""
        self._threads = CallbackThreads()
        self._policies: WeakKeyDictionary[type[Agent[Any]], BoundedPolicy] = WeakKeyDictionary()
        self._process_slots: dict[str, asyncio.Semaphore] = {}
        bound_children(services.settings.mcp_children)

    def runner(self, name: str, spec: Spec) -> Runner | None:
        """The runner of the agent's code; None if this node does not serve its kind."""
        s = self._s
        cls = s.settings.agents.get(spec.kind)
        if cls is None:
            return None
        limit = s.transport.max_payload - (128 << 10)
        ports = Ports(
            now=s.timers_now,
            monotonic=s.monotonic,
            token=lambda: s.random_token(8),
            limit=limit,
            emit=s.events.emit,
            prices=self._prices,
            metrics=self.metrics,
            threads=self._threads,
            kind=spec.kind,
            clock=s.now,
        )
        backend = self.backend_name(spec)
        own: Any = cls.backend if isinstance(cls.backend, type) and spec.backend is None else None
        slot = partial(self._process_slot, backend)

        def factory(agent: Agent[Any], options: Mapping[str, Any]) -> Backend:
            served = None if own or s.settings.model is None else _on_server(s.settings.model, backend)
            if served is not None:
                return served(agent, options)
            make = own or backend_class(backend)
            if takes_room(make):
                room = Room(name, spec.incarnation, str(self._files / name), s.settings.root, s.transport, slot, self._prices)
                return make(agent, options, room=room)  # type: ignore[no-any-return]
            return make(agent, options)  # type: ignore[no-any-return]

        return Runner(cls, name, factory, ports, s.tracing)

    def _process_slot(self, backend: str) -> AbstractAsyncContextManager[Any]:
        """One of the slots for this backend's child processes."""
        bound = self._s.settings.children
        return self._process_slots.setdefault(backend, asyncio.Semaphore(bound)) if bound else nullcontext()

    def backend_name(self, spec: Spec) -> str:
        """The spec's backend, else the class's, else the scripted one. A class of its own has its own name."""
        cls = self._s.settings.agents.get(spec.kind)
        own = cls.backend if cls is not None else None
        return spec.backend or (own.__name__ if isinstance(own, type) else own) or DEFAULT_BACKEND

    def config(self, name: str, spec: Spec, runner: Runner | None) -> Config:
        """The turn machine's configuration for the agent."""
        s = self._s
        cls: type[Agent[Any]] = s.settings.agents.get(spec.kind, Agent)
        restart = spec.restart if spec.restart != Restart() else cls.restart or spec.restart
        return Config(
            name=name,
            kind=spec.kind,
            hooks=overridden(cls) if runner is not None else frozenset(),
            plain=plain_callbacks(cls) if runner is not None else frozenset(),
            watchdog_s=spec.watchdog_s or cls.watchdog_s,
            defer_s=cls.defer_s,
            max_attempts=cls.max_attempts,
            max_takeovers=cls.max_takeovers,
            restart=restart,
            state_version=cls.state_version,
            options=spec.options,
            backend_options=spec.backend_options or {},
            budget=spec_limits(name, spec.budget),
            max_payload=s.transport.max_payload,
            snapshot_records=s.settings.snapshot_records,
            remember_s=s.remember_s,
            code=s.settings.code.get(spec.kind, ""),
            traced=s.traces.traced,
            trace_ratio=s.traces.ratio,
            callers=self._policy(cls),
        )

    def _policy(self, cls: type[Agent[Any]]) -> tuple[str, ...] | Policy | None:
        """What a class says of its callers; a function with its bound, which all agents of the class share."""
        declared = callers_of(cls.callers, cls.__name__)
        if not callable(declared):
            return declared
        return self._policies.setdefault(cls, BoundedPolicy(declared, cls.__name__))


def _on_server(server: ModelServer, backend: str) -> Callable[[Agent[Any], Mapping[str, Any]], Backend] | None:
    from agentmesh_node.backends.model_server.agents import on_server  # noqa: PLC0415 - few nodes have one

    return on_server(server, backend)


@cache
def backend_class(name: str) -> Any:
    """What makes backends of that name. To look through all installed packages takes a while, so what is found is remembered.

    Raises:
        BackendError: no installed package offers it.
    """
    found = next(iter(entry_points(group=BACKENDS_GROUP, name=name)), None)
    if found is None:
        known = ", ".join(sorted({entry.name for entry in entry_points(group=BACKENDS_GROUP)}))
        raise BackendError(
            f"there is no backend {name!r} on this node; there are: {known}; take one of them, or install the package that has it"
        )
    return found.load()


@cache
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
