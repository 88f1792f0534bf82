"""Sleeping agents: who never gets mail sleeps too, and whatever comes wakes them."""

from __future__ import annotations

from agentmesh.subjects import Subjects
from agentmesh_node.host.node import Node
from live.mesh import PATIENCE_S, local_mesh
from support import Server, eventually, run

LONG_S = 90


async def asleep(node: Node, agents: int) -> None:
    """Wait until the node has so many agents, and none is loaded."""
    await eventually(lambda: node.services.awake == 0 and len(node.catalog.agents) == agents, PATIENCE_S, "everybody asleep")


def test_an_agent_that_never_gets_mail_sleeps_and_wakes_for_prompts_events_and_requests(
    server: Server, subjects: Subjects
) -> None:
    async def scenario() -> None:
        async with local_mesh(server, subjects, "n1", rest_s=0.1, passivate_s=0.3) as mesh:
            node = mesh.nodes["n1"]
            await mesh.client.start_agent("a", kind="Recorder")
            await asleep(node, 1)
            assert (await mesh.client.status("a")).state == "idle"
            await asleep(node, 1)
            await mesh.client.notify("a", "event")
            await mesh.saw("event_received", "a")
            await asleep(node, 1)
            assert (await mesh.client.ask("a", "prompt")).text == "prompt"
            await asleep(node, 1)
            state = (await mesh.client.status("a", True)).agent_state
            assert (state["prompts"], state["events"]) == (["prompt"], ["event"])

    run(scenario(), LONG_S)


def test_when_too_many_are_awake_idle_ones_sleep_at_once(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with local_mesh(server, subjects, "n1", awake=3) as mesh:
            for number in range(12):
                await mesh.client.start_agent(f"a{number}", kind="Recorder")
            await eventually(lambda: mesh.nodes["n1"].services.awake <= 3, PATIENCE_S, "most of them asleep")
            for number in range(12):
                assert (await mesh.client.ask(f"a{number}", "there?")).text == "there?"

    run(scenario(), LONG_S)


def test_sleeping_agents_stay_asleep_when_another_node_takes_them(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with local_mesh(server, subjects, "n1", rest_s=0.1, passivate_s=0.3) as mesh:
            for number in range(20):
                await mesh.client.start_agent(f"a{number}", kind="Recorder")
            await asleep(mesh.nodes["n1"], 20)
            await mesh.told()
            activations = len(mesh.seen("activated"))
            other = await mesh.node("n2", rest_s=0.1, passivate_s=0.3)
            await mesh.nodes["n1"].drain()
            await mesh.nodes["n1"].close()
            await asleep(other, 20)
            await mesh.told()
            assert len(mesh.seen("activated")) == activations
            assert (await mesh.client.ask("a7", "there?")).node == "n2"

    run(scenario(), LONG_S)
