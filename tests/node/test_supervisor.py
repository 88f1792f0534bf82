"""Supervisors on a real server, over nodes that are only a lease and an answer to pings."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.registry import Entry, Registry, View, decode_spec
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message, Subscription
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, node_key, placement_key, spec_key
from agentmesh.wire import AgentStatus, NodeLease, NodeStats, Placement, Spec, SupervisorLease, encode
from agentmesh_node.leadership import Leadership
from agentmesh_node.supervisor import Supervisor, SupervisorSettings
from support import Server, eventually, run

FOREVER = 3600
"""TTL of a lease that does not end within a test."""


class FakeNode:
    """What a supervisor sees of a node: its lease, and whether it answers."""

    def __init__(self, mesh: Mesh, name: str, transport: NatsTransport, lease: NodeLease, ttl_s: int) -> None:
        self.name = name
        self.lease = lease
        self.answers = True
        self.pings = 0
        self._ttl = ttl_s
        self._subjects = mesh.subjects
        self._transport = transport
        self._registry = Registry(transport, mesh.subjects)
        self._revision = 0
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._transport.subscribe(self._subjects.node(self.name), self._answer)
        self._revision = await self._registry.create(node_key(self.name), encode(self.lease), ttl_s=self._ttl)

    async def renew(self, *, ttl_s: int = FOREVER, **changes: Any) -> None:
        """Write the lease again, also over one that has expired."""
        self.lease = msgspec.structs.replace(self.lease, **changes)
        key, value = node_key(self.name), encode(self.lease)
        if await self._registry.get(key) is None:
            self._revision = await self._registry.create(key, value, ttl_s=ttl_s)
        else:
            self._revision = await self._registry.update(key, value, self._revision, ttl_s=ttl_s)

    async def leave(self) -> None:
        """Go in order."""
        await self._registry.delete(node_key(self.name), self._revision)
        await self.die()

    async def die(self) -> None:
        """As kill -9: the subscription ends, the lease stays."""
        await self._transport.close()

    async def _answer(self, message: Message) -> None:
        self.pings += 1
        if self.answers:
            stats = NodeStats(node=self.name, boot=self.lease.boot, agents=0, running=0, lag_ms=0.0, draining=False)
            await self._transport.publish(message.reply, encode(stats))


class Mesh:
    """One mesh on the test's server: a live view of its registry, and whoever takes part."""

    def __init__(self, server: Server, subjects: Subjects, stack: contextlib.AsyncExitStack) -> None:
        self.subjects = subjects
        self._server = server
        self.stack = stack

    async def start(self) -> None:
        self.transport = await self.connect("test")
        await ensure(self.transport, self.subjects)
        self.registry = Registry(self.transport, self.subjects)
        self.view = View(self.registry, ["agents.>", "placements.>", "nodes.*", SUPERVISOR_KEY], None)
        await self.view.start()
        self.stack.push_async_callback(self.view.close)

    async def connect(self, name: str) -> NatsTransport:
        transport = await connect(self._server.url, name=name)
        self.stack.push_async_callback(transport.close)
        return transport

    async def node(self, name: str, *, ttl_s: int = FOREVER, **lease: Any) -> FakeNode:
        fields = {"boot": f"boot-{name}", "kinds": ("A",)} | lease
        node = FakeNode(self, name, await self.connect(name), NodeLease(**fields), ttl_s)
        await node.start()
        return node

    async def supervisor(self, name: str, cls: type[Supervisor] = Supervisor, **settings: Any) -> Supervisor:
        transport = await self.connect(name)
        made = cls(transport, self.subjects, name, SupervisorSettings(**settings))
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

    async def placed(self, agent: str, *nodes: str, within: float = 10) -> None:
        """Wait until exactly `nodes` hold a placement of `agent`."""
        await self.until(lambda: self.homes(agent) == sorted(nodes), within, f"{agent} on {nodes}")

    async def until(self, predicate: Any, within: float = 10, what: str = "the condition") -> None:
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


# --- placing ------------------------------------------------------------------------------------------------------
@pytest.mark.case(221)
def test_an_agent_waits_with_its_reason_visible_until_a_node_serves_its_kind(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            supervisor = await mesh.leading("s1")
            await mesh.node("n1", kinds=("A",))
            await mesh.want("b", kind="B")
            await mesh.until(lambda: mesh.reason("b") == "no live node serves kind B")
            assert mesh.spec("b").status == "wanted"
            assert supervisor.explain("b") == "b waits: no live node serves kind B (n1: other kind)"

            await mesh.node("n2", kinds=("A", "B"))
            await mesh.placed("b", "n2")

    run(scenario())


@pytest.mark.case(228)
def test_labels_and_capacity_are_honoured_and_load_spreads(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            for name in ("n1", "n2", "n3"):
                await mesh.node(name)
            await mesh.node("small", capacity=2, labels={"gpu": "yes"})
            for number in range(60):
                await mesh.want(f"a{number}")
            for number in range(5):
                await mesh.want(f"g{number}", labels={"gpu": "yes"})
            await mesh.until(lambda: all(mesh.homes(f"a{number}") for number in range(60)))
            counts = Counter(mesh.homes(f"a{number}")[0] for number in range(60))
            assert counts["small"] <= 2
            equal = [counts[name] for name in ("n1", "n2", "n3")]
            assert max(equal) <= 1.2 * min(equal)
            # What fills the small node first keeps it; the rest of those that need its label wait.
            room = 2 - counts["small"]
            await mesh.until(lambda: sum(bool(mesh.reason(f"g{number}")) for number in range(5)) == 5 - room)
            assert {mesh.reason(f"g{number}") for number in range(5)} - {None} == {"no node that fits has room"}

    run(scenario())


def test_a_stopped_agent_loses_its_placement_and_stopping_gets_an_owner(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            await mesh.node("n1", kinds=())
            revision = await mesh.want("a", kind="Z", status="stopping")
            await mesh.placed("a", "n1")
            stopped = msgspec.structs.replace(mesh.spec("a"), status="stopped")
            await mesh.registry.update(spec_key("a"), encode(stopped), revision)
            await mesh.placed("a")

    run(scenario())


def test_a_placement_of_another_life_counts_for_nothing(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            old = encode(Placement(incarnation="another"))
            await mesh.node("n1")
            await mesh.registry.create(placement_key("n1", "a"), old)
            await mesh.registry.create(placement_key("nowhere", "a"), old)
            await mesh.want("a")
            await mesh.leading("s1")
            await mesh.placed("a", "n1")
            entry = mesh.view.get(placement_key("n1", "a"))
            assert entry is not None
            assert b"life-a" in (entry.value or b"")

    run(scenario())


def test_decisions_are_published_with_their_reasons(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            events: dict[str, dict[str, Any]] = {}

            def note(message: Message) -> None:
                event = json.loads(message.data)
                assert message.subject == subjects.event("_supervisor", event["kind"])
                events[event["kind"]] = event

            await mesh.transport.subscribe(subjects.event("_supervisor", "*"), note)
            await mesh.transport.flush()
            await mesh.leading("s1")
            node = await mesh.node("n1")
            await mesh.want("a")
            await eventually(lambda: "placed" in events)
            assert events["placed"].items() >= {"v": 1, "agent": "a", "node": "n1", "supervisor": "s1"}.items()
            assert events["placed"]["generation"] == mesh.generation("n1", "a")
            assert events["placed"]["reason"] == "it has no owner; n1 fits and has the fewest agents (0)"
            assert events["leading"]["reason"] == "nobody leads"

            await mesh.node("n2")
            await node.die()
            await eventually(lambda: "moved" in events)
            assert events["node_gone"]["reason"] == "no responders for 0.25 s"
            assert events["moved"]["from_node"] == "n1"

    run(scenario())


def test_a_malformed_spec_leaves_its_agent_as_it_is(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1", replan_s=0.05)
            await mesh.node("n1")
            revision = await mesh.want("a")
            await mesh.placed("a", "n1")
            generation = mesh.generation("n1", "a")
            await mesh.registry.update(spec_key("a"), b"{", revision)
            await mesh.want("probe")
            await mesh.placed("probe", "n1")
            assert mesh.generation("n1", "a") == generation

    run(scenario())


# --- nodes that go ------------------------------------------------------------------------------------------------
def test_agents_of_a_killed_node_move_within_a_second_and_its_lease_goes(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            doomed = await mesh.node("n1")
            for number in range(200):
                await mesh.want(f"a{number}")
            await mesh.until(lambda: all(mesh.homes(f"a{number}") == ["n1"] for number in range(200)))
            await mesh.node("n2")
            await doomed.die()
            begun = asyncio.get_running_loop().time()
            await mesh.until(lambda: all("n2" in mesh.homes(f"a{number}") for number in range(200)))
            assert asyncio.get_running_loop().time() - begun < 1.0
            await mesh.until(lambda: all(mesh.homes(f"a{number}") == ["n2"] for number in range(200)))
            await mesh.until(lambda: mesh.view.get(node_key("n1")) is None)

    run(scenario())


def test_agents_of_a_node_that_leaves_in_order_move_at_once(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            leaving = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            await mesh.node("n2")
            await leaving.leave()
            await mesh.placed("a", "n2")

    run(scenario())


def test_a_node_that_hangs_and_lets_its_lease_expire_loses_its_agents(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1", settle_s=0.5)
            hung = await mesh.node("n1", ttl_s=1)
            hung.answers = False
            await mesh.want("a")
            await mesh.placed("a", "n1")
            await mesh.node("n2")
            await mesh.placed("a", "n2")
            assert hung.pings

    run(scenario())


@pytest.mark.case(227)
def test_a_node_that_does_not_answer_but_renews_its_lease_keeps_its_agents(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1", grace_s=0.05, ping_period_s=0.02)
            blocked = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            generation = mesh.generation("n1", "a")
            await mesh.node("n2")
            blocked.answers = False
            unanswered = blocked.pings
            await eventually(lambda: blocked.pings >= unanswered + 10)
            await mesh.want("probe")
            await mesh.until(lambda: mesh.homes("probe") != [])
            assert mesh.generation("n1", "a") == generation

    run(scenario())


def test_a_restarted_node_keeps_its_agents_when_no_other_could_take_them(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            first = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            generation = mesh.generation("n1", "a")
            await first.die()
            await mesh.until(lambda: mesh.reason("a") == "no node is live")
            await mesh.node("n1", boot="second")
            await mesh.want("probe")
            await mesh.placed("probe", "n1")
            assert mesh.generation("n1", "a") == generation

    run(scenario())


@pytest.mark.case(222)
def test_agents_leave_a_draining_node(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            draining = await mesh.node("n1")
            for agent in ("a", "b"):
                await mesh.want(agent)
                await mesh.placed(agent, "n1")
            await draining.renew(draining=True)
            await mesh.node("n2")
            await mesh.placed("a", "n2")
            await mesh.placed("b", "n2")

    run(scenario())


# --- supervisors that go ------------------------------------------------------------------------------------------
@pytest.mark.case(223)
def test_a_standby_leads_within_two_seconds_of_the_leaders_death_and_handles_a_node_that_died_with_it(
    server: Server, subjects: Subjects
) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            dying = await mesh.connect("s1")
            leader = Supervisor(dying, subjects, "s1")
            mesh.stack.push_async_callback(leader.close)
            await leader.start()
            await eventually(lambda: leader.leads)
            standby = await mesh.supervisor("s2")
            await eventually(lambda: standby.leader == "s1")
            doomed = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            await mesh.node("n2")
            await mesh.want("b")
            await mesh.placed("b", "n2")
            generation = mesh.generation("n2", "b")

            begun = asyncio.get_running_loop().time()
            await asyncio.gather(dying.close(), doomed.die())
            await eventually(lambda: standby.leads)
            assert asyncio.get_running_loop().time() - begun < 2.0
            await mesh.placed("a", "n2")
            assert mesh.generation("n2", "b") == generation
            await eventually(lambda: not leader.leads, what="the former leader giving up")

    run(scenario())


def test_a_leader_that_closes_hands_over_at_once(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            leader = await mesh.leading("s1", grace_s=60.0)
            standby = await mesh.supervisor("s2", grace_s=60.0)
            await leader.close()
            begun = asyncio.get_running_loop().time()
            await eventually(lambda: standby.leads)
            assert asyncio.get_running_loop().time() - begun < 1.0

    run(scenario())


def test_a_supervisor_restarted_under_its_id_leads_again_before_the_lease_ends(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.registry.create(SUPERVISOR_KEY, encode(SupervisorLease(id="s1", since="before")), ttl_s=60)
            begun = asyncio.get_running_loop().time()
            await mesh.leading("s1")
            assert asyncio.get_running_loop().time() - begun < 2.5

    run(scenario())


def test_a_leader_that_hangs_is_replaced_when_its_lease_ends(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.transport.subscribe(subjects.node("hung"), lambda _message: None)
            await mesh.registry.create(SUPERVISOR_KEY, encode(SupervisorLease(id="hung", since="x")), ttl_s=1)
            await mesh.leading("s2")

    run(scenario())


def test_a_leader_whose_lease_was_taken_stands_by(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            leader = await mesh.leading("s1")
            await mesh.transport.subscribe(subjects.node("other"), lambda _message: None)
            revision = mesh.view.entries[SUPERVISOR_KEY].revision
            await mesh.registry.update(SUPERVISOR_KEY, encode(SupervisorLease(id="other", since="x")), revision, ttl_s=60)
            await eventually(lambda: not leader.leads)
            assert leader.leader == "other"

    run(scenario())


@pytest.mark.case(224)
def test_a_supervisor_that_returns_repairs_what_happened_meanwhile(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            first = await mesh.leading("s1")
            doomed = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            await first.close()

            await doomed.leave()
            await mesh.node("n2")
            await mesh.want("b")
            await mesh.registry.create(placement_key("n2", "ghost"), encode(Placement(incarnation="x")))
            await mesh.leading("s2")
            await mesh.placed("a", "n2")
            await mesh.placed("b", "n2")
            await mesh.placed("ghost")

    run(scenario())


class AlwaysLeads(Leadership):
    """Believes that it leads, whatever the registry says: a leader that has not yet noticed its replacement."""

    @property
    def leads(self) -> bool:
        return True

    def observe(self, entry: Entry | None) -> None:
        pass

    async def run(self) -> None:
        self._on_change(True, "it believes so")
        await asyncio.Event().wait()


class Usurper(Supervisor):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._leadership = AlwaysLeads(
            self._registry, self._leader, supervisor_id=self.id, ttl_s=3, may_claim=lambda: True, on_change=self._led
        )


@pytest.mark.case(225)
def test_two_supervisors_that_both_believe_they_lead_leave_one_placement_each(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            agents = [f"a{number}" for number in range(60)]
            both = [await mesh.supervisor(name, Usurper) for name in ("s1", "s2")]
            nodes = [await mesh.node(f"n{number}") for number in range(4)]
            await asyncio.gather(*(mesh.want(agent) for agent in agents))
            await mesh.until(lambda: all(len(mesh.homes(agent)) == 1 for agent in agents))
            await nodes[0].die()
            await mesh.until(lambda: all(len(mesh.homes(a)) == 1 and mesh.homes(a) != ["n0"] for a in agents))
            # Settled: both have seen the newest change, and neither wants to do anything about it.
            generations = {agent: mesh.generation(mesh.homes(agent)[0], agent) for agent in agents}
            await mesh.want("probe")
            await mesh.until(lambda: len(mesh.homes("probe")) == 1)
            assert {agent: mesh.generation(mesh.homes(agent)[0], agent) for agent in agents} == generations
            assert all(supervisor.leads for supervisor in both)

    run(scenario())


# --- the supervisor's own silence ---------------------------------------------------------------------------------
@pytest.mark.case(226)
def test_a_supervisor_that_was_cut_off_moves_nothing_because_of_its_own_silence(fresh_server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(fresh_server, subjects) as mesh:
            supervisor = await mesh.leading("s1", settle_s=10.0, grace_s=1.0)
            away = await mesh.node("n1", ttl_s=1)
            await mesh.node("n2")
            await mesh.want("a")
            await mesh.until(lambda: mesh.homes("a") != [])
            home = mesh.homes("a")[0]
            assert home == "n1", "the first of two equal nodes"
            generation = mesh.generation(home, "a")

            # The server is away; the lease of n1 ends meanwhile, or just after, as n1 could not renew it.
            await asyncio.to_thread(fresh_server.kill)
            await eventually(lambda: not mesh.view.fresh)
            await asyncio.to_thread(fresh_server.start)
            await mesh.until(lambda: mesh.view.fresh, what="the view being fresh again")
            await mesh.until(lambda: mesh.view.get(node_key("n1")) is None, what="the lease's end")
            await eventually(lambda: supervisor.leads, what="s1 leading again")
            await mesh.want("probe")
            await mesh.placed("probe", "n2")
            assert mesh.generation(home, "a") == generation, "it was moved because nothing was heard"

            await away.renew()
            await mesh.want("second-probe")
            await mesh.placed("second-probe", "n1")
            assert mesh.homes("a") == [home]
            assert mesh.generation(home, "a") == generation

    run(scenario())


@pytest.mark.case(226)
def test_after_a_cut_off_a_node_that_really_died_is_found(fresh_server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(fresh_server, subjects) as mesh:
            await mesh.leading("s1")
            doomed = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            await mesh.node("n2")
            await asyncio.to_thread(fresh_server.kill)
            await doomed.die()
            await asyncio.to_thread(fresh_server.start)
            await mesh.placed("a", "n2", within=20)

    run(scenario(), timeout=60)


# --- the process --------------------------------------------------------------------------------------------------
def test_it_answers_pings_and_refuses_the_rest(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            supervisor = await mesh.supervisor("s1")
            reply = await mesh.transport.request(subjects.node("s1"), b'{"op":"ping"}', timeout=5)
            stats = msgspec.json.decode(reply.data, type=NodeStats)
            assert (stats.node, stats.boot, stats.agents) == ("s1", supervisor.boot, 0)
            for body in (b'{"op":"drain"}', b"not json"):
                refused = await mesh.transport.request(subjects.node("s1"), body, timeout=5)
                assert json.loads(refused.data)["error"]["code"] == "bad_request"

    run(scenario())


def test_it_runs_until_it_is_stopped(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            supervisor = await mesh.leading("s1")
            serving = asyncio.create_task(supervisor.run_until_stopped())
            supervisor.stop()
            await serving
            assert not supervisor.leads
            await mesh.until(lambda: mesh.view.get(SUPERVISOR_KEY) is None)
            await supervisor.close()

    run(scenario())
