"""What tests of supervisors share: a mesh whose nodes are only a lease and an answer to pings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from agentmesh.control_values import ControlRequest, NodeStats
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.registry import Registry, View, decode_spec
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message, Subscription
from agentmesh.registry_values import AgentStatus, NodeLease, Spec
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, node_key, placement_key, spec_key
from agentmesh.wire import encode
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.supervisor import Supervisor
from support import Server, eventually

FOREVER = 3600
"""TTL of a lease that does not end within a test."""


class RecordingLivenessThread(LivenessThread):
    """A `LivenessThread` whose process is not ended, but told so."""

    def __init__(self, servers: str) -> None:
        super().__init__(servers)
        self.ended = threading.Event()

    def end_process(self) -> None:
        self.ended.set()


class FakeNode:
    """What a supervisor sees of a node: its lease, and whether it answers."""

    def __init__(self, mesh: Mesh, name: str, transport: NatsTransport, lease: NodeLease, ttl_s: int) -> None:
        self.name = name
        self.lease = lease
        self.answers = True
        self.busy: tuple[str, ...] = ()
        self.pings = 0
        self.told = 0
        """How often it was asked who is busy."""
        self.asked: list[ControlRequest] = []
        """What it was asked to give up."""
        self._ttl = ttl_s
        self._subjects = mesh.subjects
        self._transport = transport
        self._registry = Registry(transport, mesh.subjects)
        self.revision = 0
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._transport.subscribe(self._subjects.node(self.name), self._answer)
        self.revision = await self._registry.create(node_key(self.name), encode(self.lease), ttl_s=self._ttl)

    async def renew(self, *, ttl_s: int = FOREVER, **changes: Any) -> None:
        """Write the lease again, also over one that has expired."""
        self.lease = msgspec.structs.replace(self.lease, **changes)
        key, value = node_key(self.name), encode(self.lease)
        if await self._registry.get(key) is None:
            self.revision = await self._registry.create(key, value, ttl_s=ttl_s)
        else:
            self.revision = await self._registry.update(key, value, self.revision, ttl_s=ttl_s)

    async def leave(self) -> None:
        """Go in order."""
        await self._registry.delete(node_key(self.name), self.revision)
        await self.die()

    async def die(self) -> None:
        """As kill -9: the subscription ends, the lease stays."""
        await self._transport.close()

    async def _answer(self, message: Message) -> None:
        self.pings += 1
        if self.answers:
            stats = NodeStats(node=self.name, boot=self.lease.boot, agents=0, running=0, lag_ms=0.0, draining=False)
            request = msgspec.json.decode(message.data, type=ControlRequest)
            if request.op == "release":
                self.asked.append(request)
            if request.content:
                stats = msgspec.structs.replace(stats, busy=self.busy)
                self.told += 1
            await self._transport.publish(message.reply, encode(stats))


class Mesh:
    """One mesh on the test's server: a view of its registry, and the processes that take part."""

    def __init__(self, server: Server, subjects: Subjects, stack: contextlib.AsyncExitStack) -> None:
        self.subjects = subjects
        self.url = server.url
        self.stack = stack

    async def start(self) -> None:
        self.transport = await self.connect("test")
        await ensure(self.transport, self.subjects)
        self.registry = Registry(self.transport, self.subjects)
        self.view = View(self.registry, ["agents.>", "placements.>", "nodes.*", SUPERVISOR_KEY], None)
        await self.view.start()
        self.stack.push_async_callback(self.view.close)

    async def connect(self, name: str) -> NatsTransport:
        transport = await connect(self.url, name=name)
        self.stack.push_async_callback(transport.close)
        return transport

    async def node(self, name: str, *, ttl_s: int = FOREVER, **lease: Any) -> FakeNode:
        fields = {"boot": f"boot-{name}", "kinds": ("A",)} | lease
        node = FakeNode(self, name, await self.connect(name), NodeLease(**fields), ttl_s)
        await node.start()
        return node

    async def supervisor(self, name: str, **settings: Any) -> Supervisor:
        transport = await self.connect(name)
        made = Supervisor(transport, self.subjects, name, SupervisorSettings(**settings), liveness=LivenessThread(self.url))
        self.stack.push_async_callback(made.close)
        await made.start()
        return made

    async def leading(self, name: str, **settings: Any) -> Supervisor:
        made = await self.supervisor(name, **settings)
        await eventually(lambda: made.leads, what=f"{name} leading")
        return made

    async def want(self, agent: str, *, kind: str = "A", status: AgentStatus = "wanted", **fields: Any) -> int:
        spec = Spec(kind=kind, incarnation=f"life-{agent}", status=status, **fields)
        return await self.registry.create(spec_key(agent), encode(spec))

    # --- what the registry says -----------------------------------------------------------------------------------
    def homes(self, agent: str) -> list[str]:
        return sorted(
            key.split(".", 2)[1] for key in self.view.entries if key.startswith("placements.") and key.endswith(f".{agent}")
        )

    def generation(self, node: str, agent: str) -> int:
        entry = self.view.get(placement_key(node, agent))
        return entry.revision if entry else 0

    def spec(self, agent: str) -> Spec:
        entry = self.view.get(spec_key(agent))
        assert entry is not None
        return decode_spec(entry)

    def reason(self, agent: str) -> str | None:
        reason = self.spec(agent).reason
        return reason.message if reason else None

    async def placed(self, agent: str, *nodes: str, within: float = 20) -> None:
        """Wait until exactly `nodes` hold a placement of `agent`."""
        await self.until(lambda: self.homes(agent) == sorted(nodes), within, f"{agent} on {nodes}")

    async def until(self, predicate: Callable[[], bool], within: float = 20, what: str = "the condition") -> None:
        try:
            await self.view.wait_for(predicate, within)
        except TimeoutError:
            raise AssertionError(f"{what} did not come true; the registry holds {sorted(self.view.entries)}") from None


@contextlib.asynccontextmanager
async def running(server: Server, subjects: Subjects) -> AsyncIterator[Mesh]:
    async with contextlib.AsyncExitStack() as stack:
        mesh = Mesh(server, subjects, stack)
        await mesh.start()
        yield mesh
