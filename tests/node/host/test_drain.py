"""Handing agents over: what a leaving node waits for, and what it does not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from msgspec import structs

from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.registry import Entry, Registry, decode_spec
from agentmesh.registry_values import NodeLease, Placement
from agentmesh.subjects import node_key, placement_key, spec_key
from agentmesh.wire import ErrorBody, encode
from agentmesh_node.host.drain import (
    CUT_OFF_S,
    GOES_ON_S,
    PACED_S,
    Handover,
    answers,
    give_up,
    prefer_code,
    unless_cut_off,
)
from agentmesh_node.host.pace import UNDER_WAY, MovePace
from agentmesh_node.host.placed_agent import PlacedAgent
from node.simulated import NODE, SimulatedNode, simulate
from support import never_sent, reply_lost

LEASE = NodeLease(boot="b")


def others(node: SimulatedNode) -> Registry:
    """The registry, as somebody else writes it."""
    return Registry(node.others, node.subjects)


async def place(node: SimulatedNode, agent: str, on: str = NODE) -> int:
    return await others(node).create(placement_key(on, agent), encode(Placement(incarnation="life")))


# --- unless it is cut off -------------------------------------------------------------------------------------------
def test_a_node_leaves_when_its_work_is_done() -> None:
    async def story(node: SimulatedNode) -> None:
        done: list[str] = []

        async def leaving() -> None:
            await node.pass_time(10 * CUT_OFF_S)
            done.append("handed over")

        await unless_cut_off(leaving(), node.transport, node.loop.time)
        assert done == ["handed over"] and node.logged("no connection") == []

    simulate(story)


def test_what_goes_wrong_while_a_node_leaves_is_not_hidden() -> None:
    async def story(node: SimulatedNode) -> None:
        async def leaving() -> None:
            raise KeyError("a defect")

        with pytest.raises(KeyError):
            await unless_cut_off(leaving(), node.transport, node.loop.time)

    simulate(story)


def test_without_a_connection_a_node_leaves_without_a_handover() -> None:
    async def story(node: SimulatedNode) -> None:
        ended: list[str] = []

        async def leaving() -> None:
            try:
                await node.pass_time(1000)
            finally:
                ended.append("cancelled")

        await node.stop_server()
        began = node.loop.time()
        await unless_cut_off(leaving(), node.transport, node.loop.time)
        assert CUT_OFF_S <= node.loop.time() - began < CUT_OFF_S + 0.5
        assert ended == ["cancelled"] and len(node.logged("no connection")) == 1

    simulate(story)


def test_a_connection_that_comes_back_begins_the_wait_anew() -> None:
    async def story(node: SimulatedNode) -> None:
        done: list[str] = []

        async def leaving() -> None:
            for _ in range(4):
                await node.stop_server()
                await node.pass_time(0.7 * CUT_OFF_S)
                await node.start_server()
                await node.pass_time(0.1)
            done.append("handed over")

        await unless_cut_off(leaving(), node.transport, node.loop.time)
        assert done == ["handed over"]

    simulate(story)


def test_a_leaving_node_that_is_ended_leaves_nothing_running() -> None:
    async def story(node: SimulatedNode) -> None:
        ended: list[str] = []

        async def leaving() -> None:
            try:
                await node.pass_time(1000)
            finally:
                ended.append("cancelled")

        task = asyncio.ensure_future(unless_cut_off(leaving(), node.transport, node.loop.time))
        await node.pass_time(0.1)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled() and ended == ["cancelled"]

    simulate(story)


# --- giving a placement up ------------------------------------------------------------------------------------------
def test_a_placement_is_deleted_by_its_revision() -> None:
    async def story(node: SimulatedNode) -> None:
        key = placement_key(NODE, "a")
        old = await place(node, "a")
        newer = await others(node).update(key, encode(Placement(incarnation="life-2")), old)
        await give_up(node.registry, key, old, lambda: False)
        entry = await others(node).get(key)
        assert entry is not None and entry.revision == newer, "the leader has placed it here again: that is another one"
        await give_up(node.registry, key, newer, lambda: False)
        assert await others(node).get(key) is None

    simulate(story)


def test_it_is_tried_until_the_registry_has_it() -> None:
    async def story(node: SimulatedNode) -> None:
        key, revision = placement_key(NODE, "a"), await place(node, "a")
        node.transport.inject(node.subjects.registry_key(key), never_sent, never_sent, reply_lost)
        node.faults.leaderless.add(node.subjects.stream("registry"))
        giving_up = asyncio.ensure_future(give_up(node.registry, key, revision, lambda: False))
        await node.until(lambda: len(node.logged("placement not deleted")) > 4, "it is tried again and again")
        node.faults.leaderless.clear()
        await giving_up
        assert await others(node).get(key) is None

    simulate(story)


def test_a_process_that_ends_tries_no_more() -> None:
    async def story(node: SimulatedNode) -> None:
        key, revision = placement_key(NODE, "a"), await place(node, "a")
        node.faults.leaderless.add(node.subjects.stream("registry"))
        ends: list[bool] = []
        giving_up = asyncio.ensure_future(give_up(node.registry, key, revision, lambda: bool(ends)))
        await node.until(lambda: node.logged("placement not deleted"), "a try fails")
        ends.append(True)
        await asyncio.wait_for(giving_up, 10)
        node.faults.leaderless.clear()
        assert await others(node).get(key) is not None

    simulate(story)


@pytest.mark.case(716)
def test_the_code_of_a_turn_is_told_where_some_nodes_serve_it_and_others_do_not() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="running")

        async def told(code: str, **leases: NodeLease) -> str | None:
            entries = [Entry(node_key(name), encode(lease), 1) for name, lease in leases.items()]
            entries.append(Entry(node_key("odd"), b"no lease", 1))
            for known in (before, await others(node).get(spec_key("a"))):  # one that is behind, and the newest
                await prefer_code(node.registry, entries, known, "life", code)
            entry = await others(node).get(spec_key("a"))
            assert entry is not None
            return decode_spec(entry).turn_code

        before = await others(node).get(spec_key("a"))
        assert before is not None
        kind = decode_spec(before).kind

        def serving(version: str, **fields: Any) -> NodeLease:
            return NodeLease(boot="b", kinds=(kind,), code={kind: version}, **fields)

        assert await told("old", n2=serving("old"), n3=serving("new")) == "old"
        assert await told("old", n2=serving("new"), n3=serving("new")) is None, "nobody serves it any more"
        assert await told("old", n2=serving("old"), n3=NodeLease(boot="b", kinds=(kind,))) == "old"
        assert await told("old", n2=serving("old")) is None, "all serve it"
        assert await told("old", n2=serving("old", draining=True), n3=serving("new")) is None
        other = structs.replace(serving("new"), kinds=("Other",))
        assert await told("old", n2=serving("old"), n3=other) is None
        node.faults.leaderless.add(node.subjects.stream("registry"))
        began = node.loop.time()
        two = [Entry(node_key(name), encode(serving(name)), 1) for name in ("old", "new")]
        await prefer_code(node.registry, two, before, "life", "old")
        assert node.loop.time() - began < 10, "it is only a preference"
        node.faults.leaderless.clear()

    simulate(story)


def test_the_code_of_a_turn_holds_a_hand_over_up_for_one_while_however_often_others_write_the_spec() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a", status="running")
        known = await others(node).get(spec_key("a"))
        assert known is not None
        kind = decode_spec(known).kind

        class Busy:
            """A registry in which another one always writes first, and which takes its time."""

            async def update(self, key: str, value: bytes, revision: int) -> int:
                await node.pass_time(0.9)
                raise WrongLastSequence(None)

            async def get(self, key: str) -> Entry | None:
                await node.pass_time(0.9)
                return known

        two = [Entry(node_key(name), encode(NodeLease(boot="b", kinds=(kind,), code={kind: name})), 1) for name in ("old", "new")]
        began = node.loop.time()
        await prefer_code(cast("Any", Busy()), two, known, "life", "old")
        assert node.loop.time() - began < 2.5
        assert node.logged("the code of a turn cannot be told")

    simulate(story)


# --- the handover ---------------------------------------------------------------------------------------------------
class Leaving:
    """A node that gives up its agents."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.residents = dict[str, PlacedAgent]()
        self.handed_over: list[str] = []
        self.handover = Handover(NODE, node.registry, node.specs)

    async def begin(self, *agents: str, elsewhere: NodeLease | None = LEASE) -> None:
        """Agents that run here, and another node, if it is to be there."""
        for agent in agents:
            await self.node.spec(agent, status="running")
            self.add(agent)
        await others(self.node).create(node_key(NODE), encode(NodeLease(boot="me")))
        if elsewhere is not None:
            await others(self.node).create(node_key("n2"), encode(elsewhere))
        await self.handover.start()
        await self.node.transport.flush()

    def add(self, agent: str) -> None:
        self.residents[agent] = PlacedAgent(agent, 1, "life")

    async def hand_over(self, resident: PlacedAgent) -> None:
        await self.node.pass_time(0.1)
        self.handed_over.append(resident.name)
        del self.residents[resident.name]

    async def give_up_all(self) -> None:
        await self.handover.give_up_all(self.residents, self.hand_over)

    async def wait(self, seconds: float = 5.0) -> tuple[set[str], float]:
        """Who has no owner yet, and how long was waited for that."""
        began = self.node.loop.time()
        left = await self.handover.wait(seconds)
        return left, self.node.loop.time() - began


def leaving(story: Callable[[Leaving], Awaitable[None]]) -> None:
    async def main(node: SimulatedNode) -> None:
        it = Leaving(node)
        await story(it)
        await it.handover.close()

    main.__name__ = story.__name__
    simulate(main)


def test_all_are_given_up_at_once_and_so_are_those_that_come_meanwhile() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a", "b", "c")
        it.node.loop.call_later(0.05, it.add, "late")
        began = it.node.loop.time()
        await it.give_up_all()
        assert sorted(it.handed_over) == ["a", "b", "c", "late"]
        assert it.node.loop.time() - began < 0.35, "the three beside each other"

    leaving(story)


def test_each_agent_is_handed_over_once_although_it_stays_for_a_while() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a")
        calls: list[str] = []

        async def only_begin(resident: PlacedAgent) -> None:
            calls.append(resident.name)
            it.node.loop.call_later(0.5, it.residents.clear)

        await it.handover.give_up_all(it.residents, only_begin)
        assert calls == ["a"]

    leaving(story)


@pytest.mark.case(720)
def test_an_agent_that_could_not_be_given_up_is_given_up_once_more_and_holds_up_no_other() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a", "b", "c")
        tried: list[str] = []

        async def fails_first(resident: PlacedAgent) -> None:
            tried.append(resident.name)
            if tried.count(resident.name) == 1 and resident.name != "c":
                if resident.name == "a":
                    raise RuntimeError("it does not work")
                return  # it is being given up already, by who fails
            await it.hand_over(resident)

        await it.handover.give_up_all(it.residents, fails_first)
        assert it.handed_over == ["c", "a", "b"] and sorted(tried) == ["a", "a", "b", "b", "c"]
        assert len(it.node.logged("an agent was not given up")) == 1
        it.node.logs.clear()

    leaving(story)


def test_a_drain_that_is_ended_leaves_nothing_running() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a", "b")
        for resident in it.residents.values():
            resident.owner = cast("Any", InTurn())
        followed: list[str] = []

        async def hangs(resident: PlacedAgent) -> None:
            await (it.hand_over(resident) if resident.name == "a" else it.node.pass_time(60.0))

        async def elsewhere(agent: str) -> None:
            followed.append("begun")
            try:
                await it.node.pass_time(60.0)
            finally:
                followed.append("ended")

        pace = MovePace(elsewhere)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await it.handover.give_up_all(it.residents, hangs, pace)
        await pace.close()
        assert followed == ["begun", "ended"]

    leaving(story)


class InTurn:
    """An owner in a turn that can be handed on."""

    core = object()
    idle = False
    movable = True


@pytest.mark.case(734)
def test_running_turns_are_handed_on_a_few_at_a_time_and_all_within_a_while() -> None:
    async def story(it: Leaving) -> None:
        names = [f"t{number:02}" for number in range(40)]
        await it.begin(*names, "idle")
        for name in names:
            it.residents[name].owner = cast("Any", InTurn())
        goes_on = asyncio.Event()
        began = it.node.loop.time()

        async def elsewhere(agent: str) -> None:
            await goes_on.wait()

        pace = MovePace(elsewhere)
        giving_up = asyncio.ensure_future(it.handover.give_up_all(it.residents, it.hand_over, pace))
        await it.node.pass_time(1.0)
        first = len(it.handed_over)
        assert "idle" in it.handed_over and UNDER_WAY < first < 30, "those that were on their way go too"
        await it.node.pass_time(1.0)
        assert len(it.handed_over) == first, "no other while none of them goes on"
        goes_on.set()
        await it.node.pass_time(0.5)
        assert len(it.handed_over) > first
        goes_on.clear()
        await giving_up
        assert len(it.handed_over) == 41
        assert it.node.loop.time() - began < PACED_S + 0.5, "a drain takes no longer because of that"
        await pace.close()

    leaving(story)


def test_with_no_other_node_nobody_is_waited_for() -> None:
    async def story(it: Leaving) -> None:
        names = [f"t{number:02}" for number in range(40)]
        await it.begin(*names, elsewhere=None)
        for name in names:
            it.residents[name].owner = cast("Any", InTurn())
        began = it.node.loop.time()
        await it.handover.give_up_all(it.residents, it.hand_over, MovePace(lambda agent: it.node.pass_time(60.0)))
        assert it.node.loop.time() - began < 0.3

    leaving(story)


def test_an_agent_goes_on_when_its_owner_answers() -> None:
    async def story(node: SimulatedNode) -> None:
        began = node.loop.time()
        await answers(node.transport, node.subjects, "nobody")
        assert GOES_ON_S <= node.loop.time() - began < GOES_ON_S + 0.2

        async def answer(message: Any) -> None:
            await node.others.publish(message.reply, b"{}")

        await node.others.subscribe(
            node.subjects.control("a"), lambda message: node.world.process("others").spawn(answer(message))
        )
        await node.others.flush()
        began = node.loop.time()
        await answers(node.transport, node.subjects, "a")
        assert node.loop.time() - began < 0.2

    simulate(story)


def test_it_waits_until_each_has_an_owner_elsewhere() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a", "b")
        await it.give_up_all()
        spawn = it.node.world.process("others").spawn
        it.node.loop.call_later(0.5, lambda: spawn(place(it.node, "a", on="n2")))
        it.node.loop.call_later(1.0, lambda: spawn(place(it.node, "b", on="n2")))
        left, took = await it.wait()
        assert left == set() and 1.0 <= took < 1.2

    leaving(story)


def test_a_placement_that_came_before_the_agent_was_given_up_does_not_count() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a")
        await place(it.node, "a", on="n2")
        await it.node.pass_time(0.1)
        await it.give_up_all()
        left, took = await it.wait(2.0)
        assert left == {"a"} and 2.0 <= took < 2.1

    leaving(story)


def test_neither_a_placement_here_nor_a_deletion_is_an_owner_elsewhere() -> None:
    async def story(it: Leaving) -> None:
        revision = await place(it.node, "a", on="n3")
        await it.begin("a")
        await it.give_up_all()
        await others(it.node).delete(placement_key("n3", "a"), revision)
        await place(it.node, "a", on=NODE)
        left, _ = await it.wait(1.0)
        assert left == {"a"}

    leaving(story)


def test_agents_whose_names_have_several_tokens_are_told_apart() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("team.a", "team.b")
        await it.give_up_all()
        await place(it.node, "team.a", on="n2")
        left, _ = await it.wait(1.0)
        assert left == {"team.b"}

    leaving(story)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": "running"}, True),
        ({"status": "failed"}, True),
        ({"status": "wanted"}, True),
        ({"status": "wanted", "reason": ErrorBody(code="unplaced", message="no node serves its kind")}, False),
        ({"status": "stopping"}, False),
        ({"status": "stopped"}, False),
        (None, False),
    ],
    ids=["running", "failed", "wanted", "unplaceable", "stopping", "stopped", "malformed"],
)
def test_nobody_waits_for_who_cannot_have_an_owner(fields: dict[str, object] | None, expected: bool) -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a", "b")
        if fields is None:
            await it.node.write_spec("a", b"{")
        else:
            await it.node.spec("a", **fields)
        await it.give_up_all()
        await place(it.node, "b", on="n2")
        left, _ = await it.wait(1.0)
        assert left == ({"a"} if expected else set())

    leaving(story)


def test_an_agent_that_is_gone_from_the_registry_is_not_waited_for() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a")
        await it.give_up_all()
        entry = it.node.specs.get("agents.a")
        assert entry is not None
        await others(it.node).delete("agents.a", entry.revision)
        await it.node.until(lambda: it.node.specs.get("agents.a") is None, "the deletion is seen")
        left, took = await it.wait()
        assert left == set() and took < 1.0

    leaving(story)


@pytest.mark.parametrize(
    "elsewhere",
    [None, NodeLease(boot="b", draining=True), NodeLease(boot="b", cordoned=True)],
    ids=["none", "draining", "cordoned"],
)
def test_where_no_other_node_takes_agents_nobody_waits(elsewhere: NodeLease | None) -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a", elsewhere=elsewhere)
        await others(it.node).create(node_key("n9"), b"no lease")
        await it.give_up_all()
        left, took = await it.wait()
        assert left == set() and took < 0.1

    leaving(story)


def test_where_nobody_knows_of_other_nodes_nobody_waits() -> None:
    async def story(it: Leaving) -> None:
        await it.begin("a")
        await it.give_up_all()
        it.node.faults.leaderless.add(it.node.subjects.stream("registry"))
        left, took = await it.wait()
        assert left == set() and took < 0.1

    leaving(story)


def test_without_agents_there_is_nothing_to_ask() -> None:
    async def story(it: Leaving) -> None:
        await it.begin()
        await it.give_up_all()
        it.node.transport.requests.clear()
        left, _ = await it.wait()
        assert left == set() and it.node.transport.requests == []

    leaving(story)


def test_closed_it_follows_nothing_more() -> None:
    async def story(it: Leaving) -> None:
        await it.handover.close()  # before it has begun: nothing
        await it.begin("a")
        await it.give_up_all()
        await it.handover.close()
        await it.node.transport.flush()
        await place(it.node, "a", on="n2")
        left, _ = await it.wait(1.0)
        assert left == {"a"}

    leaving(story)
