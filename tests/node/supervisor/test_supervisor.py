"""Supervisors on a real server, over nodes that are only a lease and an answer to pings."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import Any

import msgspec
import pytest

from agentmesh.control_values import ControlRequest, NodeStats
from agentmesh.edge.transport import Message
from agentmesh.planner import Plan, World, plan
from agentmesh.registry_values import Placement
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, node_key, placement_key, spec_key
from agentmesh.wire import ErrorBody, decode_outcome, encode
from agentmesh_node.supervisor import supervisor
from supervised import running
from support import Server, eventually, run


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


def test_a_running_agent_that_loses_its_only_node_is_wanted_again_and_says_why(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            node = await mesh.node("n1")
            failure = ErrorBody(code="failed", message="it crashed too often")
            await mesh.want("a", status="running")
            await mesh.want("f", status="failed", reason=failure)
            await mesh.placed("a", "n1")
            await mesh.placed("f", "n1")
            await node.die()
            await mesh.until(lambda: mesh.reason("a") == "no node is live")
            assert mesh.spec("a").status == "wanted"
            assert (mesh.spec("f").status, mesh.spec("f").reason) == ("failed", failure)

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


def test_between_two_plans_the_loop_turns(server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else plans for 100,000 agents, a thousand at a time, would hold it for 1 s (docs/design/014-the-supervisors-lookout.md)."""
    steps: list[str] = []

    def planned(world: World, agents: set[str]) -> Plan:
        steps.append("plan")
        return plan(world, agents)

    monkeypatch.setattr(supervisor, "_AGENTS_AT_ONCE", 5)
    monkeypatch.setattr(supervisor, "plan", planned)

    async def turn() -> None:
        while True:
            steps.append("turn")
            await asyncio.sleep(0)

    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1", replan_s=0.05)
            await mesh.node("n1")
            for number in range(40):
                await mesh.want(f"a{number}")
            await mesh.until(lambda: all(mesh.homes(f"a{number}") for number in range(40)))
            steps.clear()
            turning = asyncio.create_task(turn())
            await eventually(lambda: steps.count("plan") >= 16)
            turning.cancel()
            await asyncio.wait((turning,))
            assert all(pair != ("plan", "plan") for pair in itertools.pairwise(steps))

    run(scenario())


# --- nodes that go ------------------------------------------------------------------------------------------------
def test_agents_of_a_killed_node_move_long_before_its_lease_ends_and_the_lease_goes(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            doomed = await mesh.node("n1")
            for number in range(200):
                await mesh.want(f"a{number}")
            await mesh.until(lambda: all(mesh.homes(f"a{number}") == ["n1"] for number in range(200)))
            await mesh.node("n2")
            await doomed.die()
            await mesh.until(lambda: all("n2" in mesh.homes(f"a{number}") for number in range(200)))
            await mesh.until(lambda: all(mesh.homes(f"a{number}") == ["n2"] for number in range(200)))
            await mesh.until(lambda: mesh.view.get(node_key("n1")) is None)

    run(scenario())


def test_agents_that_were_in_a_turn_when_their_node_died_are_placed_first(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_AGENTS_AT_ONCE", 5)

    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1", writes_in_flight=1)
            doomed = await mesh.node("n1")
            names = [f"a{number}" for number in range(40)]
            for name in names:
                await mesh.want(name)
            await mesh.until(lambda: all(mesh.homes(name) == ["n1"] for name in names))
            doomed.busy = ("a33", "a17", "a39", "unknown")
            told = doomed.told
            await eventually(lambda: doomed.told > told, what="a ping that asks who is busy")
            await mesh.node("n2")
            await doomed.die()
            await mesh.until(lambda: all(mesh.homes(name) == ["n2"] for name in names))
            by_age = sorted(names, key=lambda name: mesh.generation("n2", name))
            assert {"a33", "a17", "a39"} < set(by_age[:5])

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
            assert mesh.view.get(node_key("n1")) is None
            await mesh.node("n1", boot="second")
            await mesh.want("probe")
            await mesh.placed("probe", "n1")
            assert mesh.generation("n1", "a") == generation

    run(scenario())


def test_a_node_found_dead_without_a_lease_is_welcome_when_it_comes(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.registry.create(placement_key("n1", "a"), encode(Placement(incarnation="life-a")))
            await mesh.want("a")
            await mesh.leading("s1")
            await mesh.until(lambda: mesh.reason("a") == "no node is live")
            generation = mesh.generation("n1", "a")
            node = await mesh.node("n1")
            await mesh.want("probe")
            await mesh.placed("probe", "n1")
            assert mesh.generation("n1", "a") == generation
            assert mesh.view.entries[node_key("n1")].revision == node.revision, "its lease was deleted"

    run(scenario())


@pytest.mark.case(222)
def test_a_draining_node_keeps_an_agent_until_it_gives_it_up_and_then_it_is_placed_at_once(
    server: Server, subjects: Subjects
) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            draining = await mesh.node("n1")
            for agent in ("a", "b"):
                await mesh.want(agent)
                await mesh.placed(agent, "n1")
            await draining.renew(draining=True)
            await mesh.node("n2")
            await mesh.want("probe")
            await mesh.placed("probe", "n2")
            assert (mesh.homes("a"), mesh.homes("b")) == (["n1"], ["n1"])
            assert await mesh.registry.delete(placement_key("n1", "a"), mesh.generation("n1", "a"))
            await mesh.placed("a", "n2", within=1)
            assert mesh.homes("b") == ["n1"]

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


# --- lives that hang together, and what people ask -----------------------------------------------------------------
def test_the_leader_ends_linked_agents_whose_parent_has_ended(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            await mesh.node("n1")
            revision = await mesh.want("p", status="running")
            await mesh.want("child", status="running", parent="p", parent_life="life-p")
            await mesh.want("stranger", status="running", parent="p", parent_life="an earlier life")
            await mesh.until(lambda: mesh.spec("stranger").status == "stopping")
            assert mesh.reason("stranger") == "its parent p ended; another agent bears that name"
            assert mesh.spec("child").status == "running"
            stopped = msgspec.structs.replace(mesh.spec("p"), status="stopped")
            await mesh.registry.update(spec_key("p"), encode(stopped), revision)
            await mesh.until(lambda: mesh.spec("child").status == "stopping")
            assert mesh.reason("child") == "its parent p ended"
            await mesh.placed("child", "n1")

    run(scenario())


def test_a_supervisor_serves_asks_where_no_node_does(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.supervisor("s1")
            reply = await mesh.transport.request(subjects.ask("nobody"), b"hello", timeout=5)
            outcome = decode_outcome(reply.data)
            assert outcome.error is not None and outcome.error.code == "not_found"

    run(scenario())


def test_only_the_leader_rebalances(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            await mesh.supervisor("s2")
            refused = await mesh.transport.request(subjects.node("s2"), b'{"op":"rebalance"}', timeout=5)
            assert json.loads(refused.data)["error"]["code"] == "unavailable"

            async def done() -> bool:
                reply = await mesh.transport.request(subjects.node("s1"), b'{"op":"rebalance"}', timeout=5)
                return bool(json.loads(reply.data) == {"v": 1, "moving": 0})

            await eventually(done)

    run(scenario())


@pytest.mark.case(615)
def test_who_asks_all_supervisors_learns_of_them_and_moves_nothing(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            for op in ("rebalance", "drain", "cordon", "release", "sweep"):
                request = json.dumps({"op": op, "agents": ["a"]}).encode()
                refused = await mesh.transport.request(subjects.supervisors(), request, timeout=5)
                assert json.loads(refused.data)["error"]["code"] == "bad_request"
            for op in ("ping", "stats"):
                reply = await mesh.transport.request(subjects.supervisors(), json.dumps({"op": op}).encode(), timeout=5)
                assert json.loads(reply.data)["node"] == "s1"

    run(scenario())


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


def test_what_only_a_node_does_is_left_to_the_node_of_its_id(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh:
            await mesh.leading("s1")
            await mesh.node("s1")
            await mesh.want("a")
            await mesh.until(lambda: mesh.homes("a") == ["s1"])  # it knows the node
            answers: list[dict[str, Any]] = []
            inbox = mesh.transport.new_inbox()
            await mesh.transport.subscribe(inbox, lambda message: answers.append(json.loads(message.data)))
            for op in ("drain", "cordon", "ping"):
                await mesh.transport.publish(subjects.node("s1"), encode(ControlRequest(op=op)), reply=inbox)
            await eventually(lambda: len(answers) == 4, what="the node's answers, and both of the ping")
            assert [answer for answer in answers if "error" in answer] == []

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
