"""Becoming the owner of a name that has a past: that past may lapse in the very moment."""

from __future__ import annotations

import pytest

from agentmesh.edge.publish import store
from agentmesh.edge.transport import Message
from agentmesh.errors import StoreLost
from agentmesh.ownership import Claim
from agentmesh.records import Ledger, LifePhase, Record, decode_record, encode_record
from agentmesh.registry_values import Spec
from agentmesh_node.owner.claim import claim_ownership
from node.simulated import NODE, SimulatedNode, simulate

SPEC = Spec(kind="Doll", incarnation="life")
CLAIM = Claim(node=NODE, boot="boot-1", epoch=1, generation=7, incarnation="life")


async def past(node: SimulatedNode, phase: LifePhase) -> None:
    """The journal of `a` ends in a record of a former life, and is gone when the owner appends."""
    former = Ledger(incarnation="former", phase=phase, origins={"b/peer-inbox": "1.1.0"})
    record = Record(
        kind="tombstone", id="t", at=1.0, incarnation="former", epoch=1, generation=1, node="", boot="", snapshot=former
    )
    await store(node.others, node.subjects.journal("a"), encode_record(record))

    def lapse(message: Message | None) -> Message:
        if message is None:
            node.stream("journal").purge(node.subjects.journal("a"), 0)
        return message  # type: ignore[return-value]  # before the request nothing is returned

    node.transport.inject(node.subjects.journal("a"), lapse)


def test_a_tombstone_that_lapses_while_the_name_is_claimed_is_no_lost_store() -> None:
    async def story(node: SimulatedNode) -> None:
        await past(node, "over")
        await claim_ownership(node.services, "a", SPEC, CLAIM)
        (stored,) = node.stored(node.subjects.journal("a"))
        record = decode_record(stored.data)
        assert (record.kind, record.incarnation) == ("activated", "life")
        assert record.snapshot is not None
        assert record.snapshot.origins == {}

    simulate(story)


def test_the_records_of_a_life_that_is_not_over_do_not_lapse() -> None:
    async def story(node: SimulatedNode) -> None:
        await past(node, "ready")
        with pytest.raises(StoreLost):
            await claim_ownership(node.services, "a", SPEC, CLAIM)
        assert node.stored(node.subjects.journal("a")) == []

    simulate(story)
