"""The probes of an agent that waits for others in mid-turn: when they are sent, which are handed on, and what a return
proves."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import pytest
from msgspec import structs

from agentmesh.control_values import ControlRequest, Probe
from agentmesh.edge.transport import Message
from agentmesh.records import Caller, Ledger, Turning, Wait
from agentmesh.turn.step_values import Circled
from agentmesh.turn.values import Active, Phase
from agentmesh.wire import Outcome
from agentmesh_node.owner.cycle_probes import MEMORY, PROBE_PAUSES, CycleProber
from node.owner.noting_loop import AGENT, NotingLoop
from node.simulated import SimulatedNode, simulate

ANSWER = Outcome(agent="b", ref="7", ok=True, text="found")
WAIT = Wait(agent="b", since=10.0, deadline=1e12, origin="1.5.0")
HELD = Caller(ref="1", sender="z", tag="9.9.0", path=("z",))
"""The request that the waiting turn answers: `z` waits for it."""


class Waiting:
    """The prober of agent `a`, whose turn waits; and the probes that other agents get."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.notes = NotingLoop(node)
        self.waits = True
        """Whether the running turn waits for an agent."""
        self.sent: list[tuple[float, str, Probe]] = []
        """When a probe reached whom."""
        self.prober = CycleProber(self.notes.loop, node.services, waiting=lambda: self.waits)
        self.began = node.loop.time()

    async def listen(self) -> None:
        """Hear what other agents are sent."""
        await self.node.others.subscribe(self.node.subjects.control("*"), self._heard)
        await self.node.others.flush()
        self.began = self.node.loop.time()

    def _heard(self, message: Message) -> None:
        request = msgspec.json.decode(message.data, type=ControlRequest)
        assert request.op == "probe" and request.probe is not None and not message.reply
        self.sent.append((self.node.loop.time() - self.began, message.subject.rpartition(".")[2], request.probe))

    def wait_for(self, waits: Mapping[str, Wait], *, caller: Caller | None = HELD) -> None:
        """The running turn waits so."""
        ledger = Ledger(
            incarnation="life", phase="ready", waits=dict(waits), turning=Turning(key="inbox:1", number=1, prompt="p")
        )
        active = Active(ref="1", key="inbox:1", number=1, text="p", started=0.0, caller=caller)
        self.notes.become(ledger=ledger, work=ledger, active=active, phase=Phase.TURN)

    def probes(self) -> list[Probe]:
        return [probe for _, _, probe in self.sent]

    async def until_sent(self, count: int) -> None:
        await self.node.until(lambda: len(self.sent) >= count, f"{count} probes")

    def come_back(self, probe: Probe) -> None:
        """The probe has gone around: `z`, which waits for this agent, hands it on."""
        self.prober.received(structs.replace(probe, sender="z", request="9.9.0"))

    @property
    def circles(self) -> list[Circled]:
        return [item for item in self.notes.inputs if isinstance(item, Circled)]


def waiting(story: Callable[[Waiting], Awaitable[None]]) -> None:
    async def main(node: SimulatedNode) -> None:
        it = Waiting(node)
        it.notes.begin()
        await it.listen()
        await story(it)
        await it.notes.loop.close()

    main.__name__ = story.__name__
    simulate(main)


# --- its own probes -------------------------------------------------------------------------------------------------
def test_a_wait_that_lasts_is_probed() -> None:
    async def story(it: Waiting) -> None:
        other = structs.replace(WAIT, agent="c", since=20.0, origin="1.6.0")
        answered = structs.replace(WAIT, agent="d", outcome=ANSWER)
        it.wait_for({"one": WAIT, "two": other, "over": answered, "unsent": structs.replace(WAIT, origin="")})
        it.prober.arm()
        await it.until_sent(2)
        (at, to_b, first), (_, to_c, second) = it.sent
        assert (to_b, to_c) == ("b", "c") and at >= PROBE_PAUSES.first_s
        assert (first.root, first.sender, first.since, first.origin, first.request) == (AGENT, AGENT, 10.0, "1.5.0", "1.5.0")
        assert (second.since, second.origin, second.request) == (20.0, "1.6.0", "1.6.0")
        assert first.id != second.id

    waiting(story)


def test_rounds_go_on_as_long_as_the_wait_ever_more_slowly() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        it.prober.arm()
        await it.until_sent(9)
        times = [at for at, _, _ in it.sent]
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(0.9 * a <= b for a, b in itertools.pairwise(pauses))
        assert pauses[0] < 0.3 and abs(pauses[-1] - PROBE_PAUSES.longest_s) < 0.1
        assert len({probe.id for probe in it.probes()}) == 9
        it.waits = False
        await it.node.pass_time(3 * PROBE_PAUSES.longest_s)
        assert len(it.sent) == 9

    waiting(story)


def test_a_wait_that_is_over_soon_costs_nothing() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        it.prober.arm()
        await it.node.pass_time(PROBE_PAUSES.first_s / 2)
        it.waits = False
        await it.node.pass_time(10.0)
        assert it.sent == []

    waiting(story)


def test_a_new_wait_is_probed_soon_although_an_older_one_has_lasted_long() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        it.prober.arm()
        await it.until_sent(9)
        it.wait_for({"one": WAIT, "two": structs.replace(WAIT, agent="c", since=20.0, origin="1.6.0")})
        it.prober.arm()
        it.prober.arm()
        armed = it.node.loop.time() - it.began
        await it.until_sent(11)
        assert [to for _, to, _ in it.sent[9:]] == ["b", "c"] and it.sent[9][0] - armed < PROBE_PAUSES.first_s + 0.1
        await it.node.pass_time(79 * PROBE_PAUSES.first_s)
        rounds = len(it.sent[9:]) // 2
        assert rounds == 7, "its pauses begin anew, each twice the one before, and there is one round at a time"

    waiting(story)


def test_an_owner_that_is_closed_probes_no_more() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        it.prober.arm()
        await it.until_sent(1)
        await it.notes.loop.close()
        await it.node.pass_time(10.0)
        assert len(it.sent) == 1

    waiting(story)


# --- a probe comes back ---------------------------------------------------------------------------------------------
def test_a_circle_is_proven_by_a_second_probe() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        it.prober.arm()
        await it.until_sent(1)
        it.come_back(it.probes()[0])
        assert it.circles == [], "it may have broken since"
        await it.node.until(lambda: len(it.sent) == 2, "the proof is sent at once", seconds=0.05)
        again = it.probes()[1]
        assert again.id != it.probes()[0].id and again.origin == WAIT.origin
        it.come_back(again)
        await it.node.pass_time(0)
        assert it.circles == [Circled("one", WAIT.origin)]
        it.come_back(again)
        it.come_back(it.probes()[0])
        await it.node.pass_time(0)
        assert len(it.circles) == 1, "each counts once"

    waiting(story)


def test_what_comes_back_proves_nothing_where_the_request_along_which_it_came_is_not_held() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT}, caller=None)
        it.prober.arm()
        await it.until_sent(1)
        it.come_back(it.probes()[0])
        await it.node.pass_time(PROBE_PAUSES.first_s / 2)
        assert len(it.sent) == 1
        it.wait_for({"one": WAIT})
        it.come_back(it.probes()[0])
        await it.node.until(lambda: len(it.sent) == 2, "it is held now", seconds=0.05)

    waiting(story)


@pytest.mark.parametrize(
    "now", [structs.replace(WAIT, outcome=ANSWER), structs.replace(WAIT, origin="2.1.0")], ids=["over", "another"]
)
def test_a_wait_that_is_over_or_another_one_by_now_is_not_ended(now: Wait) -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        it.prober.arm()
        await it.until_sent(1)
        it.waits = False
        it.wait_for({"one": now})
        it.come_back(it.probes()[0])
        await it.node.pass_time(1.0)
        assert len(it.sent) == 1 and it.circles == []

    waiting(story)


def test_a_strangers_probe_in_this_agents_name_proves_nothing() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        it.come_back(Probe(id="guessed", root=AGENT, since=10.0, origin=WAIT.origin, sender=AGENT, request=WAIT.origin))
        await it.node.pass_time(1.0)
        assert it.sent == [] and it.circles == []

    waiting(story)


# --- probes of others -----------------------------------------------------------------------------------------------
def of_another(id: str = "p1", since: float = 15.0) -> Probe:
    """A probe that `z` hands on, for a wait of `y` that began at `since`."""
    return Probe(id=id, root="y", since=since, origin="5.5.0", sender="z", request="9.9.0")


def test_it_is_handed_on_once_along_older_waits() -> None:
    async def story(it: Waiting) -> None:
        younger = structs.replace(WAIT, agent="c", since=20.0, origin="1.6.0")
        it.wait_for({"one": WAIT, "two": younger})
        it.prober.received(of_another())
        it.prober.received(of_another())
        await it.node.pass_time(1.0)
        ((_, to, probe),) = it.sent
        assert to == "b" and probe == structs.replace(of_another(), sender=AGENT, request=WAIT.origin)
        it.prober.received(of_another("p2", since=30.0))
        await it.node.pass_time(1.0)
        assert sorted(to for _, to, _ in it.sent[1:]) == ["b", "c"]

    waiting(story)


def test_what_could_not_be_handed_on_yet_is_when_it_comes_again() -> None:
    async def story(it: Waiting) -> None:
        it.prober.received(of_another())  # its turn does not wait yet
        it.wait_for({"one": WAIT}, caller=None)
        it.prober.received(of_another())  # it has not got the request yet
        await it.node.pass_time(1.0)
        assert it.sent == []
        it.wait_for({"one": WAIT})
        it.prober.received(of_another())
        await it.node.until(lambda: len(it.sent) == 1, "it is handed on")

    waiting(story)


def test_before_its_owner_has_begun_nothing_is_handed_on() -> None:
    async def story(node: SimulatedNode) -> None:
        it = Waiting(node)
        await it.listen()
        it.prober.received(of_another())
        it.prober.arm()
        await node.pass_time(1.0)
        assert it.sent == []

    simulate(story)


def test_only_so_many_probes_are_remembered() -> None:
    async def story(it: Waiting) -> None:
        it.wait_for({"one": WAIT})
        for number in range(MEMORY + 1):
            it.prober.received(of_another(f"p{number}"))
        await it.until_sent(MEMORY + 1)
        it.prober.received(of_another("p1"))
        await it.node.pass_time(0.1)
        assert len(it.sent) == MEMORY + 1
        it.prober.received(of_another("p0"))
        await it.node.until(lambda: len(it.sent) == MEMORY + 2, "the oldest is forgotten")

    waiting(story)
