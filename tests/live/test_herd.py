"""A node that takes over many agents at once, with a caller waiting for each of them."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.edge.jetstream import read_all
from agentmesh.subjects import Subjects
from agentmesh.wire import ControlRequest, encode
from agentmesh_node.host import Node
from agentmesh_node.owner import Owner
from agentmesh_node.resident import Resident
from live.mesh import PATIENCE_S, local_mesh
from support import Server, eventually, run

AGENTS = 150
BOUND = 5


def test_activations_are_bounded_and_the_heartbeat_goes_on(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: set[str] = set()
    most = 0
    bring_up = Node._own

    async def counted(self: Node, resident: Resident) -> Owner:
        nonlocal most
        under_way.add(resident.name)
        most = max(most, len(under_way))
        try:
            return await bring_up(self, resident)
        finally:
            under_way.discard(resident.name)

    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            names = [f"w{number}" for number in range(AGENTS)]
            await asyncio.gather(*(mesh.client.start_agent(name, kind="Recorder", timeout=PATIENCE_S) for name in names))
            await mesh.nodes["n1"].close()
            asks = [asyncio.create_task(mesh.client.ask(name, "hello", timeout=PATIENCE_S)) for name in names]

            async def all_stored() -> bool:
                stored = await read_all(mesh.transport, mesh.subjects.stream("mail"), mesh.subjects.inbox(">"))
                return len(stored) == AGENTS

            await eventually(all_stored, PATIENCE_S, "a prompt for each")
            monkeypatch.setattr(Node, "_own", counted)
            await mesh.node("n2", activations=BOUND)
            pings = 0
            while not all(ask.done() for ask in asks):
                await mesh.transport.request(mesh.subjects.node("n2"), encode(ControlRequest(op="ping")), timeout=PATIENCE_S)
                pings += 1
            assert [(await ask).node for ask in asks] == ["n2"] * AGENTS
            assert 1 < most <= BOUND
            assert pings
            assert not mesh.seen("node_gone", node="n2")

    run(main(), 110)
