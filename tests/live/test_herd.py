"""Much at once: a node that takes over many agents, each with a caller waiting; a burst of events; agents that never rest."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentmesh import Agent, Idle, Init
from agentmesh.control_values import ControlRequest
from agentmesh.edge.read import read_all
from agentmesh.errors import MailboxFull
from agentmesh.subjects import Subjects
from agentmesh.wire import encode
from agentmesh_node.owner.owner import Owner
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from support import Server, eventually, run

AGENTS = 150
BOUND = 5


def test_activations_are_bounded_and_the_heartbeat_goes_on(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: set[str] = set()
    most = 0
    activate = Owner.activate

    async def counted(self: Owner) -> None:
        nonlocal most
        under_way.add(self.name)
        most = max(most, len(under_way))
        try:
            await activate(self)
        finally:
            under_way.discard(self.name)

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
            monkeypatch.setattr(Owner, "activate", counted)
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


class Pong(Agent[list[int]]):
    """Sends what it gets back to its peer, one less, down to nothing; keeps what it got."""

    backend = "scripted"

    async def init_agent(self, options: dict[str, Any]) -> Init[list[int]]:
        return Init([])

    async def handle_event(self, event: Any, state: list[int]) -> Idle[list[int]]:
        if event["left"] > 0 and "peer" in event:
            self.notify(event["peer"], {"left": event["left"] - 1, "peer": self.name})
        return Idle([*state, event["left"]])


async def got(mesh: LocalMesh, agent: str) -> list[int]:
    found: list[int] = (await mesh.client.status(agent, content=True, timeout=PATIENCE_S)).agent_state
    return found


def test_two_agents_that_answer_each_other_at_once_lose_and_double_nothing(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Pong": Pong}) as mesh:
            for name in ("ping", "pong"):
                await mesh.client.start_agent(name, kind="Pong", timeout=PATIENCE_S)
            await mesh.client.notify("ping", {"left": 500, "peer": "pong"})

            async def over() -> bool:
                return (await got(mesh, "ping"))[-1:] == [0]

            await eventually(over, PATIENCE_S, "the last of 500 hops")
            assert await got(mesh, "ping") == list(range(500, -1, -2))
            assert await got(mesh, "pong") == list(range(499, 0, -2))

    run(main(), 110)


@pytest.mark.case(208)
def test_of_a_burst_what_is_accepted_is_handled_in_order_once_and_the_rest_is_refused(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, serves={"Pong": Pong}, mailbox_limit=100) as mesh:
            await mesh.client.start_agent("pong", kind="Pong", timeout=PATIENCE_S)

            async def send(number: int) -> int | None:
                try:
                    await mesh.client.notify("pong", {"left": number})
                except MailboxFull:
                    return None
                return number

            await mesh.nodes["n1"].close()  # so that nobody makes room meanwhile
            sent = await asyncio.gather(*(send(number) for number in range(1000)))
            accepted = [number for number in sent if number is not None]
            assert len(accepted) == 100
            await mesh.node("n2", serves={"Pong": Pong}, mailbox_limit=100)

            async def handled() -> bool:
                return len(await got(mesh, "pong")) >= len(accepted)

            await eventually(handled, PATIENCE_S, "all that was accepted")
            assert await got(mesh, "pong") == accepted

            async def room() -> bool:
                return await send(7) is not None

            await eventually(room, PATIENCE_S, "room for more: what was handled is purged in groups")

    run(main(), 110)
