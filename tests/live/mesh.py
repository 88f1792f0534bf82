"""Whole meshes for tests: in this process and on this loop, or as processes of their own that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

import msgspec

import agentmesh_client
import roled
from agentmesh.agent import Agent, agents_in
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.read import read_all
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message, Transport
from agentmesh.records import Record, decode_record
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome, decode_outcome
from agentmesh_client import Mesh
from agentmesh_node.host.node import Node
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.settings import NodeSettings
from agentmesh_node.supervisor.supervisor import Supervisor
from live import agents as live_agents
from preloaded import AVAILABLE, ForkedProcess, Forker
from support import eventually

AGENTS = Path(live_agents.__file__)
PATIENCE_S = 150.0
"""How long anything may take on a machine that does other things too."""


class Addressed(Protocol):
    """A server, or several of them."""

    @property
    def url(self) -> str:
        """Addresses for clients, joined by commas."""


def kinds(module: ModuleType = live_agents) -> dict[str, type[Agent[Any]]]:
    """The kinds that a module defines."""
    return agents_in(vars(module))


class Observer:
    """What a plain client sees of a mesh: stored messages, records, lifecycle events."""

    def __init__(self, transport: NatsTransport, subjects: Subjects) -> None:
        self.transport = transport
        self.subjects = subjects
        self.registry = Registry(transport, subjects)
        self.events: list[dict[str, Any]] = []

    async def listen(self) -> None:
        """Gather lifecycle events in `events`."""
        await self.transport.subscribe(self.subjects.event_all(), self._on_event)
        await self.transport.flush()

    def _on_event(self, message: Message) -> None:
        self.events.append(msgspec.json.decode(message.data))

    def seen(self, kind: str, agent: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """The events of that kind, agent and fields so far."""
        wanted = {"kind": kind, **({"agent": agent} if agent else {}), **fields}
        return [event for event in self.events if wanted.items() <= event.items()]

    def seen_all(self, agent: str) -> list[dict[str, Any]]:
        """What owners have said of the agent so far; supervisors speak of it too, but name no turn."""
        return [event for event in self.events if event.get("agent") == agent and "turn" in event]

    async def saw(self, kind: str, agent: str | None = None, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait for the `count`-th such event."""
        await eventually(lambda: len(self.seen(kind, agent, **fields)) >= count, PATIENCE_S, f"{kind} of {agent}, {fields}")
        return self.seen(kind, agent, **fields)[count - 1]

    async def records(self, agent: str) -> list[Record]:
        """The agent's journal, oldest first."""
        found = await read_all(self.transport, self.subjects.stream("journal"), self.subjects.journal(agent))
        return [decode_record(message.data) for message in found]

    async def results(self, agent: str, count: int = 0) -> list[Outcome]:
        """All stored outcomes of an agent's requests, by age; `count` of them are waited for, since a caller is told first."""

        async def stored() -> list[Outcome] | None:
            found = await read_all(self.transport, self.subjects.stream("result"), self.subjects.result(agent, "*"))
            return [decode_outcome(message.data) for message in found] if len(found) >= count else None

        while (found := await stored()) is None:
            await eventually(stored, PATIENCE_S, f"{count} outcomes of {agent}")
        return found


class LocalMesh(Observer):
    """A mesh on one event loop. Nothing runs in it but what a test starts."""

    def __init__(self, server: Addressed, transport: NatsTransport, subjects: Subjects, stack: contextlib.AsyncExitStack) -> None:
        super().__init__(transport, subjects)
        self.server = server
        self._stack = stack
        self.nodes: dict[str, Node] = {}
        self.client: Mesh

    async def connect(self) -> Mesh:
        """Another client."""
        return await self._stack.enter_async_context(agentmesh_client.connect(self._url("operator"), root=self.subjects.root))

    async def supervisor(self, own_id: str = "s1") -> Supervisor:
        """Start a supervisor."""
        transport = await self._transport(own_id, "supervisor")
        made = Supervisor(transport, self.subjects, own_id, liveness=LivenessThread(self._url("supervisor")))
        self._stack.push_async_callback(made.close)
        await made.start()
        return made

    async def node(
        self,
        own_id: str = "n1",
        *,
        serves: Mapping[str, type[Agent[Any]]] | None = None,
        wrap: Callable[[NatsTransport], Transport] = lambda transport: transport,
        **settings: Any,
    ) -> Node:
        """Start a node; `wrap` may put something between it and its connection."""
        transport = await self._transport(own_id, "node")
        made = Node(
            wrap(transport),
            self._url("node"),
            NodeSettings(node_id=own_id, agents=dict(kinds() if serves is None else serves), root=self.subjects.root, **settings),
        )
        self._stack.push_async_callback(made.close)
        await made.start()
        self.nodes[own_id] = made
        return made

    async def told(self) -> None:
        """Return when all facts that this mesh's nodes know of have arrived: they gather them for a moment."""
        for node in self.nodes.values():
            node.services.events.publish()
            await node.services.transport.flush()
        await self.transport.flush()

    def _url(self, role: str) -> str:
        return roled.logged_in(self.server.url, role, self.subjects.root)

    async def _transport(self, name: str, role: str) -> NatsTransport:
        transport = await connect(self._url(role), name=name)
        self._stack.push_async_callback(transport.close)
        return transport


async def set_up(server: Addressed, subjects: Subjects, **settings: Any) -> None:
    """What `mesh setup` does."""
    transport = await connect(roled.logged_in(server.url, "setup", subjects.root), name="setup")
    try:
        await ensure(transport, subjects, **settings)
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def local_mesh(server: Addressed, subjects: Subjects, *nodes: str, **settings: Any) -> AsyncIterator[LocalMesh]:
    """A supervisor, the nodes named (n1 if none is), and a client, all on this loop."""
    async with contextlib.AsyncExitStack() as stack:
        transport = await connect(server.url, name="observer")
        stack.push_async_callback(transport.close)
        own = ("results_age_s", "results_bytes", "trace_age_s", "trace_bytes")
        limits = {key: settings[key] for key in ("mailbox_limit", *own) if key in settings}
        await set_up(server, subjects, **limits)
        settings = {key: value for key, value in settings.items() if key not in own}
        mesh = LocalMesh(server, transport, subjects, stack)
        await mesh.listen()
        await mesh.supervisor()
        for own_id in nodes or ("n1",):
            await mesh.node(own_id, **settings)
        mesh.client = await mesh.connect()
        yield mesh


class Host:
    """One hosting process, `python -m agentmesh_node VERB ...`. What it says goes to a file."""

    def __init__(self, own_id: str, log: Path) -> None:
        self.id = own_id
        self._log = log
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None

    async def start(
        self, *options: str, before: Sequence[str] | None = None, env: Mapping[str, str], modules: Sequence[str] = ()
    ) -> Self:
        """Start it, and return when it says that it is ready. `before` is another program than `-m agentmesh_node`; `modules`
        are those that it would import as it runs, which are heavy."""
        process = self._process = self._spawn(before, options, env, modules)
        await eventually(
            lambda: f"{self.id} ready" in self.log or process.poll() is not None, PATIENCE_S, f"the ready line of {self.id}"
        )
        assert process.poll() is None, f"{self.id} ended at once:\n{self.log}"
        return self

    def _spawn(
        self, before: Sequence[str] | None, options: Sequence[str], env: Mapping[str, str], modules: Sequence[str]
    ) -> subprocess.Popen[bytes] | ForkedProcess:
        with self._log.open("wb") as log:
            if before is None and AVAILABLE:
                return Forker.mine().start(options, env, stdout=log, modules=modules)
            return subprocess.Popen(
                [sys.executable, *(before or ("-m", "agentmesh_node")), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=dict(env),
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    async def kill(self) -> None:
        """SIGKILL, and see it gone."""
        self._signal(signal.SIGKILL)
        await self.ended()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._signal(signal.SIGCONT)

    async def terminate(self) -> int:
        """SIGTERM; its exit code."""
        self._signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        process = self._process
        assert process is not None
        await eventually(lambda: process.poll() is not None, PATIENCE_S, f"the end of {self.id}")
        return process.wait()

    async def close(self) -> None:
        """Be sure that it is gone."""
        if self._process is not None and self._process.poll() is None:
            await self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class ProcessMesh(Observer):
    """A mesh of processes on one server; only the client runs here."""

    def __init__(
        self,
        server: Addressed,
        transport: NatsTransport,
        subjects: Subjects,
        logs: Path,
        env: Mapping[str, str],
        *,
        modules: Sequence[str],
    ) -> None:
        super().__init__(transport, subjects)
        self.server = server
        self.hosts: dict[str, Host] = {}
        """By id; of several processes with one id the last."""
        self._all: list[Host] = []
        self._logs = logs
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "OTEL_"))}
        self._env |= {"PYTHONPATH": str(AGENTS.parents[1]), **env}
        self.client: Mesh
        self._modules = modules

    async def start(self, verb: str, own_id: str, *options: str, before: Sequence[str] | None = None, log: str = "") -> Host:
        """Start a process of that id, the second or third time perhaps."""
        host = self.hosts[own_id] = Host(own_id, self._logs / f"{log or own_id}.log")
        self._all.append(host)
        url = roled.logged_in(self.server.url, verb, self.subjects.root)
        where = ("--id", own_id, "--nats", url, "--root", self.subjects.root)
        return await host.start(verb, *where, *options, before=before, env=self._env, modules=self._modules)

    async def node(self, own_id: str, *options: str, before: Sequence[str] | None = None, log: str = "") -> Host:
        """Start a node that serves the kinds of `live/agents.py`."""
        return await self.start("node", own_id, "--agents", str(AGENTS), *options, before=before, log=log)

    async def host_of(self, agent: str) -> Host:
        """The process that the registry names as the agent's owner."""
        where = await self.client.whereis(agent)
        assert where is not None, f"{agent} has no node"
        return self.hosts[where]

    def complain(self) -> None:
        """Show what the processes have said: something went wrong."""
        for log in sorted(self._logs.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)

    async def close(self) -> None:
        for host in self._all:
            await host.close()


@contextlib.asynccontextmanager
async def process_mesh(
    server: Addressed,
    subjects: Subjects,
    logs: Path,
    *nodes: str,
    env: Mapping[str, str] | None = None,
    modules: Sequence[str] = (),
) -> AsyncIterator[ProcessMesh]:
    """A supervisor and the nodes named, each a process, and a client here.

    `modules` are heavy ones that the nodes will import: they are imported once for all nodes of this test process.
    """
    transport = await connect(server.url, name="observer")
    mesh = ProcessMesh(server, transport, subjects, logs, env or {}, modules=modules)
    try:
        await set_up(server, subjects)
        await mesh.listen()
        await asyncio.gather(mesh.start("supervisor", "s1"), *(mesh.node(own_id) for own_id in nodes))
        url = roled.logged_in(server.url, "operator", subjects.root)
        async with agentmesh_client.connect(url, root=subjects.root) as client:
            mesh.client = client
            yield mesh
    except BaseException:
        mesh.complain()
        raise
    finally:
        await mesh.close()
        await transport.close()
