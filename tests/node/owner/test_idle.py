"""When an agent rests, when it sleeps, and what it waits for before it is handed over. All times are virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentmesh.edge.read import StoredMessage, read_all
from agentmesh.records import NOTHING, Ledger, Open, StopAgent
from agentmesh.turn.values import Active, Input, Phase, Rest, Retire, Tick
from agentmesh_node.owner.idle import SETTLE_S, IdleTracker
from agentmesh_node.owner.mail_purge import MailPurger
from agentmesh_node.services import CROWDED_REST_S
from node.owner.noting_loop import AGENT, NotingLoop
from node.simulated import SimulatedNode, simulate
from support import never_sent

REST_S = 1.0
PASSIVATE_S = 30.0
ACTIVE = Active(ref="1", key="inbox:1", number=1, text="hello", started=0.0)


class Agent:
    """An idle agent, whose machine writes the `rest` record that it is asked for, and the tracker of its rest."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.notes = NotingLoop(node)
        self.purger = MailPurger(self.notes.loop, node.services)
        self.may_rest = True
        self.may_sleep = True
        self.asleep: list[float] = []
        """When it was found to have been at rest for long enough."""
        self.rested: list[float] = []
        """When it was asked to write that there is nothing to do."""
        self.tracker = IdleTracker(
            self.notes.loop,
            node.services,
            self.purger,
            may_rest=lambda: self.may_rest,
            may_sleep=lambda: self.may_sleep,
            on_sleep=lambda: self.asleep.append(self.now()),
        )
        self.notes.noticed = self.tracker.on_input
        self.notes.react = self._react
        self.writes = True
        """Whether the machine writes when it is asked to rest."""
        self.began = self.now()

    def now(self) -> float:
        return self.node.loop.time()

    def age(self, times: list[float]) -> list[float]:
        """Those times, counted from the beginning."""
        return [at - self.began for at in times]

    def _react(self, item: Input) -> None:
        if isinstance(item, Rest):
            self.rested.append(self.now())
            if self.writes:
                self.notes.become(record="rest")

    def stir(self) -> None:
        """Something comes in, and the agent has a record about it."""
        self.notes.loop.feed(Tick())
        self.notes.become(record="turn")


def resting(story: Callable[[Agent], Awaitable[None]], core: dict[str, Any] | None = None, **settings: Any) -> None:
    async def main(node: SimulatedNode) -> None:
        agent = Agent(node)
        agent.notes.begin(**(core or {}))
        agent.tracker.arm()
        await story(agent)
        await agent.notes.loop.close()

    main.__name__ = story.__name__
    simulate(main, **{"rest_s": REST_S, "passivate_s": PASSIVATE_S, **settings})


# --- rest -----------------------------------------------------------------------------------------------------------
def test_an_idle_agent_rests_once_and_sleeps_later() -> None:
    async def story(it: Agent) -> None:
        await it.node.until(lambda: it.asleep, "it sleeps", seconds=2 * PASSIVATE_S)
        (rested,), (asleep,) = it.age(it.rested), it.age(it.asleep)
        # The record that it rests is an input too, from which its rest is counted.
        assert REST_S <= rested < REST_S + 0.1
        assert rested + PASSIVATE_S <= asleep < rested + PASSIVATE_S + REST_S + 0.1

    resting(story)


@pytest.mark.parametrize(
    "core", [{"active": ACTIVE}, {"phase": Phase.TURN}, {"phase": Phase.FAILED}], ids=["active", "turn", "failed"]
)
def test_an_agent_that_has_something_to_do_does_not_rest(core: dict[str, Any]) -> None:
    async def story(it: Agent) -> None:
        await it.node.pass_time(10 * REST_S)
        assert it.rested == []
        it.notes.become(active=None, phase=Phase.IDLE)
        await it.node.until(lambda: it.rested, "it rests then", seconds=2 * REST_S)

    resting(story, core)


def test_while_things_come_in_it_does_not_rest() -> None:
    async def story(it: Agent) -> None:
        for _ in range(10):
            await it.node.pass_time(0.8 * REST_S)
            it.stir()
        assert it.rested == []
        last = it.now()
        await it.node.until(lambda: it.rested, "it rests then", seconds=3 * REST_S)
        assert it.rested[0] - last >= REST_S

    resting(story)


def test_a_rest_that_was_not_written_is_asked_for_again() -> None:
    async def story(it: Agent) -> None:
        it.writes = False
        await it.node.until(lambda: len(it.rested) == 3, "it is asked again", seconds=10 * REST_S)
        it.writes = True
        await it.node.pass_time(PASSIVATE_S / 2)
        assert len(it.rested) == 4

    resting(story)


async def in_the_inbox(it: Agent) -> list[StoredMessage]:
    """What former owners have left there."""
    return await read_all(it.node.others, it.node.subjects.stream("mail"), it.node.subjects.inbox(AGENT))


def test_an_agent_whose_lane_is_crowded_does_not_rest() -> None:
    async def story(it: Agent) -> None:
        seqs = [await it.node.mail(AGENT) for _ in range(4)]
        it.notes.consume(inbox=seqs[-1])
        it.node.transport.inject(f"$JS.API.STREAM.PURGE.{it.node.subjects.stream('mail')}", never_sent)
        it.purger.stored("inbox", await in_the_inbox(it))
        await it.node.until(lambda: it.rested, "it rests once the lane is purged", seconds=10 * REST_S)
        assert it.node.stored(it.node.subjects.inbox(AGENT)) == []
        assert it.age(it.rested)[0] >= 2 * REST_S, "the first purge has failed"

    resting(story, mailbox_limit=8)


@pytest.mark.case(675)
def test_an_agent_whose_owners_before_are_not_told_of_does_not_rest_and_is_handed_over_without() -> None:
    async def story(it: Agent) -> None:
        it.may_rest = False
        await it.node.pass_time(5 * REST_S)
        assert not it.rested
        it.may_rest = True
        await it.node.until(lambda: it.rested, "it rests once they are")
        it.notes.consume()
        it.may_rest = False
        await asyncio.wait_for(it.tracker.retire(), 0.1)
        assert len(it.rested) == 1

    resting(story)


# --- sleep ----------------------------------------------------------------------------------------------------------
def test_what_comes_in_at_rest_begins_the_rest_anew() -> None:
    async def story(it: Agent) -> None:
        await it.node.pass_time(PASSIVATE_S / 2)
        it.stir()
        await it.node.pass_time(2 * REST_S)
        assert len(it.rested) == 2, "soon after it"
        await it.node.until(lambda: it.asleep, "it sleeps", seconds=2 * PASSIVATE_S)
        assert it.asleep[0] - it.rested[1] >= PASSIVATE_S
        await it.node.pass_time(2 * PASSIVATE_S)
        assert len(it.asleep) == 1

    resting(story)


def test_who_has_something_left_to_say_stays_loaded() -> None:
    async def story(it: Agent) -> None:
        it.may_sleep = False
        await it.node.pass_time(2 * PASSIVATE_S)
        assert it.asleep == []
        it.may_sleep = True
        await it.node.until(lambda: it.asleep, "it sleeps then", seconds=2 * REST_S)

    resting(story)


def test_where_too_many_are_awake_an_idle_agent_sleeps_almost_at_once() -> None:
    async def story(it: Agent) -> None:
        it.node.services.awake = 3
        await it.node.until(lambda: it.asleep, "it sleeps", seconds=REST_S + 5 * CROWDED_REST_S)

    resting(story, awake=2)


def test_mail_that_lingers_is_purged_before_its_agent_sleeps() -> None:
    async def story(it: Agent) -> None:
        seq = await it.node.mail(AGENT)
        it.notes.consume(inbox=seq)
        it.purger.stored("inbox", await in_the_inbox(it))
        window = it.node.services.duplicate_window_s
        await it.node.pass_time(window - 1)
        assert len(it.node.stored(it.node.subjects.inbox(AGENT))) == 1
        await it.node.until(lambda: not it.node.stored(it.node.subjects.inbox(AGENT)), "it goes", seconds=2 * REST_S + 4)
        assert it.asleep == []
        await it.node.until(lambda: it.asleep, "it sleeps", seconds=600.0)

    resting(story, passivate_s=300.0)


def test_an_owner_that_is_closed_neither_rests_nor_sleeps() -> None:
    async def story(it: Agent) -> None:
        await it.notes.loop.close()
        await it.node.pass_time(2 * PASSIVATE_S)
        assert it.rested == it.asleep == []

    resting(story)


# --- handing over ---------------------------------------------------------------------------------------------------
def retiring(it: Agent) -> asyncio.Task[None]:
    return asyncio.ensure_future(it.tracker.retire())


def test_an_idle_agent_is_ready_at_once_and_its_journal_says_that_it_rests() -> None:
    async def story(it: Agent) -> None:
        await asyncio.wait_for(it.tracker.retire(), 0.1)
        assert it.notes.inputs == [Retire(), Rest()]

    resting(story)


def test_a_running_turn_is_waited_for() -> None:
    async def story(it: Agent) -> None:
        retire = retiring(it)
        await it.node.pass_time(10.0)
        assert not retire.done() and it.notes.inputs == [Retire()]
        it.notes.become(active=None)
        await asyncio.wait_for(retire, 0.1)
        assert it.notes.inputs == [Retire(), Rest()]

    resting(story, {"active": ACTIVE})


def with_effects(count: int) -> Ledger:
    effects = {f"1.1.{n}": Open(StopAgent(name="b"), "nonce", 0.0) for n in range(count)}
    return Ledger(incarnation="life", phase="ready", effects=effects, state=NOTHING)


def test_effects_under_way_get_a_moment() -> None:
    async def story(it: Agent) -> None:
        ledger = with_effects(2)
        it.notes.become(ledger=ledger, work=ledger, done=("1.1.0",))
        retire = retiring(it)
        await it.node.pass_time(SETTLE_S / 2)
        assert not retire.done() and it.notes.inputs == [Retire()]
        it.notes.become(done=("1.1.0", "1.1.1"))
        await asyncio.wait_for(retire, 0.1)

    resting(story)


def test_effects_that_take_longer_are_left_to_the_next_owner() -> None:
    async def story(it: Agent) -> None:
        ledger = with_effects(1)
        it.notes.become(ledger=ledger, work=ledger)
        began = it.now()
        await asyncio.wait_for(it.tracker.retire(), SETTLE_S + 0.2)
        assert it.now() - began >= SETTLE_S
        assert it.notes.inputs == [Retire(), Rest()]

    resting(story, rest_s=100.0)


def test_a_crowded_agent_is_handed_over_without_a_rest() -> None:
    async def story(it: Agent) -> None:
        seqs = [await it.node.mail(AGENT, msg_id=f"m{number}") for number in range(4)]
        it.notes.consume(inbox=seqs[-1])
        it.purger.stored("inbox", await in_the_inbox(it))
        await asyncio.wait_for(it.tracker.retire(), 0.1)
        ends = [item for item in it.notes.inputs if isinstance(item, Retire | Rest)]
        assert ends == [Retire()], "the ids of its mail are not remembered yet"

    resting(story, mailbox_limit=8)


@pytest.mark.parametrize("core", [{"active": ACTIVE}, {"ledger": with_effects(1)}], ids=["turn", "effects"])
def test_an_owner_that_ends_meanwhile_is_not_waited_for(core: dict[str, Any]) -> None:
    async def story(it: Agent) -> None:
        retire = retiring(it)
        await it.node.pass_time(0.2)
        assert not retire.done()
        await it.notes.loop.close()
        await asyncio.wait_for(retire, 0.1)

    resting(story, core)
