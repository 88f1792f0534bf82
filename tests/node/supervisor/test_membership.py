"""Which nodes live: by lease and pings together; and what becomes of a dead one's lease."""

from __future__ import annotations

from agentmesh.edge.registry import Entry, Registry
from agentmesh.registry_values import NodeLease, Placement
from agentmesh.subjects import node_key, placement_key
from agentmesh.wire import encode
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.failure_detector import PingState
from agentmesh_node.supervisor.membership import Membership
from agentmesh_node.supervisor.registry_index import NodeState, RegistryIndex
from node.simulated import SimulatedNode, simulate

SETTLE_S = 3.0


class Pings:
    """Results of pings, as the test has them."""

    def __init__(self) -> None:
        self.states: dict[str, PingState] = {}
        self.forgotten: list[str] = []

    def ping_state(self, node: str) -> PingState:
        return self.states.get(node, PingState.UNKNOWN)

    def busy(self, node: str) -> tuple[str, ...]:
        return ("busy",)

    def forget(self, node: str) -> None:
        self.states.pop(node)
        self.forgotten.append(node)


class Scene:
    """A membership, what it judges by, and what it says."""

    def __init__(self, node: SimulatedNode) -> None:
        self.index = RegistryIndex()
        self.pings = Pings()
        self.registry = node.registry
        self.decisions = DecisionLog(node.transport, node.subjects, "s1", node.services.now)
        settings = SupervisorSettings(settle_s=SETTLE_S)
        self.members = Membership(node.registry, self.index, self.pings, self.decisions, settings)

    async def lease(self, boot: str, own_id: str = "n1") -> None:
        """A process of that node writes its lease."""
        value, key = encode(NodeLease(boot=boot)), node_key(own_id)
        known = await self.registry.get(key)
        revision = await (self.registry.create(key, value) if known is None else self.registry.update(key, value, known.revision))
        self.index.observe(Entry(key, value, revision))

    def heard(self, state: PingState, own_id: str = "n1") -> NodeState:
        """The state of a node once its pings give `state`."""
        self.pings.states[own_id] = state
        self.members.on_pings(own_id, state)
        self.members.judge(own_id)
        return self.state(own_id)

    def state(self, own_id: str = "n1") -> NodeState:
        return self.index.state(own_id)


def test_a_node_that_answers_lives_and_one_without_subscription_is_doubted_then_dead() -> None:
    async def story(node: SimulatedNode) -> None:
        scene = Scene(node)
        await scene.lease("b1")
        assert scene.heard(PingState.ANSWERS) is NodeState.LIVE
        assert scene.heard(PingState.HANGS) is NodeState.LIVE  # it is subscribed: its lease decides
        assert scene.heard(PingState.SILENT) is NodeState.DOUBTED
        assert scene.heard(PingState.DEAD) is NodeState.GONE
        assert [record.msg for record in node.logged("node_")] == ["node_doubted", "node_gone"]

    simulate(story)


def test_a_lease_that_is_gone_means_death_only_once_everybody_had_time_to_renew_it() -> None:
    async def story(node: SimulatedNode) -> None:
        scene = Scene(node)
        await scene.lease("b1")
        assert scene.heard(PingState.ANSWERS) is NodeState.LIVE
        scene.members.begin_anew()
        scene.index.observe(Entry(placement_key("n1", "a"), encode(Placement(incarnation="life")), 100))  # what it leaves behind
        scene.index.observe(Entry(node_key("n1"), None, scene.index.revision(node_key("n1")) + 1))
        scene.members.judge_all()
        assert scene.state() is NodeState.DOUBTED
        await node.pass_time(SETTLE_S)
        scene.members.judge_all()
        assert scene.state() is NodeState.GONE

    simulate(story)


def test_a_process_that_takes_a_dead_ones_id_is_judged_by_itself() -> None:
    async def story(node: SimulatedNode) -> None:
        scene = Scene(node)
        await scene.lease("b1")
        assert scene.heard(PingState.DEAD) is NodeState.GONE
        await scene.lease("b2")
        scene.members.judge("n1")
        assert scene.pings.forgotten == ["n1"]
        assert scene.state() is NodeState.LIVE

    simulate(story)


def test_a_dead_nodes_lease_is_deleted_and_one_that_was_renewed_stays() -> None:
    async def story(node: SimulatedNode) -> None:
        scene = Scene(node)
        others = Registry(node.others, node.subjects)
        await scene.lease("b1")
        assert scene.heard(PingState.DEAD) is NodeState.GONE
        known = await others.get(node_key("n1"))
        assert known is not None
        await others.update(node_key("n1"), encode(NodeLease(boot="b1", agents=1)), known.revision)
        await scene.members.drop_leases()
        assert await others.get(node_key("n1")) is not None

        await scene.lease("b1")
        assert scene.heard(PingState.DEAD) is NodeState.GONE
        await scene.members.drop_leases()
        assert await others.get(node_key("n1")) is None

    simulate(story)


def test_leases_that_cannot_be_deleted_hold_nothing_up() -> None:
    """However many of them: five nodes die in one moment."""

    async def story(node: SimulatedNode) -> None:
        scene = Scene(node)
        for number in range(1, 6):
            await scene.lease("b1", f"n{number}")
            assert scene.heard(PingState.DEAD, f"n{number}") is NodeState.GONE
        node.faults.leaderless.add(node.subjects.stream("registry"))
        before = node.loop.time()
        await scene.members.drop_leases()
        assert node.loop.time() - before < 1.0
        assert node.logged("lease_delete_failed")

    simulate(story)
