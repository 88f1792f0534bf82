"""The record that ends mail for nobody: what it says, what follows it, and where it is not written."""

from __future__ import annotations

import logging

from agentmesh import wire
from agentmesh.edge.journal import Journal
from agentmesh.edge.publish import store
from agentmesh.ledger import record_of
from agentmesh.records import Ledger, Record, decode_record, encode_record
from agentmesh.wire import ErrorBody
from agentmesh_node.supervisor.unclaimed_sweep import BATCH, Moment, UnclaimedSweep
from node.simulated import SimulatedNode, simulate

REASON = ErrorBody(code="not_found", message="no agent has had the name")


async def end(node: SimulatedNode, agent: str, upto: int, *, epoch: int = 1) -> int:
    ambient = node.world.ambient("s1")
    journal = Journal(node.transport, node.subjects)
    sweep = UnclaimedSweep(node.transport, node.subjects, node.registry, journal, token=ambient.token, now=ambient.now)
    return await sweep.end(agent, upto, REASON, Moment(epoch, ambient.now() - 180.0))


def records(node: SimulatedNode, agent: str) -> list[Record]:
    """All that were ever appended."""
    journal = node.subjects.journal(agent)
    return [decode_record(m.data) for m in node.stream("journal").history if m.subject == journal]


def test_a_name_whose_life_is_not_over_is_left_alone_though_its_spec_is_gone() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.record("a", "activated")
        seq = await node.mail("a")
        assert await end(node, "a", seq) == 0
        assert [record.kind for record in records(node, "a")] == ["activated"]
        assert node.logged("whose life is not over", logging.WARNING)

    simulate(story)


def test_a_repetition_of_what_was_ended_and_purged_is_known() -> None:
    async def story(node: SimulatedNode) -> None:
        seq = await node.mail("a", msg_id="a.1")
        await end(node, "a", seq)
        *_, last = records(node, "a")
        assert last.snapshot is not None
        assert [one.ref for one in last.snapshot.seen.values()] == [str(seq)]

    simulate(story)


def test_the_record_that_ends_mail_and_the_tombstone_behind_it_lapse() -> None:
    async def story(node: SimulatedNode) -> None:
        await end(node, "a", await node.mail("a"))
        assert [record.kind for record in records(node, "a")] == ["swept", "tombstone"]
        assert [record.v for record in records(node, "a")] == [1, 1], "the build before reads them"
        history = [m for m in node.stream("journal").history if m.subject == node.subjects.journal("a")]
        assert [m.headers["Nats-TTL"] for m in history] == ["604800", "604800"]
        assert len(node.stored(node.subjects.journal("a"))) == 1, "each replaces what was before it"

    simulate(story)


def test_the_epoch_of_the_mesh_stands_in_the_record() -> None:
    async def story(node: SimulatedNode) -> None:
        await end(node, "a", await node.mail("a"), epoch=4)
        assert [record.epoch for record in records(node, "a")] == [4, 4]

    simulate(story)


def test_behind_a_tombstone_the_life_that_is_over_is_named_and_its_origins_stay() -> None:
    async def story(node: SimulatedNode) -> None:
        over = Ledger(incarnation="former", phase="over", generation=5, node="n7", boot="b", origins={"b/peer-inbox": "1.1.0"})
        record = record_of(over, "tombstone", id="t", at=1.0, snapshot=over)
        await store(node.others, node.subjects.journal("a"), encode_record(record))
        await end(node, "a", await node.mail("a"))
        *_, last = records(node, "a")
        assert (last.incarnation, last.generation, last.node) == ("former", 5, "n7")
        assert last.snapshot is not None
        assert last.snapshot.origins == {"b/peer-inbox": "1.1.0"}

    simulate(story)


def test_an_agent_that_had_asked_gets_its_answer() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("b", status="running")
        headers = {wire.FROM: "b", wire.FROM_LIFE: "life", wire.ORIGIN: "1.7.0", wire.TAG: "t"}
        seq = await node.mail("a", lane="peer-inbox", headers=headers)
        await end(node, "a", seq)
        (answer,) = node.stored(node.subjects.lane("peer-notify", "b"))
        assert answer.headers[wire.FROM] == "a"
        assert answer.headers[wire.TAG] == "t"
        assert wire.decode_outcome(answer.data).ref == str(seq)

    simulate(story)


def test_more_mail_than_one_record_ends_takes_several() -> None:
    async def story(node: SimulatedNode) -> None:
        for _ in range(BATCH + 1):
            seq = await node.mail("a", b"e", lane="notify")
        assert await end(node, "a", seq) == BATCH + 1
        assert [record.kind for record in records(node, "a")] == ["swept", "tombstone"] * 2
        assert node.stored(node.subjects.notify("a")) == []
        assert len(node.stored(node.subjects.dead("a"))) == BATCH + 1

    simulate(story)


def test_a_strangers_message_in_the_journal_is_followed() -> None:
    async def story(node: SimulatedNode) -> None:
        await store(node.others, node.subjects.journal("a"), b"not the mesh's")
        assert await end(node, "a", await node.mail("a")) == 1
        assert len(node.stored(node.subjects.dead("a"))) == 1

    simulate(story)


def test_what_a_listing_lacks_is_ended_with_the_rest() -> None:
    async def story(node: SimulatedNode) -> None:
        seqs = [await node.mail("a") for _ in range(3)]
        node.faults.lacking = lambda count: 1 if count == 3 else None  # type: ignore[method-assign]
        assert await end(node, "a", seqs[-1]) == 3
        assert [m.headers["Mesh-Ref"] for m in node.stored(node.subjects.dead("a"))] == [str(seq) for seq in seqs]
        assert node.stored(node.subjects.inbox("a")) == []

    simulate(story)


def test_mail_that_waits_in_front_of_what_was_taken_before_its_turn_is_not_passed_over() -> None:
    async def story(node: SimulatedNode) -> None:
        old, young, taken = [await node.mail("a") for _ in range(3)]
        over = Ledger(incarnation="former", phase="over", taken={"inbox": (taken,)})
        record = record_of(over, "tombstone", id="t", at=1.0, snapshot=over)
        await store(node.others, node.subjects.journal("a"), encode_record(record))
        assert await end(node, "a", old) == 1
        assert [m.seq for m in node.stored(node.subjects.inbox("a"))] == [young, taken], "it may live on"
        assert await end(node, "a", taken) == 1
        assert [m.headers["Mesh-Ref"] for m in node.stored(node.subjects.dead("a"))] == [str(old), str(young)]
        assert node.stored(node.subjects.inbox("a")) == []

    simulate(story)
