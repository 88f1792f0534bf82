"""Mail that slipped in behind the last sweep of a stopped agent is answered, once, and its journal ends in a tombstone again."""

from __future__ import annotations

from agentmesh import wire
from agentmesh.edge.publish import store
from agentmesh.records import Ledger, Record, SetInfo, decode_record, encode_record
from agentmesh_node.host.late_mail_sweep import LateMailSweep
from node.simulated import NODE, SimulatedNode, simulate
from sim.store import Stored


async def end(node: SimulatedNode, agent: str) -> None:
    """`agent` has ended: its journal is a tombstone, and its spec says `stopped`."""
    change = SetInfo(number=1, id="s1", at=1.0, turn=2, node=NODE, values={"watchdog_s": 5.0})
    ledger = Ledger(incarnation="life", epoch=1, generation=1, node=NODE, boot="b", phase="over", sets=(change,))
    record = Record(
        kind="tombstone", id="t", at=1.0, incarnation="life", epoch=1, generation=1, node=NODE, boot="b", snapshot=ledger
    )
    await store(node.others, node.subjects.journal(agent), encode_record(record))
    await node.spec(agent, status="stopped")


def journal(node: SimulatedNode, agent: str) -> list[Record]:
    return [decode_record(message.data) for message in node.stored(node.subjects.journal(agent))]


def outcomes(node: SimulatedNode, agent: str, ref: int) -> list[Stored]:
    return node.stored(node.subjects.result(agent, str(ref)))


def test_a_prompt_behind_the_end_gets_an_outcome_and_the_journal_a_tombstone() -> None:
    async def story(node: SimulatedNode) -> None:
        late = await node.mail("a")
        await end(node, "a")
        await LateMailSweep(node.services).sweep(["a"])
        (stored,) = outcomes(node, "a", late)
        outcome = wire.decode_outcome(stored.data)
        assert not outcome.ok
        assert outcome.error is not None
        (last,) = journal(node, "a")  # all before it is rolled up
        assert last.kind == "tombstone"
        assert last.snapshot is not None
        assert last.snapshot.positions["inbox"] >= late
        assert [change.id for change in last.snapshot.sets] == ["s1"], "`mesh history` still shows it"

        before = node.stored(node.subjects.journal("a"))
        await LateMailSweep(node.services).sweep(["a"])
        assert node.stored(node.subjects.journal("a")) == before  # there is nothing left to do

    simulate(story)


def test_an_agent_that_runs_is_left_alone() -> None:
    async def story(node: SimulatedNode) -> None:
        late = await node.mail("a")
        await end(node, "a")
        await node.spec("a", incarnation="next", status="running")
        await LateMailSweep(node.services).sweep(["a", "nobody"])
        assert outcomes(node, "a", late) == []
        assert [record.kind for record in journal(node, "a")] == ["tombstone"]

    simulate(story)


def test_mail_that_came_after_the_end_is_for_the_names_next_life() -> None:
    async def story(node: SimulatedNode) -> None:
        await end(node, "a")
        await node.pass_time(1.0)
        later = await node.mail("a")
        await LateMailSweep(node.services).sweep(["a"])
        assert outcomes(node, "a", later) == []
        assert [record.kind for record in journal(node, "a")] == ["tombstone"]

    simulate(story)


def test_what_cannot_be_swept_now_is_left_to_the_leader_and_the_others_are_swept() -> None:
    async def story(node: SimulatedNode) -> None:
        late = [await node.mail("a"), await node.mail("b")]
        await end(node, "a")
        await end(node, "b")
        journals = node.subjects.stream("journal")
        node.faults.leaderless.add(journals)
        await LateMailSweep(node.services).sweep(["a"])
        assert node.logged("late mail not swept now")
        assert outcomes(node, "a", late[0]) == []
        node.faults.leaderless.discard(journals)
        await LateMailSweep(node.services).sweep(["a", "b"])
        assert outcomes(node, "a", late[0]) and outcomes(node, "b", late[1])

    simulate(story)
