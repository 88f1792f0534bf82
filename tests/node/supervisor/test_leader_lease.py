"""Which supervisor leads, on a real server: elections, successions, and two that both believe that they lead."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.edge.registry import Entry
from agentmesh.registry_values import Placement, SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, placement_key
from agentmesh.wire import encode
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor import lease_and_pings
from agentmesh_node.supervisor.leader_lease import LeaderLease
from agentmesh_node.supervisor.supervisor import Supervisor
from supervised import running
from support import Server, eventually, run


@pytest.mark.case(223)
def test_a_standby_leads_long_before_a_dead_leaders_lease_ends_and_handles_a_node_that_died_with_it(
    server: Server, subjects: Subjects
) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            dying = await mesh.connect("s1")
            leader = Supervisor(dying, subjects, "s1", SupervisorSettings(lease_ttl_s=60), liveness=LivenessThread(server.url))
            mesh.stack.push_async_callback(leader.close)
            await leader.start()
            await eventually(lambda: leader.leads)
            standby = await mesh.supervisor("s2", lease_ttl_s=60)
            await eventually(lambda: standby.leader == "s1")
            doomed = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            await mesh.node("n2")
            await mesh.want("b")
            await mesh.placed("b", "n2")
            generation = mesh.generation("n2", "b")

            await asyncio.gather(dying.close(), doomed.die())
            await eventually(lambda: standby.leads)
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
            await eventually(lambda: standby.leads, what="the standby leading, long before its grace ends")

    run(scenario())


def test_a_supervisor_restarted_under_its_id_leads_again_before_the_lease_ends(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.registry.create(SUPERVISOR_KEY, encode(SupervisorLease(id="s1", since="before")), ttl_s=60)
            await mesh.leading("s1")

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


class AlwaysLeads(LeaderLease):
    """Believes that it leads, whatever the registry says: a leader that has not yet noticed its replacement."""

    @property
    def leads(self) -> bool:
        return True

    def observe(self, entry: Entry | None) -> None:
        pass

    async def run(self) -> None:
        self._on_change(True, "it believes so")
        await asyncio.Event().wait()


@pytest.mark.case(225)
def test_two_supervisors_that_both_believe_they_lead_leave_one_placement_each(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_and_pings, "LeaderLease", AlwaysLeads)

    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            agents = [f"a{number}" for number in range(60)]
            both = [await mesh.supervisor(name) for name in ("s1", "s2")]
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
