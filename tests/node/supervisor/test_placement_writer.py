"""Carrying plans out against a registry that others write too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.registry import Entry, Registry
from agentmesh.edge.streams import ensure
from agentmesh.planner import Place, Plan, Remove, Unplaced
from agentmesh.registry_values import NodeLease, Placement, Spec
from agentmesh.subjects import Subjects, node_key, placement_key, spec_key
from agentmesh.wire import encode
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.placement_writer import PlacementWriter
from agentmesh_node.supervisor.registry_index import RegistryIndex
from support import Server, connected, run

LIFE = encode(Placement(incarnation="l1"))


class Rig:
    """A registry, a index and a `PlacementWriter` over both."""

    def __init__(self, transport: NatsTransport, subjects: Subjects) -> None:
        self.transport = transport
        self.may_act = True
        self.registry = Registry(transport, subjects)
        self.index = RegistryIndex()
        self.writer = PlacementWriter(
            self.registry,
            self.index,
            DecisionLog(transport, subjects, "s1", time.time),
            in_flight=4,
            may_act=lambda: self.may_act,
        )

    async def live(self, *nodes: str) -> None:
        """Let these nodes have a lease."""
        for node in nodes:
            await self.write(node_key(node), encode(NodeLease(boot="b")))

    async def write(self, key: str, value: bytes, *, seen: bool = True) -> int:
        revision = await self.registry.create(key, value)
        if seen:
            self.index.observe(Entry(key, value, revision))
        return revision

    async def exists(self, node: str, agent: str = "a") -> bool:
        return await self.registry.get(placement_key(node, agent)) is not None


@contextlib.asynccontextmanager
async def bench(server: Server, subjects: Subjects) -> AsyncIterator[Rig]:
    async with connected(server.url) as transport:
        await ensure(transport, subjects)
        yield Rig(transport, subjects)


def place(node: str, revision: int = 0, agent: str = "a") -> Place:
    return Place(agent, node, "l1", revision, None, "because")


def test_a_move_places_first_and_then_removes_and_the_census_knows_at_once(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with bench(server, subjects) as it:
            await it.live("n1", "n2")
            old = await it.write(placement_key("n1", "a"), LIFE)
            assert await it.writer.carry_out(Plan(place=(place("n2"),), remove=(Remove("a", "n1", old, "moved"),)))
            assert await it.exists("n2")
            assert not await it.exists("n1")
            assert it.index.placements["a"].keys() == {"n2"}
            assert it.index.placements["a"]["n2"].revision > old

    run(scenario())


def test_what_a_dead_node_leaves_behind_is_removed_later_and_some_at_a_time(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with bench(server, subjects) as it:
            await it.live("n2")
            names = ("a", "b", "c")
            old = {name: await it.write(placement_key("n1", name), LIFE) for name in names}
            moves = tuple(place("n2", agent=name) for name in names)
            leftovers = tuple(Remove(name, "n1", old[name], "n1 is gone") for name in names)
            assert await it.writer.carry_out(Plan(place=moves, remove=leftovers))
            assert [await it.exists("n2", name) for name in names] == [True] * 3
            assert [await it.exists("n1", name) for name in names] == [True] * 3, "agents that wait for a placement come first"
            assert await it.writer.tidy(2)
            assert [await it.exists("n1", name) for name in names] == [False, False, True]
            await it.registry.update(placement_key("n1", "c"), LIFE, old["c"])
            assert it.writer.untidy
            assert not await it.writer.tidy(2), "it was written again meanwhile: that needs another plan"
            assert await it.exists("n1", "c")
            assert "c" in it.index.take_dirty(10)
            assert not it.writer.untidy

    run(scenario())


def test_whoever_could_not_be_placed_keeps_what_it_has_and_the_truth_is_learnt(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with bench(server, subjects) as it:
            old = await it.write(placement_key("n1", "a"), LIFE)
            unseen = await it.write(placement_key("n2", "a"), LIFE, seen=False)
            it.index.take_dirty(10)
            assert not await it.writer.carry_out(Plan(place=(place("n2"),), remove=(Remove("a", "n1", old, "moved"),)))
            assert await it.exists("n1")
            assert it.index.placements["a"]["n2"].revision == unseen
            assert it.index.take_dirty(10) == {"a"}

    run(scenario())


def test_a_placement_that_has_changed_is_not_removed(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with bench(server, subjects) as it:
            await it.live("n1")
            key = placement_key("n1", "a")
            old = await it.write(key, LIFE)
            newer = await it.registry.update(key, LIFE, old)
            assert not await it.writer.carry_out(Plan(remove=(Remove("a", "n1", old, "stopped"),)))
            assert it.index.placements["a"]["n1"].revision == newer
            gone = Remove("b", "n1", 1, "it was deleted by somebody else meanwhile")
            assert not await it.writer.carry_out(Plan(remove=(gone,)))
            assert "b" not in it.index.placements

    run(scenario())


def test_a_former_leader_writes_nothing_more(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with bench(server, subjects) as it:
            it.may_act = False
            assert not await it.writer.carry_out(Plan(place=(place("n1"), place("n1", agent="b"))))
            assert not await it.exists("n1")
            assert it.index.take_dirty(10) == {"a", "b"}

    run(scenario())


def test_without_a_connection_everything_is_left_to_be_planned_again(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with bench(server, subjects) as it:
            await it.transport.close()
            many = tuple(place("n1", agent=f"a{number}") for number in range(20))
            assert not await it.writer.carry_out(Plan(place=many))
            assert len(it.index.take_dirty(100)) == 20

    run(scenario())


def test_a_reason_is_written_once_and_never_over_a_newer_spec(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with bench(server, subjects) as it:
            wait = Unplaced("a", "no node is live")
            first = await it.write(spec_key("a"), encode(Spec(kind="A", incarnation="l1")))
            assert await it.writer.write_reasons([wait])
            told = it.index.revision(spec_key("a"))
            assert told > first
            assert await it.writer.write_reasons([wait])
            assert it.index.revision(spec_key("a")) == told

            stopping = encode(Spec(kind="A", incarnation="l1", status="stopping"))
            await it.registry.update(spec_key("a"), stopping, told)
            assert not await it.writer.write_reasons([Unplaced("a", "another reason")])
            assert it.index.specs["a"].status == "stopping"
            assert await it.writer.write_reasons([Unplaced("a", "another reason")])
            assert it.index.specs["a"].reason is None

    run(scenario())
