"""Consumed mail goes in groups: not so early that a repetition would be taken for new mail, nor so late that a lane
is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import pytest
from msgspec import structs

from agentmesh.edge.read import get_last, read_all
from agentmesh.edge.transport import Message
from agentmesh.records import Bury, Open
from agentmesh.subjects import LANES
from agentmesh.turn.draft import digest
from agentmesh.turn.values import Trim
from agentmesh.wire import ErrorBody, Mail
from agentmesh_node.owner.mail_purge import MailPurger
from agentmesh_node.owner.mailbox import Mailbox
from node.owner.noting_loop import AGENT, NotingLoop
from node.simulated import SimulatedNode, simulate
from support import never_sent

LIMIT = 8
"""What a lane holds here: 4 are half of it, 2 of them consumed are much."""


class Lanes:
    """The lanes of one agent, and the purger that keeps them short."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.notes = NotingLoop(node)
        self.purger = MailPurger(self.notes.loop, node.services)
        self.mailbox = Mailbox(node.transport, node.subjects, AGENT, {}, self._deliver, stored=self.purger.stored)
        self._delivered: set[tuple[str, int]] = set()

    def _deliver(self, mail: tuple[Mail, ...]) -> None:
        self._delivered |= {(item.lane, item.seq) for item in mail}
        self.purger.arrived(mail)

    async def follow(self) -> None:
        """Hear of mail from now on."""

        def on_copy(message: Message) -> None:
            lane, _ = self.node.subjects.parse_copy(message.subject) or ("", "")
            self.mailbox.on_copy(lane, message)

        await self.node.transport.subscribe(self.node.subjects.copies(AGENT), on_copy)
        await self.mailbox.caught_up()

    async def store(self, count: int, lane: str = "inbox", *, ids: bool = True) -> list[int]:
        """Mail that nobody has told the purger of."""
        return [await self.node.mail(AGENT, lane=lane, msg_id=f"{lane}-{n}" if ids else None) for n in self._numbers(count, lane)]

    def _numbers(self, count: int, lane: str) -> range:
        there = len([m for m in self.node.stream(LANES[lane].stream).history if m.subject == self.subject(lane)])
        return range(there, there + count)

    async def arrive(self, count: int, lane: str = "inbox", *, ids: bool = True) -> list[int]:
        """Mail arrives, one message after the other."""
        seqs = await self.store(count, lane, ids=ids)
        await self.node.until(lambda: self._delivered >= {(lane, seq) for seq in seqs}, "it is delivered")
        return seqs

    def subject(self, lane: str) -> str:
        return self.node.subjects.lane(lane, AGENT)

    def held(self, lane: str = "inbox") -> list[int]:
        """What lies in a lane now."""
        return [message.seq for message in self.node.stored(self.subject(lane))]

    def at_ease(self) -> bool:
        return self.purger.at_ease

    def trims(self) -> list[Trim]:
        return [item for item in self.notes.inputs if isinstance(item, Trim)]

    async def settle(self) -> None:
        """Let what was spawned end."""
        await self.node.pass_time(1.0)

    async def remember(self) -> Trim:
        """The machine has committed what it was asked to remember last."""
        trim = self.trims()[-1]
        assert self.purger.asked_for(trim.token)
        await self.purger.remembered(trim.token)
        return trim


def lanes(story: Callable[[Lanes], Awaitable[None]], *, begin: bool = True, limit: int = LIMIT) -> None:
    async def main(node: SimulatedNode) -> None:
        it = Lanes(node)
        if begin:
            it.notes.begin()
            await it.follow()
        await story(it)
        await it.notes.loop.close()
        await it.mailbox.close()

    main.__name__ = story.__name__
    simulate(main, mailbox_limit=limit)


# --- when half of a lane is taken -----------------------------------------------------------------------------------
def test_half_a_lane_much_of_it_consumed_is_purged_once_its_ids_are_remembered() -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(3)
        it.notes.consume(inbox=seqs[1])
        (last,) = await it.arrive(1)
        await it.settle()
        (trim,) = it.trims()
        assert {key: seen.ref for key, seen in trim.seen.items()} == {
            digest(f"inbox-{number}"): str(seq) for number, seq in enumerate(seqs[:2])
        }
        stored = [message.time for message in it.node.stored(it.subject("inbox"))[:2]]
        assert [seen.at for seen in trim.seen.values()] == pytest.approx(stored, abs=0.001)
        assert it.held() == [*seqs, last], "the journal has not got them yet"
        assert not it.at_ease()
        await it.remember()
        assert it.held() == [seqs[2], last], "what is not consumed stays"
        assert it.at_ease()

    lanes(story)


def test_what_a_dead_letter_has_yet_to_be_made_of_stays() -> None:
    async def story(it: Lanes) -> None:
        first, second, *_ = seqs = await it.arrive(3, ids=False)
        reason = ErrorBody(code="bad_request")
        letters = {
            f"1.9.{n}": Open(Bury(lane="inbox", seq=seq, reason=reason), "n", 1.0) for n, seq in enumerate((first, second))
        }
        ledger = structs.replace(it.notes.core.ledger, positions={"inbox": seqs[-1]}, effects=letters)
        it.notes.become(ledger=ledger, work=ledger)
        (last,) = await it.arrive(1, ids=False)
        await it.settle()
        assert it.held() == [*seqs, last]
        it.notes.become(done=("1.9.0",))
        it.purger.quiet(1e6)
        await it.settle()
        assert it.held() == [*seqs[1:], last], "the other one is not made yet"
        it.notes.become(done=("1.9.0", "1.9.1"))
        it.purger.quiet(1e6)
        await it.settle()
        assert it.held() == [last]

    lanes(story)


@pytest.mark.parametrize(("arrived", "consumed"), [(3, 2), (4, 1), (7, 0)])
def test_a_lane_with_room_or_with_little_consumed_stays_as_it_is(arrived: int, consumed: int) -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(arrived - 1)
        it.notes.consume(inbox=seqs[consumed - 1] if consumed else 0)
        await it.arrive(1)
        await it.settle()
        assert it.trims() == [] and len(it.held()) == arrived and it.at_ease()

    lanes(story)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_of_the_smallest_lanes_half_is_one_message(limit: int) -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(limit)
        it.notes.consume(inbox=seqs[0])
        assert not it.at_ease()
        it.purger.quiet(0.0)
        await it.settle()
        await it.remember()
        assert it.held() == seqs[1:] and it.at_ease()

    lanes(story, limit=limit)


def test_mail_without_ids_needs_no_remembering() -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(3, ids=False)
        it.notes.consume(inbox=seqs[-1])
        (last,) = await it.arrive(1, ids=False)
        await it.settle()
        assert it.trims() == [] and it.held() == [last] and it.at_ease()

    lanes(story)


def test_ids_that_no_repetition_can_meet_are_not_remembered() -> None:
    async def story(it: Lanes) -> None:
        old = await it.arrive(2)
        await it.node.pass_time(it.node.services.remember_s + 1)
        new = await it.arrive(1)
        it.notes.consume(inbox=new[-1])
        await it.arrive(1)
        await it.settle()
        trim = await it.remember()
        assert [seen.ref for seen in trim.seen.values()] == [str(new[0])]
        assert old[0] not in it.held()

    lanes(story)


@pytest.mark.parametrize("lane", sorted(LANES))
def test_each_lane_is_purged_in_its_own_stream(lane: str) -> None:
    async def story(it: Lanes) -> None:
        other = "notify" if lane != "notify" else "inbox"
        kept = await it.store(1, other)
        foreign = await it.node.mail("another", lane=lane)
        seqs = await it.arrive(3, lane)
        it.notes.consume(**{lane.replace("-", "_"): seqs[-1]})
        (last,) = await it.arrive(1, lane)
        await it.settle()
        await it.remember()
        assert (it.held(lane), it.held(other)) == ([last], kept)
        assert [m.seq for m in it.node.stored(it.node.subjects.lane(lane, "another"))] == [foreign]

    lanes(story)


def test_one_purge_at_a_time() -> None:
    async def story(it: Lanes) -> None:
        for lane in ("inbox", "notify"):
            seqs = await it.arrive(3, lane)
            it.notes.consume(**{lane: seqs[-1]})
            await it.arrive(1, lane)
        await it.settle()
        assert len(it.trims()) == 1
        it.purger.quiet(0.0)
        await it.settle()
        assert len(it.trims()) == 1, "its ids are not remembered yet"
        await it.remember()
        it.purger.quiet(0.0)
        await it.settle()
        await it.remember()
        assert len(it.trims()) == 2 and len(it.held("inbox")) == len(it.held("notify")) == 1

    lanes(story)


def test_a_full_lane_that_brings_no_new_mail_is_found_when_its_owner_looks() -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(LIMIT)
        it.notes.consume(inbox=seqs[-1])
        assert not it.at_ease()
        it.purger.quiet(0.0)
        await it.settle()
        await it.remember()
        assert it.held() == [] and it.at_ease()

    lanes(story)


def test_answers_to_others_are_not_its_own() -> None:
    async def story(it: Lanes) -> None:
        assert not it.purger.asked_for("trim-1")
        seqs = await it.arrive(LIMIT)
        it.notes.consume(inbox=seqs[-1])
        it.purger.quiet(0.0)
        await it.settle()
        token = it.trims()[0].token
        assert it.purger.asked_for(token) and not it.purger.asked_for("some-request")
        await it.remember()
        assert not it.purger.asked_for(token)

    lanes(story)


# --- when mail has grown old ----------------------------------------------------------------------------------------
def test_beyond_the_window_consumed_mail_goes_unremembered() -> None:
    async def story(it: Lanes) -> None:
        first, second = await it.arrive(2)
        others = await it.arrive(1, "notify")
        it.notes.consume(inbox=first)
        assert it.purger.lingering
        window = it.node.services.duplicate_window_s
        it.purger.quiet(window)
        await it.settle()
        assert it.held() == [first, second]
        it.purger.quiet(window + 0.1)
        await it.settle()
        assert it.held() == [second] and it.trims() == []
        assert it.purger.lingering, "the second may be consumed later"
        it.notes.consume(inbox=second, notify=others[0])
        for _ in range(2):  # a lane at a time
            it.purger.quiet(window + 1)
            await it.settle()
        assert it.held() == it.held("notify") == [] and not it.purger.lingering

    lanes(story)


def test_an_old_lane_is_purged_once() -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(2)
        it.notes.consume(inbox=seqs[-1])
        for _ in range(3):
            it.purger.quiet(it.node.services.duplicate_window_s + 1)
        assert not it.at_ease(), "it is under way"
        await it.settle()
        assert it.at_ease()
        purges = [subject for subject in it.node.transport.requests if "STREAM.PURGE" in subject]
        assert len(purges) == 1

    lanes(story)


def test_a_lane_whose_oldest_mail_waits_is_left_alone() -> None:
    async def story(it: Lanes) -> None:
        first, second = await it.arrive(2)
        it.notes.consume(inbox=first)
        for _ in range(5):
            it.purger.quiet(it.node.services.duplicate_window_s + 1)
            await it.settle()
        purges = [subject for subject in it.node.transport.requests if "STREAM.PURGE" in subject]
        assert it.held() == [second] and len(purges) == 1

    lanes(story)


def test_where_nothing_is_consumed_nothing_lingers() -> None:
    async def story(it: Lanes) -> None:
        assert not it.purger.lingering
        await it.arrive(2)
        assert not it.purger.lingering
        it.node.transport.requests.clear()
        it.purger.quiet(it.node.services.duplicate_window_s + 1)
        await it.settle()
        assert it.node.transport.requests == []

    lanes(story)


# --- what former owners have left -----------------------------------------------------------------------------------
def inherited(
    story: Callable[[Lanes], Awaitable[None]], counts: Mapping[str, int], *, unread: int = 0, wait_s: float = 0.0
) -> None:
    """Former owners have consumed so much of each lane, and left `unread` behind it; after `wait_s` a new owner begins."""

    async def main(it: Lanes) -> None:
        positions = {lane: (await it.store(count, lane))[-1] for lane, count in counts.items()}
        for lane in counts:
            await it.store(unread, lane)
        await it.node.pass_time(wait_s)
        it.notes.begin()
        it.notes.consume(**{lane.replace("-", "_"): seq for lane, seq in positions.items()})
        for lane, position in positions.items():
            messages = await read_all(it.node.others, it.node.subjects.stream(LANES[lane].stream), it.subject(lane))
            it.purger.stored(lane, [message for message in messages if message.seq <= position])
        await story(it)

    main.__name__ = story.__name__
    lanes(main, begin=False)


def test_a_lane_that_former_owners_left_crowded_is_purged_with_all_its_ids() -> None:
    async def story(it: Lanes) -> None:
        assert not it.at_ease(), "the inbox is half full"
        trim = await it.remember()
        assert len(trim.seen) == 4 and len(it.held("inbox")) == 1 and len(it.held("notify")) == 3
        assert it.at_ease()

    inherited(story, {"inbox": 4, "notify": 2}, unread=1)


def test_of_inherited_mail_only_what_is_consumed_and_young_is_remembered() -> None:
    async def story(it: Lanes) -> None:
        await it.settle()
        assert it.trims() == [], "all of it is older than the window"
        assert len(it.held("inbox")) == 2

    inherited(story, {"inbox": 5}, unread=2, wait_s=1000.0)


def test_lanes_with_room_wait_for_the_end_of_the_window() -> None:
    async def story(it: Lanes) -> None:
        assert it.at_ease() and it.purger.lingering
        it.node.transport.requests.clear()
        it.purger.quiet(0.0)
        await it.settle()
        assert it.node.transport.requests == []
        it.purger.quiet(it.node.services.duplicate_window_s + 1)
        await it.settle()
        assert it.held("inbox") == [] and not it.purger.lingering

    inherited(story, {"inbox": 3})


@pytest.mark.case(283)
def test_purged_mail_that_is_back_is_purged_again_and_its_ids_stay_those_of_the_first() -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(4)
        it.notes.consume(inbox=seqs[-1])
        it.purger.quiet(0.0)
        await it.settle()
        await it.remember()
        assert it.held() == []
        assert it.node.stream("mail").bring_back(lambda: True) == 4
        it.mailbox.survey()
        await it.mailbox.caught_up()
        await it.settle()
        trim = await it.remember()
        assert sorted(seen.ref for seen in trim.seen.values()) == sorted(str(seq) for seq in seqs)
        assert it.held() == [] and it.at_ease()

    lanes(story)


# --- trouble --------------------------------------------------------------------------------------------------------
def test_a_purge_that_fails_is_tried_again() -> None:
    async def story(it: Lanes) -> None:
        seqs = await it.arrive(LIMIT)
        it.notes.consume(inbox=seqs[-1])
        it.node.transport.inject(f"$JS.API.STREAM.PURGE.{it.node.subjects.stream('mail')}", never_sent)
        for _ in range(2):
            it.purger.quiet(0.0)
            await it.settle()
            await it.remember()
        assert len(it.trims()) == 2 and it.node.logged("mail not purged now")
        assert it.held() == [] and it.at_ease()
        assert await get_last(it.node.others, it.node.subjects.stream("mail"), it.subject("inbox")) is None

    lanes(story)


def test_until_the_owner_has_begun_nothing_is_consumed() -> None:
    async def story(it: Lanes) -> None:
        await it.follow()
        await it.arrive(LIMIT)
        assert it.at_ease() and not it.purger.lingering

    lanes(story, begin=False)
