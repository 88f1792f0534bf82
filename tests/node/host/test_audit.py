"""Mail that was missed is found, and so is what the store has lost: round after round, a group of agents at a time."""

from __future__ import annotations

import itertools
import logging

import pytest

from agentmesh.edge.read import StoredMessage
from agentmesh.wire import Mail
from agentmesh_node.host.audit import Audit
from agentmesh_node.host.work_scan import GROUP
from agentmesh_node.owner.mailbox import Mailbox
from agentmesh_node.store_loss import Acknowledged
from node.simulated import SimulatedNode, simulate

PERIOD_S = 60.0


class Agents:
    """The agents of a node as its audit sees them, and what it does to them."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self.placed: dict[str, Mailbox | None] = {}
        self.delivered: list[tuple[str, Mail]] = []
        self.woken: list[tuple[float, str]] = []
        self.loaded: dict[str, Acknowledged] = {}
        self.lost: list[str] = []
        self.held: list[tuple[str, int]] = []
        """What awake agents were told to be stored of mail that they have seen."""
        self.audit = Audit(
            node.services,
            lambda: list(self.placed.items()),
            lambda name: self.woken.append((node.loop.time(), name)),
            lambda: self.loaded,
            self.lost.append,
            period_s=PERIOD_S,
        )

    async def load(self, name: str) -> None:
        """An awake agent that has read its lanes; it hears no copies, as if all of them were lost."""

        def deliver(mail: tuple[Mail, ...]) -> None:
            self.delivered.extend((name, item) for item in mail)

        mailbox = Mailbox(self._node.transport, self._node.subjects, name, {}, deliver, stored=self._on_stored)
        await mailbox.caught_up()
        self.placed[name] = mailbox

    def _on_stored(self, lane: str, messages: list[StoredMessage]) -> None:
        if messages:
            self.held.append((lane, len(messages)))

    def names_woken(self) -> list[str]:
        return [name for _, name in self.woken]


def test_sleepers_with_work_are_woken_and_the_others_sleep_on() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        agents.placed = {"rests": None, "mailed": None, "broke off": None}
        await node.record("rests", "rest", {"inbox": await node.mail("rests")})
        await node.record("mailed", "rest", {"inbox": await node.mail("mailed")})
        await node.mail("mailed")
        agents.audit.start()
        await node.until(lambda: len(agents.woken) >= 2, "the sleepers are woken")
        assert sorted(agents.names_woken()) == ["broke off", "mailed"]
        await agents.audit.close()

    simulate(story)


def test_an_awake_agent_reads_what_no_copy_told_it() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        await agents.load("a")
        await agents.load("b")
        mail, due = await node.mail("a"), await node.mail("b", lane="due")
        agents.audit.start()
        await node.until(lambda: len(agents.delivered) == 2, "the mail is read")
        assert [(name, m.lane, m.seq) for name, m in agents.delivered] == [("a", "inbox", mail), ("b", "due", due)]
        told = node.logged("mail was missed", logging.WARNING)
        assert [(r.__dict__["agent"], r.__dict__["lane"], r.__dict__["seq"]) for r in told] == [
            ("a", "inbox", mail),
            ("b", "due", due),
        ]
        await node.pass_time(PERIOD_S + 1)
        assert len(node.logged("mail was missed")) == 2, "what is known by then is not missed again"
        assert agents.woken == []
        await agents.audit.close()

    simulate(story)


def test_each_round_reaches_every_agent_a_group_at_a_time() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        names = [f"a{number}" for number in range(2 * GROUP + 1)]
        agents.placed = dict.fromkeys(names)
        agents.audit.start()
        await node.until(lambda: len(agents.woken) >= 2 * len(names), "two rounds", seconds=3 * PERIOD_S)
        await agents.audit.close()
        first, second = agents.woken[: len(names)], agents.woken[len(names) : 2 * len(names)]
        assert sorted(name for _, name in first) == sorted(name for _, name in second) == sorted(names)
        looks = sorted({round(at, 1) for at, _ in first})
        assert len(looks) == 3
        assert all(PERIOD_S / 3 <= later - earlier < PERIOD_S / 3 + 1 for earlier, later in itertools.pairwise(looks))

    simulate(story)


def test_an_agent_that_comes_later_is_in_the_next_round() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        agents.audit.start()
        await node.pass_time(PERIOD_S / 2)
        agents.placed = {"new": None}
        await node.until(lambda: agents.woken, "the new agent is looked at", seconds=PERIOD_S)
        await agents.audit.close()

    simulate(story)


def test_a_loaded_agent_of_which_the_store_has_less_is_told() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        mail = await node.mail("whole")
        agents.loaded = {
            "whole": Acknowledged(await node.record("whole"), {"inbox": mail}),
            "records": Acknowledged(100, {"inbox": mail}),
            "mail": Acknowledged(await node.record("mail"), {"inbox": mail + 100}),
        }
        await agents.audit.check_store()
        assert agents.lost == ["mail", "records"]
        agents.lost.clear()
        agents.audit.start()
        await node.until(lambda: agents.lost, "each round looks")
        assert agents.lost == ["mail", "records"]
        await agents.audit.close()

    simulate(story)


def test_what_cannot_be_told_now_harms_nobody_and_is_looked_at_in_the_next_round() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        agents.placed, agents.loaded = {"asleep": None}, {"loaded": Acknowledged(100, {})}
        await node.stop_server()
        agents.audit.start()
        await node.until(lambda: node.logged("self-check not possible"), "a look fails")
        assert node.logged("the store cannot be checked")
        assert (agents.woken, agents.lost) == ([], [])
        await node.start_server()
        await node.until(lambda: agents.woken and agents.lost, "the next round", seconds=PERIOD_S + 5)
        await agents.audit.close()

    simulate(story)


@pytest.mark.case(283)
def test_lanes_that_are_half_full_are_read_anew_and_sleepers_are_woken_for_it() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        for name in ("awake", "roomy", "asleep"):
            for _ in range(3 if name == "roomy" else 4):
                await node.mail(name)
        await agents.load("awake")
        await agents.load("roomy")
        agents.placed["asleep"] = None
        node.faults.leaderless.add(node.subjects.stream("mail"))
        await agents.audit.check_lanes()
        assert node.logged("mail cannot be counted") and agents.held == []
        node.faults.leaderless.clear()
        agents.audit.start()
        await node.until(lambda: agents.held and agents.woken, "the next round counts")
        assert agents.held == [("inbox", 4)] and agents.names_woken()[0] == "asleep"
        await agents.audit.close()

    simulate(story, mailbox_limit=8)


def test_closed_it_looks_no_more() -> None:
    async def story(node: SimulatedNode) -> None:
        agents = Agents(node)
        agents.placed = {"asleep": None}
        await agents.audit.close()  # before it has begun: nothing
        agents.audit.start()
        await node.until(lambda: agents.woken, "the first round")
        await agents.audit.close()
        asked, woken = len(node.transport.requests), len(agents.woken)
        await node.pass_time(2 * PERIOD_S)
        assert (len(node.transport.requests), len(agents.woken)) == (asked, woken)
        await agents.audit.close()

    simulate(story)
