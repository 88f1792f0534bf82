"""What an owner tells of those before it, by the stream of facts and the journal: on the in-memory server."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh import semconv
from agentmesh.edge.publish import store
from agentmesh.ledger_entries import Step, Traced, TurnInfo, Turning
from agentmesh.records import Ledger, Record, encode_record
from agentmesh.registry_values import NodeLease
from agentmesh.subjects import node_key
from agentmesh.trace.facts import spans_in
from agentmesh.trace.lost import Taken
from agentmesh.trace.spans import Began, Spans, ToldSpan, encode_fact
from agentmesh.wire import encode
from agentmesh_node.owner.predecessors import FENCED_S, look_back, tell_all_fenced, tell_if_fenced
from agentmesh_node.telemetry.trace_facts import end_id
from node.simulated import SimulatedNode, simulate

AGENT, TRACE = "coder", "4bf92f3577b34da6a3ce929d0e0e4736"
GONE = "boot-0"


def began(world: SimulatedNode, /, span: str = "a" * 16, **fields: Any) -> Began:
    known: dict[str, Any] = {
        "trace": TRACE, "span": span, "agent": AGENT, "service": "Coder", "life": "life", "ref": "12", "input": "inbox:12",
        "turn": 1, "started": world.services.now(), "node": "n0", "generation": 5, "boot": GONE,
    }  # fmt: skip
    return Began(**known | fields)


def taken(node: SimulatedNode, *, died: bool = True, records: Any = (), **ledger: Any) -> Taken:
    former: dict[str, Any] = {"incarnation": "life", "generation": 5, "boot": GONE, "node": "n0", "phase": "ready"}
    return Taken(
        agent=AGENT, kind="Coder", ledger=Ledger(**former | ledger), records=records, at=node.services.now(), generation=9,
        boot=node.services.boot, died=died,
    )  # fmt: skip


async def publish(node: SimulatedNode, what: str, fact: Began | Spans) -> None:
    await store(node.others, node.subjects.trace(AGENT, what), encode_fact(fact))


def told(node: SimulatedNode) -> list[ToldSpan]:
    found = [(what, message) for what in ("spans", "record") for message in node.stored(node.subjects.trace(AGENT, what))]
    return [span for what, message in found for span in spans_in(AGENT, what, message.data, node.subjects.root)]


def exported(node: SimulatedNode) -> list[str]:
    found: list[str] = []
    node.services.traces._export = lambda spans: found.extend(span.id for span in spans)
    return found


@pytest.mark.case(542)
def test_an_attempt_of_a_process_that_died_is_told_once_by_the_next_owner() -> None:
    async def story(node: SimulatedNode) -> None:
        out = exported(node)
        await publish(node, "began", began(node))
        look_back(node.services, taken(node))
        await node.until(lambda: told(node), "it is told")
        (span,) = told(node)
        assert (span.id, span.attributes[semconv.ATTEMPT_END]) == ("a" * 16, "lost")
        await node.until(lambda: out == ["a" * 16], "it is exported")
        look_back(node.services, taken(node))
        await node.pass_time(5.0)
        assert len(told(node)) == 1 and out == ["a" * 16], "a fact of its end is there"

    simulate(story)


@pytest.mark.case(542)
def test_of_two_owners_that_find_the_same_one_exports_it() -> None:
    async def story(node: SimulatedNode) -> None:
        out = exported(node)
        await publish(node, "began", began(node))
        look_back(node.services, taken(node))
        look_back(node.services, taken(node))
        await node.until(lambda: told(node), "it is told")
        await node.pass_time(5.0)
        assert len(told(node)) == 1 and out == ["a" * 16]

    simulate(story)


@pytest.mark.case(543)
def test_the_lease_of_an_older_owner_says_whether_it_lives() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.registry.create(node_key("n7"), encode(NodeLease(boot="boot-7")))
        for span, boot, where in (("a" * 16, "boot-7", "n7"), ("b" * 16, "boot-8", "n8")):
            await publish(node, "began", began(node, span, boot=boot, node=where, generation=3))
        look_back(node.services, taken(node))
        await node.until(lambda: len(told(node)) == 2, "both are told")
        ends = {span.id[0]: span.attributes[semconv.ATTEMPT_END] for span in told(node)}
        assert ends == {"a": "fenced", "b": "lost"}

    simulate(story)


def test_an_agent_that_this_process_had_already_is_not_looked_at() -> None:
    async def story(node: SimulatedNode) -> None:
        await publish(node, "began", began(node))
        asked = len(node.transport.requests)
        look_back(node.services, taken(node, generation=9, boot=node.services.boot))
        await node.pass_time(5.0)
        assert len(node.transport.requests) == asked and not told(node)

    simulate(story)


def test_a_mesh_without_the_stream_waits_for_nothing_and_what_is_known_is_exported() -> None:
    async def story(node: SimulatedNode) -> None:
        out = exported(node)
        del node.server.streams[node.subjects.stream("trace")]

        turning = Turning(key="inbox:12", number=1, prompt="", traced=Traced(trace=TRACE, span="a" * 16))
        steps = {"0": Step(began=1.0, ended=2.0, generation=5, boot=GONE, attempt="a" * 16)}
        look_back(node.services, taken(node, turning=turning, steps=steps))
        await node.until(lambda: out == ["a" * 16], "it is exported")

    simulate(story)


def test_an_outage_of_the_stream_is_waited_for() -> None:
    async def story(node: SimulatedNode) -> None:
        await publish(node, "began", began(node))
        node.faults.leaderless.add(node.subjects.stream("trace"))
        look_back(node.services, taken(node))
        await node.pass_time(20.0)
        node.faults.leaderless.clear()
        await node.until(lambda: told(node), "it is told")

    simulate(story)


@pytest.mark.case(545)
def test_with_all_the_last_facts_of_a_process_that_died_are_there_again() -> None:
    async def story(node: SimulatedNode) -> None:
        now = node.services.now()
        info = TurnInfo(
            number=1,
            ref="12",
            started=now,
            ended=now,
            node="n0",
            generation=5,
            trace=Traced(trace=TRACE, span="a" * 16, boot=GONE),
        )
        turn = Record(kind="turn", id="r", at=now, incarnation="life", epoch=1, generation=5, node="n0", boot=GONE, turn=info)
        for _ in range(2):
            look_back(node.services, taken(node, records=[(7, turn)], history=(info,)))
        await node.until(lambda: told(node), "it is repeated")
        await node.pass_time(5.0)
        (span,) = told(node)
        assert (span.id, span.attributes[semconv.ATTEMPT_END]) == ("a" * 16, "ok")
        look_back(node.services, taken(node, died=False, records=[(8, turn)], history=(info,)))
        await node.pass_time(5.0)
        assert len(told(node)) == 1

    simulate(story, trace_facts="all")


@pytest.mark.case(544)
@pytest.mark.parametrize("drains", [False, True])
@pytest.mark.parametrize("fate", ["told", "superseded", "committed", "its own"])
def test_an_owner_that_was_superseded_sees_to_its_late_beginnings_at_once_if_its_process_ends(fate: str, drains: bool) -> None:
    async def story(node: SimulatedNode) -> None:
        s = node.services
        s.traces.began(began(node, boot=s.boot))
        info = TurnInfo(
            number=1, ref="12", started=1.0, ended=2.0, node="n1", generation=5, trace=Traced(trace=TRACE, span="a" * 16)
        )
        record = Record(
            kind="activated", id="r", at=1.0, incarnation="life", epoch=1, generation=5 if fate == "its own" else 9, node="n2",
            boot=s.boot if fate == "its own" else "boot-2", snapshot=Ledger(incarnation="life"),
            turn=info if fate == "committed" else None,
        )  # fmt: skip
        await store(node.others, node.subjects.journal(AGENT), encode_record(record), headers={"Mesh-Record": "r"})
        if fate == "told":
            span = ToldSpan(
                trace=TRACE, id="a" * 16, name="x", op="invoke_agent", start=1.0, end=2.0, agent=AGENT, service="Coder"
            )
            await publish(node, "spans", Spans(spans=(span,)))
        before = len(told(node))
        tell_if_fenced(s, AGENT, 5)
        if drains:
            await tell_all_fenced(s, FENCED_S / 2)
        else:
            await node.pass_time(2 * FENCED_S)
        new = told(node)[before:]
        assert [span.attributes[semconv.ATTEMPT_END] for span in new] == (["fenced"] if fate == "superseded" else [])
        if new:
            assert node.stored(node.subjects.trace(AGENT, "spans"))[-1].headers["Nats-Msg-Id"] == end_id("a" * 16)

    simulate(story)
