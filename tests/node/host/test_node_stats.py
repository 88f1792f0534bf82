"""What a node tells of itself: its first lease, and the figures that its heartbeat's thread reads."""

from __future__ import annotations

from agentmesh.agent import Agent
from agentmesh.formats import RECORD_VERSION, users_labels
from agentmesh.ownership import Claim
from agentmesh.registry_values import NodeLease, Spec
from agentmesh.wire import parse_time
from agentmesh_node.host.heartbeat import NodeFigures
from agentmesh_node.host.node_stats import MOST_BUSY, count, first_lease
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.owner.owner import Owner
from agentmesh_node.settings import NodeSettings
from agentmesh_node.turns.agent_factory import AgentFactory
from node.simulated import SimulatedNode, simulate


class Doll(Agent[int]):
    pass


def test_the_first_lease_says_what_the_process_serves() -> None:
    settings = NodeSettings(node_id="n1", agents={"Doll": Doll, "Bear": Doll}, labels={"zone": "b"}, capacity=7)
    lease = first_lease(settings, "boot", 1_800_000_000.0)
    assert (lease.boot, lease.kinds, users_labels(lease.labels), lease.capacity) == ("boot", ("Bear", "Doll"), {"zone": "b"}, 7)
    assert parse_time(lease.started) == 1_800_000_000.0 and lease.version
    assert lease.agents == 0 and not lease.draining and not lease.cordoned
    assert lease.reads == RECORD_VERSION


def test_agents_are_counted_asleep_awake_and_in_a_turn() -> None:
    async def story(node: SimulatedNode) -> None:
        factory = AgentFactory(node.services)

        def placed(name: str, *, awake: bool) -> PlacedAgent:
            agent = PlacedAgent(name, 1, "life")
            if awake:  # an owner that has not made itself the owner yet is not idle
                claim = Claim(node="n1", boot="b", epoch=1, generation=1, incarnation="life")
                spec = Spec(kind="Doll", incarnation="life")
                agent.owner = Owner(node.services, factory, name, spec, claim, on_end=lambda owner, lost: None)
            return agent

        facts = NodeFigures(NodeLease(boot="b", capacity=9))
        agents = [placed("asleep", awake=False), *(placed(f"a{number}", awake=True) for number in range(MOST_BUSY + 1))]
        count(facts, agents, 3)
        assert (facts.agents, facts.awake, facts.running) == (MOST_BUSY + 2, MOST_BUSY + 1, MOST_BUSY + 1)
        assert facts.busy == tuple(f"a{number}" for number in range(MOST_BUSY)), "no more are named"
        assert (facts.lease.agents, facts.lease.capacity, facts.dropped) == (MOST_BUSY + 2, 9, 3)
        count(facts, agents[:1], 3)
        assert (facts.agents, facts.awake, facts.running, facts.busy, facts.lease.agents) == (1, 0, 0, (), 1)

    simulate(story, agents={"Doll": Doll})
