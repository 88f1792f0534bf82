"""Mail for nobody is found, and ended when it is old, or when there is too much of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agentmesh import wire
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Entry
from agentmesh.registry_values import AgentStatus
from agentmesh.subjects import LANES, spec_key
from agentmesh.wire import encode
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor import unclaimed_table
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.registry_index import RegistryIndex
from agentmesh_node.supervisor.unclaimed_mail import UnclaimedMailFinder
from agentmesh_node.supervisor.unclaimed_table import OVERHEAD
from node.simulated import SimulatedNode, simulate

AGE_S = 100.0


class Look:
    """One that looks, and what its supervisor knows."""

    def __init__(self, node: SimulatedNode, *, name: str = "s1", ahead_s: float = 0.0, **settings: float) -> None:
        self.node = node
        self.index = RegistryIndex()
        self.leads = True
        self.reads_all = True
        node.world.ahead[name] = ahead_s
        ambient = node.world.ambient(name)
        self.part = UnclaimedMailFinder(
            node.transport,
            node.subjects,
            node.registry,
            DecisionLog(node.transport, node.subjects, name, ambient.now),
            SupervisorSettings(**{"unclaimed_age_s": AGE_S, **settings}),  # type: ignore[arg-type]
            is_known=lambda agent: self.index.revision(spec_key(agent)) > 0,
            may_act=lambda: self.leads,
            reads_all=lambda: self.reads_all,
            ambient=ambient,
        )

    async def spec(self, agent: str, status: AgentStatus = "wanted") -> None:
        spec = await self.node.spec(agent, status=status)
        self.index.observe(Entry(spec_key(agent), encode(spec), 9))

    def dead(self, agent: str) -> list[bytes]:
        return [message.data for message in self.node.stored(self.node.subjects.dead(agent))]

    def lane(self, agent: str) -> list[int]:
        lanes = {self.node.subjects.lane(lane, agent) for lane in LANES}
        return [message.seq for message in self.node.stream("mail").live() if message.subject in lanes]

    def error(self, agent: str, ref: int) -> str | None:
        """The code of the outcome that is stored."""
        stored = self.node.stored(self.node.subjects.result(agent, str(ref)))
        if not stored:
            return None
        outcome = wire.decode_outcome(stored[0].data)
        return outcome.error.code if outcome.error is not None else "ok"


@asynccontextmanager
async def running(look: Look) -> AsyncIterator[None]:
    task = look.node.world.process("others").spawn(look.part.run())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.case(290)
@pytest.mark.parametrize("ahead_s", [-7200.0, 0.0, 7200.0])
def test_mail_for_nobody_is_ended_at_its_age_by_the_servers_times(ahead_s: float) -> None:
    async def story(node: SimulatedNode) -> None:
        look = Look(node, ahead_s=ahead_s)
        prompt = await node.mail("a", b"hello")
        await node.mail("a", b'{"e": 1}', lane="notify")
        async with running(look):
            await node.pass_time(AGE_S - 15.0)
            assert look.lane("a") == [1, 2]
            assert look.dead("a") == []
            later = await node.mail("a", b"later")
            await node.until(lambda: look.error("a", prompt), "it is answered", 40.0)
            await node.until(lambda: look.lane("a") == [later], "what is ended is purged, and what is younger stays")
        assert look.error("a", prompt) == "not_found"
        assert look.dead("a") == [b"hello", b'{"e": 1}']
        assert look.error("a", later) is None

    simulate(story)


@pytest.mark.parametrize("status", ["wanted", "running", "failed", "stopping", "stopped"])
def test_mail_for_a_name_with_a_spec_of_any_status_is_not_meant(status: AgentStatus) -> None:
    async def story(node: SimulatedNode) -> None:
        look = Look(node)
        await node.mail("a")
        await look.spec("a", status)
        await node.mail("b")
        await node.spec("b", status=status)  # this supervisor has not heard of it yet
        async with running(look):
            await node.pass_time(3 * AGE_S)
        assert look.lane("a") == [1]
        assert look.lane("b") == [2]
        assert node.stored(node.subjects.journal("a")) == node.stored(node.subjects.journal("b")) == []

    simulate(story)


@pytest.mark.parametrize("lagging", [lambda look: setattr(look, "leads", False), lambda look: setattr(look, "reads_all", False)])
def test_only_the_leader_ends_it_and_only_where_every_process_reads_what_this_build_writes(lagging: object) -> None:
    async def story(node: SimulatedNode) -> None:
        look = Look(node)
        assert callable(lagging)
        lagging(look)
        await node.mail("a")
        async with running(look):
            await node.pass_time(2 * AGE_S)
            assert look.lane("a") == [1]
            look.leads = look.reads_all = True
            await node.until(lambda: look.dead("a"), "it is ended then")

    simulate(story)


@pytest.mark.case(292)
def test_beyond_the_bounds_of_names_and_bytes_the_oldest_mail_is_ended_first() -> None:
    async def story(node: SimulatedNode) -> None:
        look = Look(node, unclaimed_names=2, unclaimed_bytes=31_000 + 3 * OVERHEAD)
        for agent in ("a", "b", "c"):
            await node.mail(agent, b"x" * 10_000)
        assert await look.part.look() is False
        assert (look.lane("a"), look.lane("b"), look.lane("c")) == ([], [2], [3])
        assert look.error("a", 1) == "not_found"
        for _ in range(3):
            await node.mail("c", b"x" * 10_000)
        await look.part.look()
        assert (look.lane("b"), look.lane("c")) == ([], [4, 5, 6])

    simulate(story)


@pytest.mark.case(292)
def test_beyond_the_bounds_the_oldest_dead_letters_of_such_mail_go_too() -> None:
    async def story(node: SimulatedNode) -> None:
        look = Look(node, unclaimed_names=1, unclaimed_bytes=100_000)
        await store(node.others, node.subjects.dead("a"), b"of an agent", headers={"Mesh-Reason": "bad_request"})
        for agent in ("a", "b", "c", "d"):
            await node.mail(agent, agent.encode())
        await look.part.look()
        assert look.lane("d") == [4], "the youngest name stays"
        assert [look.dead(agent) for agent in "abc"] == [[b"of an agent"], [], [b"c"]]

    simulate(story)


def test_names_that_are_too_many_for_one_look_follow_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unclaimed_table, "MOST_READ", 2)

    async def story(node: SimulatedNode) -> None:
        look = Look(node, unclaimed_names=0)
        for agent in ("a", "b", "c"):
            await node.mail(agent)
        assert await look.part.look() is True
        assert await look.part.look() is False
        assert [look.lane(agent) for agent in "abc"] == [[], [], []]

    simulate(story)


def test_what_a_leader_that_died_has_begun_is_finished_at_once_by_the_next() -> None:
    async def story(node: SimulatedNode) -> None:
        look = Look(node)
        seq = await node.mail("a", b"hello")
        await node.pass_time(AGE_S + 1.0)
        results = node.subjects.stream("result")
        node.faults.leaderless.add(results)
        await look.part.look()  # the record stands, the outcome cannot be stored
        assert node.logged("mail for nobody cannot be ended now", logging.WARNING)
        assert look.error("a", seq) is None
        node.faults.leaderless.discard(results)
        other = Look(node, name="s2", unclaimed_age_s=3600.0)  # its own bounds do not ask for it
        await other.part.look()
        assert other.error("a", seq) == "not_found"
        assert other.lane("a") == []
        assert other.dead("a") == [b"hello"]

    simulate(story)


def test_subjects_that_are_no_names_are_no_filters() -> None:
    async def story(node: SimulatedNode) -> None:
        look = Look(node, unclaimed_names=0)
        await look.spec("a", "running")
        await node.mail("a")
        await store(node.others, f"{node.subjects.root}.inbox.*", b"x")
        await store(node.others, f"{node.subjects.root}.inbox.>", b"x")
        await look.part.look()
        assert look.lane("a") == [1]

    simulate(story)
