"""One node's services on the in-memory NATS server, under virtual time: what a part of a node stands on in its unit test.

    def test_something() -> None:
        async def story(node: SimulatedNode) -> None:
            part = Part(node.services)
            ...
            await node.until(lambda: part.done, "the part is done")

        simulate(story)

Nothing here waits for real, and nothing is real but the part under test and what it is made of: no agents, no heartbeat, no
supervisor. `node.others` is a connection of somebody else, whom the node's troubles do not reach.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agentmesh.edge.publish import store
from agentmesh.edge.registry import Registry, View, decode_spec
from agentmesh.edge.transport import Transport
from agentmesh.records import Ledger, Record, RecordKind, encode_record
from agentmesh.registry_values import Spec
from agentmesh.subjects import StreamRole, spec_key
from agentmesh.wire import encode
from agentmesh_node.services import Services
from agentmesh_node.settings import NodeSettings
from sim.loop import SimLoop, run_sim
from sim.net import SimTransport
from sim.server import Faults
from sim.store import Stored, Stream
from sim.world import World
from support import Faulty

NODE = "n1"
PATIENCE_S = 60.0
"""Virtual seconds within which a condition has to come true."""
_POLL_S = 0.005


class ServerFaults(Faults):
    """What goes wrong in the server, as the test says."""

    def __init__(self) -> None:
        self.leaderless: set[str] = set()
        """Names of streams that answer nothing and store nothing."""
        self.lag_s = 0.0
        """How far the replicas are behind that are read."""
        self.lost: set[str] = set()
        """Subjects whose messages reach no subscriber: copies that are lost on their way."""

    def refuse(self, stream: str) -> bool:
        return stream in self.leaderless

    def lag(self) -> float:
        return self.lag_s

    def copies(self, subject: str) -> int:
        return 0 if subject in self.lost else 1


class SimulatedNode:
    """What the parts of node `NODE` are given, and a hand on the server behind it."""

    def __init__(self, loop: SimLoop, seed: str) -> None:
        self.loop = loop
        self.world = World(loop, seed)
        self.net = self.world.net
        self.server = self.net.server
        self.faults = self.server.faults = ServerFaults()
        self.subjects = self.world.subjects
        self.logs: list[logging.LogRecord] = []
        """All that the mesh has logged."""
        self._line = SimTransport(self.net, self.world.process(NODE), NODE)
        self.transport = Faulty(self._line)
        """The node's connection: what it asked is in `requests`, and a request can be made to fail (`inject`)."""
        self.others: Transport = SimTransport(self.net, self.world.process("others"), "others")
        self.registry = Registry(self.transport, self.subjects)
        self.specs = View(self.registry, ["agents.>"], resync_s=1e6)  # no reads but those of the part
        self.services: Services

    async def open(self, settings: dict[str, Any]) -> None:
        await self.world.prepare()
        for transport in (self._line, self.others):
            assert isinstance(transport, SimTransport)
            await transport.open()
        await self.specs.start()
        self.services = Services(
            transport=self.transport,
            settings=NodeSettings(**{"node_id": NODE, "agents": {}, **settings}),
            registry=self.registry,
            specs=self.specs,
            boot="boot-1",
            epoch=1,
            ambient=self.world.ambient(NODE),
        )

    async def close(self) -> None:
        await self.services.close()
        await self.specs.close()
        await self.transport.close()
        await self.others.close()

    # --- time and conditions ------------------------------------------------------------------------------------------
    async def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
        """Let virtual time pass until `condition()` holds.

        Raises:
            AssertionError: it does not within `seconds`.
        """
        end = self.loop.time() + seconds
        while not condition():
            assert self.loop.time() < end, f"{what}: not within {seconds} s"
            await self.pass_time(_POLL_S)

    async def pass_time(self, seconds: float) -> None:
        """Let so much virtual time pass: for what must not happen meanwhile."""
        done = self.loop.create_future()
        self.loop.call_later(seconds, done.set_result, None)
        await done

    def logged(self, text: str, level: int = logging.DEBUG) -> list[logging.LogRecord]:
        """What was logged with `text` in it, at `level` or above."""
        return [record for record in self.logs if text in record.getMessage() and record.levelno >= level]

    # --- the server -------------------------------------------------------------------------------------------------
    async def stop_server(self) -> None:
        """End the server; returns when the node has noticed. Its store stays."""
        self.net.stop_server()
        await self.until(lambda: not self.transport.connected, "the connection ends")

    async def start_server(self) -> None:
        """Have the server back; returns when the node and the others are connected again."""
        self.net.start_server()
        await self.until(lambda: self.transport.connected and self.others.connected, "the connections are back")

    # --- what others do -----------------------------------------------------------------------------------------------
    def stream(self, role: StreamRole) -> Stream:
        """The server's own stream."""
        return self.server.streams[self.subjects.stream(role)]

    def stored(self, subject: str) -> list[Stored]:
        """What the server holds on `subject`, in whichever stream that is."""
        return next((s.view(subject, 0, 0.0) for s in self.server.streams.values() if s.takes(subject)), [])

    async def mail(
        self,
        agent: str,
        data: bytes = b'{"v":1,"prompt":"hello"}',
        *,
        lane: str = "inbox",
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Somebody's mail in a lane of `agent`; its sequence."""
        return (await store(self.others, self.subjects.lane(lane, agent), data, msg_id=msg_id, headers=headers)).seq

    async def record(self, agent: str, kind: RecordKind = "turn", positions: dict[str, int] | None = None) -> int:
        """A record in the journal of `agent`; its sequence."""
        body = Record(
            kind=kind,
            id=kind,
            at=1.0,
            incarnation="life",
            epoch=1,
            generation=1,
            node=NODE,
            boot="b",
            positions=positions,
            snapshot=Ledger(incarnation="life") if kind == "activated" else None,  # as the first one of a life is
        )
        return (await store(self.others, self.subjects.journal(agent), encode_record(body))).seq

    async def spec(self, agent: str, **fields: Any) -> Spec:
        """Write the spec of `agent` anew (`kind="Doll"`, `incarnation="life"`, unless given), and let the node see it."""
        spec = Spec(**{"kind": "Doll", "incarnation": "life", **fields})
        await self.write_spec(agent, encode(spec))
        return spec

    async def write_spec(self, agent: str, value: bytes) -> int:
        """Write the key of `agent`, whatever it has; its revision. The node sees it by then, unless its copies are lost."""
        subject = self.subjects.registry_key(spec_key(agent))
        revision = (await store(self.others, subject, value)).seq
        if self.subjects.registry_change(spec_key(agent)) in self.faults.lost:
            return revision

        def seen() -> bool:
            entry = self.specs.get(spec_key(agent))
            return entry is not None and entry.revision >= revision

        await self.until(seen, f"the node sees the spec of {agent}")
        return revision

    async def read_spec(self, agent: str) -> Spec | None:
        """The spec of `agent` as the registry has it."""
        entry = await Registry(self.others, self.subjects).get(spec_key(agent))
        return None if entry is None else decode_spec(entry)


def simulate(story: Callable[[SimulatedNode], Awaitable[None]], **settings: Any) -> None:
    """Let `story` happen on a loop of its own. `settings` are fields of `NodeSettings`.

    Raises:
        AssertionError: of the story; or a callback, a forgotten task or a piece of spawned work has failed.
    """

    async def main(loop: SimLoop) -> None:
        node = SimulatedNode(loop, story.__name__)
        handler = _Collect(node.logs)
        logger = logging.getLogger("agentmesh")
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            await node.open(settings)
            await story(node)
            await node.close()
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
        gc.collect()  # a task that has failed and that nobody has asked complains when it is collected
        assert loop.defects == [], loop.defects
        assert [record.getMessage() for record in node.logs if record.exc_info] == []

    gc.freeze()  # what is there already need not be looked through at the end: that would be most of the time
    try:
        run_sim(main)
    finally:
        gc.unfreeze()


class _Collect(logging.Handler):
    def __init__(self, into: list[logging.LogRecord]) -> None:
        super().__init__()
        self._into = into

    def emit(self, record: logging.LogRecord) -> None:
        self._into.append(record)
