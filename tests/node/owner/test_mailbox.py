"""An agent's lanes as its owner follows them: each message once, in the order of its lane, whatever gets lost on the way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from agentmesh.edge.read import StoredMessage
from agentmesh.edge.transport import Message
from agentmesh.subjects import LANES, MAIL_LANES
from agentmesh.wire import DEADLINE, Mail
from agentmesh_node.owner.mailbox import PAGE, Mailbox
from node.simulated import SimulatedNode, simulate

AGENT = "a"


class Follower:
    """A mailbox, the copies that reach it, and what it has delivered."""

    def __init__(self, node: SimulatedNode, positions: Mapping[str, int] | None = None) -> None:
        self.node = node
        self.batches: list[tuple[Mail, ...]] = []
        self.held: list[tuple[str, list[int]]] = []
        """What it told of mail that had been seen before."""
        self.mailbox = Mailbox(node.transport, node.subjects, AGENT, positions or {}, self.batches.append, stored=self._on_stored)

    def _on_stored(self, lane: str, messages: list[StoredMessage]) -> None:
        self.held.append((lane, [message.seq for message in messages]))

    async def follow(self) -> None:
        """Hear of what is stored from now on, and read what was stored before."""
        await self.node.transport.subscribe(self.node.subjects.copies(AGENT), self.on_copy)
        await self.node.transport.flush()
        await self.mailbox.caught_up()

    def on_copy(self, message: Message) -> None:
        """One arrives."""
        lane, _ = self.node.subjects.parse_copy(message.subject) or ("", "")
        self.mailbox.on_copy(lane, message)

    def lose_copies(self, lane: str = "inbox") -> None:
        """Of what is stored in that lane now, no copy arrives."""
        self.node.faults.lost.add(self.copies_of(lane))

    def lose_no_more(self) -> None:
        self.node.faults.lost.clear()

    def copies_of(self, lane: str) -> str:
        return self.node.subjects.copies(AGENT).replace("*", lane)

    @property
    def delivered(self) -> list[tuple[str, int]]:
        return [(mail.lane, mail.seq) for batch in self.batches for mail in batch]

    def reads(self) -> int:
        """How often a lane was read from the store."""
        return sum(subject.startswith("$JS.API.DIRECT.GET") for subject in self.node.transport.requests)

    def copy(self, seq: object, previous: object = 0, lane: str = "inbox") -> None:
        """A copy arrives, as the server describes it."""
        headers = {"Nats-Sequence": str(seq), "Nats-Last-Sequence": str(previous)}
        self.on_copy(Message(self.copies_of(lane), b'{"v":1,"prompt":"hi"}', headers))


def following(
    story: Callable[[Follower], Awaitable[None]], positions: Mapping[str, int] | None = None, *, follow: bool = True
) -> None:
    async def main(node: SimulatedNode) -> None:
        follower = Follower(node, positions)
        if follow:
            await follower.follow()
        await story(follower)
        await follower.mailbox.close()

    main.__name__ = story.__name__
    simulate(main)


# --- copies ---------------------------------------------------------------------------------------------------------
def test_mail_that_comes_in_order_costs_no_read() -> None:
    async def story(it: Follower) -> None:
        it.node.transport.requests.clear()
        expected = [(lane, await it.node.mail(AGENT, lane=lane)) for lane in (*MAIL_LANES, *MAIL_LANES, "due")]
        await it.node.until(lambda: len(it.delivered) == len(expected), "all of it")
        assert it.delivered == expected and it.reads() == 0
        assert all(len(batch) == 1 for batch in it.batches)

    following(story)


def test_what_is_delivered_is_what_was_stored() -> None:
    async def story(it: Follower) -> None:
        copied = await it.node.mail(AGENT, b'{"v":1,"prompt":"first"}', msg_id="m1")
        await it.node.until(lambda: it.batches, "the copy")
        it.lose_copies()
        read = await it.node.mail(AGENT, b'{"v":1,"prompt":"second"}', msg_id="m2")
        it.mailbox.catch_up()
        await it.node.until(lambda: len(it.batches) == 2, "what was read")
        (first,), (second,) = it.batches
        assert first.prompt is not None and second.prompt is not None
        assert (first.prompt.prompt, first.msg_id, first.seq) == ("first", "m1", copied)
        assert (second.prompt.prompt, second.msg_id, second.seq) == ("second", "m2", read)
        assert first.stored and second.stored

    following(story)


def test_a_copy_that_comes_twice_is_delivered_once() -> None:
    async def story(it: Follower) -> None:
        seq = await it.node.mail(AGENT)
        await it.node.until(lambda: it.delivered, "the copy")
        it.copy(seq)
        it.copy(seq - 1)
        await it.node.pass_time(1.0)
        assert it.delivered == [("inbox", seq)]

    following(story)


def test_a_lost_copy_is_noticed_by_the_next_one_and_read() -> None:
    async def story(it: Follower) -> None:
        it.lose_copies()
        lost = [await it.node.mail(AGENT) for _ in range(3)]
        it.lose_no_more()
        assert it.delivered == []
        noticed = await it.node.mail(AGENT)
        await it.node.until(lambda: len(it.delivered) == 4, "all four")
        assert it.delivered == [("inbox", seq) for seq in (*lost, noticed)]
        it.node.transport.requests.clear()
        behind = await it.node.mail(AGENT)
        await it.node.until(lambda: ("inbox", behind) in it.delivered, "copies are trusted again")
        assert it.reads() == 0

    following(story)


def test_a_lost_copy_of_one_lane_does_not_show_in_another() -> None:
    async def story(it: Follower) -> None:
        it.lose_copies("notify")
        await it.node.mail(AGENT, lane="notify")
        seq = await it.node.mail(AGENT)
        await it.node.pass_time(5.0)
        assert it.delivered == [("inbox", seq)], "the audit finds the other"
        assert not it.mailbox.knows("notify", seq - 1)

    following(story)


@pytest.mark.parametrize("headers", [{}, {"Nats-Sequence": "x"}, {"Nats-Sequence": "1", "Nats-Last-Sequence": "?"}])
def test_what_is_not_from_the_server_is_no_mail(headers: dict[str, str]) -> None:
    async def story(it: Follower) -> None:
        it.on_copy(Message(it.copies_of("inbox"), b"{}", headers))
        await it.node.pass_time(1.0)
        assert it.batches == []

    following(story)


def test_what_cannot_be_read_is_delivered_with_its_problem() -> None:
    async def story(it: Follower) -> None:
        await it.node.mail(AGENT, headers={DEADLINE: "one day"})
        await it.node.until(lambda: it.batches, "it is delivered")
        assert it.batches[0][0].problem

    following(story)


# --- reading --------------------------------------------------------------------------------------------------------
def test_an_owner_begins_behind_what_was_consumed() -> None:
    async def story(node: SimulatedNode) -> None:
        lanes = ["notify", "notify", "inbox", "inbox", "peer-answer", "due"]
        first, *others, due = [(lane, await node.mail(AGENT, lane=lane)) for lane in lanes]
        second, third, *last = others
        follower = Follower(node, dict([first, third]))
        await follower.follow()
        assert follower.delivered == [second, *last, due]
        await follower.mailbox.close()

    simulate(story)


def test_lanes_of_other_agents_are_not_delivered() -> None:
    async def story(it: Follower) -> None:
        await it.node.mail("another")
        await it.node.mail(f"{AGENT}.child")
        mine = await it.node.mail(AGENT)
        await it.mailbox.caught_up()
        assert it.delivered == [("inbox", mine)]

    following(story, follow=False)


def test_long_lanes_are_read_page_after_page() -> None:
    async def story(it: Follower) -> None:
        lanes = ["inbox", "peer-inbox"]
        expected = [(lanes[n % 2], await it.node.mail(AGENT, lane=lanes[n % 2])) for n in range(PAGE + 10)]
        it.node.transport.requests.clear()
        await it.mailbox.caught_up()
        assert it.delivered == expected
        assert [len(batch) for batch in it.batches] == [PAGE, 10]

    following(story, follow=False)


def test_what_comes_while_lanes_are_read_is_neither_lost_nor_doubled() -> None:
    async def story(it: Follower) -> None:
        await it.node.transport.subscribe(it.node.subjects.copies(AGENT), it.on_copy)

        async def send() -> list[int]:
            return [await it.node.mail(AGENT) for _ in range(50)]

        sending = it.node.world.process("others").spawn(send())
        for _ in range(10):
            it.mailbox.catch_up()
            await it.node.pass_time(0.003)
        sent = await sending
        await it.node.until(lambda: len(it.delivered) >= 50, "all of it")
        assert [seq for _, seq in it.delivered] == sent

    following(story, follow=False)


def test_what_a_replica_that_lags_does_not_show_is_read_from_the_leader() -> None:
    async def story(it: Follower) -> None:
        await it.node.pass_time(1.0)
        it.node.faults.lag_s = 0.5
        seq = await it.node.mail(AGENT)
        began = it.node.loop.time()
        await it.mailbox.caught_up()
        assert it.delivered == [("inbox", seq)]
        assert it.node.loop.time() - began < 0.4, "nobody waits for the replica"
        assert it.reads() < 5

    following(story, follow=False)


@pytest.mark.case(284)
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_listing_that_lacks_a_message_in_its_middle_loses_no_mail(missing: int) -> None:
    async def story(it: Follower) -> None:
        sent = [await it.node.mail(AGENT) for _ in range(3)]
        it.node.faults.lacking = lambda count: missing if count == 3 else None  # type: ignore[method-assign]
        await it.mailbox.caught_up()
        assert it.delivered == [("inbox", seq) for seq in sent]
        more = [await it.node.mail(AGENT) for _ in range(3)]
        await it.mailbox.caught_up()
        assert it.delivered == [("inbox", seq) for seq in (*sent, *more)]

    following(story, follow=False)


def test_new_mail_does_not_stand_in_for_what_a_listing_lacks() -> None:
    async def story(it: Follower) -> None:
        sent = [await it.node.mail(AGENT) for _ in range(3)]
        it.node.faults.lacking = lambda count: 1 if count == 4 else None  # type: ignore[method-assign]

        ask, counted = it.node.transport.request, f"$JS.API.STREAM.INFO.{it.node.subjects.stream('mail')}"

        async def one_more_behind_the_count(subject: str, data: bytes = b"", **options: Any) -> Message:
            answer = await ask(subject, data, **options)
            if subject == counted and len(sent) == 3:
                sent.append(await it.node.mail(AGENT))
            return answer

        it.node.transport.request = one_more_behind_the_count  # type: ignore[method-assign]
        await it.mailbox.caught_up()
        assert len(sent) == 4
        assert it.delivered == [("inbox", seq) for seq in sent]

    following(story, follow=False)


def test_the_first_read_and_each_survey_tell_what_is_stored_of_mail_that_was_seen() -> None:
    async def story(node: SimulatedNode) -> None:
        consumed = [await node.mail(AGENT, msg_id=f"m{n}") for n in range(2)]
        waits = await node.mail(AGENT)
        it = Follower(node, {"inbox": consumed[-1]})
        await it.mailbox.caught_up()
        assert dict(it.held)["inbox"] == consumed and it.delivered == [("inbox", waits)]
        it.held.clear()
        await it.mailbox.caught_up()
        assert it.held == [], "only where it is asked for"
        it.mailbox.survey()
        await it.mailbox.caught_up()
        assert dict(it.held)["inbox"] == [*consumed, waits] and it.delivered == [("inbox", waits)]
        await it.mailbox.close()

    simulate(story)


def test_a_copy_that_comes_while_reading_is_waited_for() -> None:
    async def story(it: Follower) -> None:
        it.mailbox.catch_up()
        it.copy(1000)  # the leader has it, says the copy, although the leader that is asked does not
        reading = asyncio.ensure_future(it.mailbox.caught_up())
        await it.node.pass_time(1.0)
        assert not reading.done()
        for _ in range(3):
            await it.node.mail(AGENT)
        it.node.stream("mail").last_seq = 999
        last = await it.node.mail(AGENT)
        await reading
        assert last == 1000 and len(it.delivered) == 4

    following(story, follow=False)


def test_while_nothing_can_be_read_it_is_tried_again() -> None:
    async def story(it: Follower) -> None:
        seq = await it.node.mail(AGENT)
        it.node.faults.leaderless.add(it.node.subjects.stream("timer"))
        reading = asyncio.ensure_future(it.mailbox.caught_up())
        await it.node.until(lambda: len(it.node.logged("mail cannot be read")) > 3, "it is tried")
        assert not reading.done() and it.mailbox.knows("inbox", seq), "it is being read"
        it.node.faults.leaderless.clear()
        await reading
        assert it.delivered == [("inbox", seq)]
        await it.node.stop_server()
        it.mailbox.catch_up()
        await it.node.until(lambda: it.node.logged("no connection"), "a try without a connection")
        await it.node.start_server()
        await it.mailbox.caught_up()

    following(story, follow=False)


def test_who_asks_for_a_read_while_one_runs_gets_that_one() -> None:
    async def story(it: Follower) -> None:
        await it.node.mail(AGENT)
        it.node.transport.requests.clear()
        for _ in range(3):
            it.mailbox.catch_up()
        await it.node.until(lambda: it.delivered, "the mail is read")
        assert it.reads() == 1, "there are no timers"

    following(story, follow=False)


def test_tries_come_ever_more_slowly() -> None:
    async def story(it: Follower) -> None:
        it.node.faults.leaderless.add(it.node.subjects.stream("mail"))
        it.mailbox.catch_up()
        await it.node.pass_time(1.0)
        first = len(it.node.logged("mail cannot be read"))
        await it.node.pass_time(20.0)
        assert 3 <= first <= 8
        assert 15 <= len(it.node.logged("mail cannot be read")) - first <= 25

    following(story, follow=False)


# --- what it knows --------------------------------------------------------------------------------------------------
def test_it_knows_what_is_delivered_and_what_is_being_read() -> None:
    async def story(it: Follower) -> None:
        assert it.mailbox.knows("inbox", 10**6), "nothing is read yet: whatever it is will be"
        await it.mailbox.caught_up()
        seq = await it.node.mail(AGENT)
        assert not it.mailbox.knows("inbox", seq)
        it.mailbox.catch_up()
        assert it.mailbox.knows("inbox", seq)
        await it.mailbox.caught_up()
        assert it.mailbox.knows("inbox", seq) and not it.mailbox.knows("inbox", seq + 1)
        assert not it.mailbox.knows("notify", 1) and not it.mailbox.knows("no lane", 1)

    following(story, follow=False)


@pytest.mark.parametrize("lane", sorted(LANES))
def test_proven_is_caught_up_only_when_no_lane_of_the_leader_has_more(lane: str) -> None:
    async def story(it: Follower) -> None:
        await it.mailbox.caught_up()
        # The leader itself misses it at first, as after an election: only the second look at the lane shows it.
        seq = await it.node.mail(AGENT, lane=lane)
        stream = it.node.stream(LANES[lane].stream)
        hidden = Counter[str]()

        def blind(pattern: str, from_seq: int) -> object:
            hidden[pattern] += 1
            return None if hidden[pattern] < 2 else next_of(pattern, from_seq)

        next_of, stream.next_of = stream.next_of, blind  # type: ignore[assignment, method-assign]
        it.node.faults.lag_s = 0.9
        await it.mailbox.caught_up(proven=True)
        assert it.delivered == [(lane, seq)]

    following(story, follow=False)


def test_without_proof_the_leader_is_not_asked_about_each_lane() -> None:
    async def story(it: Follower) -> None:
        call = f"$JS.API.STREAM.MSG.GET.{it.node.subjects.stream('mail')}"
        await it.mailbox.caught_up()
        assert it.node.transport.requests.count(call) == 0
        await it.mailbox.caught_up(proven=True)
        assert it.node.transport.requests.count(call) == 2 * len(MAIL_LANES)

    following(story, follow=False)


def test_while_it_cannot_be_proven_nobody_is_told_that_it_is() -> None:
    async def story(it: Follower) -> None:
        asked = it.node.transport.requests
        name = it.node.subjects.stream("mail")
        proving = asyncio.ensure_future(it.mailbox.caught_up(proven=True))
        await it.node.until(lambda: f"$JS.API.STREAM.INFO.{name}" in asked, "the lanes are counted")
        it.node.faults.leaderless.add(name)
        await it.node.pass_time(10.0)
        assert not proving.done() and it.node.logged("mail cannot be read")
        it.node.faults.leaderless.clear()
        await proving

    following(story, follow=False)


# --- the end --------------------------------------------------------------------------------------------------------
def test_closed_it_reads_and_delivers_nothing_more() -> None:
    async def story(it: Follower) -> None:
        for _ in range(3):
            await it.node.mail(AGENT)
        it.mailbox.catch_up()
        await it.mailbox.close()
        it.copy(1)
        it.node.transport.requests.clear()
        await it.node.pass_time(5.0)
        assert it.batches == [] and it.node.transport.requests == []
        await it.mailbox.close()

    following(story, follow=False)


def test_closed_it_takes_no_copy() -> None:
    async def story(it: Follower) -> None:
        await it.mailbox.close()
        it.copy(1)
        await it.node.mail(AGENT)
        await it.node.pass_time(5.0)
        assert it.batches == []

    following(story)


# --- withdrawals ----------------------------------------------------------------------------------------------------
async def withdraw(it: Follower, origin: str) -> int:
    headers = {"Mesh-From": "boss", "Mesh-Origin": "1.9.1"}
    return await it.node.mail(AGENT, b'{"withdraws":"%s"}' % origin.encode(), lane="peer-answer", headers=headers)


@pytest.mark.case(356)
def test_a_withdrawal_is_delivered_behind_what_lies_ahead_of_it_in_other_lanes() -> None:
    async def story(it: Follower) -> None:
        it.lose_copies("peer-inbox")
        lost = await it.node.mail(AGENT, lane="peer-inbox")
        assert it.delivered == []
        withdrawal = await withdraw(it, "1.9.0")
        await it.node.until(lambda: len(it.delivered) == 2, "both")
        assert it.delivered == [("peer-inbox", lost), ("peer-answer", withdrawal)]
        later = await it.node.mail(AGENT, lane="peer-answer")
        await it.node.until(lambda: it.delivered[-1] == ("peer-answer", later), "an answer, by its copy")

    following(story)
