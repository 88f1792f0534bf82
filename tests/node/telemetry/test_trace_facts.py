"""Facts of traces on the wire: what is published, under which ids, and what is not."""

from __future__ import annotations

from typing import Any, cast

import pytest
from msgspec import structs

from agentmesh import semconv
from agentmesh.edge.transport import Headers
from agentmesh.ledger_entries import Inner, Traced, TurnInfo
from agentmesh.records import Ledger, Record, SendMail
from agentmesh.subjects import Subjects
from agentmesh.trace.facts import spans_in
from agentmesh.trace.spans import Began, Spans, ToldSpan, TraceFacts, decode_began, decode_spans, encode_fact
from agentmesh.trace.told import spans_told
from agentmesh.wire import MSG_ID
from agentmesh_node.telemetry.trace_facts import SpanTeller, end_id, fact_id, parts

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
BEFORE = Ledger(incarnation="life", generation=5, boot="b")


class Wire:
    """Takes posts, of all that a transport can do."""

    max_payload = 1 << 20

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bytes]] = []

    def post(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, though_full: bool = False) -> None:
        assert headers is not None
        self.sent.append((subject, headers[MSG_ID], data))


def info(span: str, error: Any = None) -> TurnInfo:
    traced = Traced(trace=TRACE, span=span, boot="b", began=1.0)
    return TurnInfo(number=1, ref="12", started=1.0, ended=2.0, node="n1", generation=5, error=error, trace=traced)


def record(kind: Any = "turn", **fields: Any) -> Record:
    return Record(kind=kind, id="r", at=2.0, incarnation="life", epoch=3, generation=5, node="n1", boot="b", **fields)


def began(span: str = "a" * 16, **fields: Any) -> Began:
    known: dict[str, Any] = {
        "trace": TRACE, "span": span, "agent": "coder", "service": "Coder", "life": "life", "ref": "12", "input": "inbox:12",
        "turn": 1, "started": 1.0, "node": "n1", "generation": 5, "boot": "b",
    }  # fmt: skip
    return Began(**known | fields)


def teller(wire: Wire, facts: TraceFacts, **options: Any) -> SpanTeller:
    return SpanTeller(cast("Any", wire), Subjects("mesh"), facts, **options)


@pytest.mark.case(541)
def test_with_all_a_record_is_one_fact_under_an_id_that_its_repetition_has_too() -> None:
    wire = Wire()
    told = record(turn=info("a" * 16), effects=(SendMail(lane="peer-notify", to="boss", event=1),))
    teller(wire, "all").committed("coder", "Coder", BEFORE, told, 7)
    ((subject, fact, body),) = wire.sent
    assert (subject, fact) == ("mesh.trace.coder.record", "coder.3.7")
    assert fact == fact_id("coder", told, 7)
    assert spans_in("coder", "record", body, "mesh") == spans_told("coder", "Coder", BEFORE, told, 7)


@pytest.mark.parametrize("facts", ["off", "attempts"])
def test_otherwise_a_record_of_the_history_is_none(facts: TraceFacts) -> None:
    wire = Wire()
    teller(wire, facts).committed("coder", "Coder", BEFORE, record(turn=info("a" * 16)), 7)
    assert not wire.sent


def test_an_end_that_the_history_has_not_is_told_with_attempts_too() -> None:
    wire = Wire()
    teller(wire, "attempts").committed("coder", "Coder", BEFORE, record("crashed", attempt=info("a" * 16)), 7)
    assert [subject for subject, *_ in wire.sent] == ["mesh.trace.coder.record"]
    teller(wire, "off").committed("coder", "Coder", BEFORE, record("crashed", attempt=info("a" * 16)), 7)
    assert len(wire.sent) == 1


def test_records_are_gathered_and_those_that_tell_nothing_cost_nothing() -> None:
    wire = Wire()
    later: list[Any] = []
    telling = teller(wire, "all", later=later.append)
    telling.committed("coder", "Coder", BEFORE, record("rest"), 6)
    assert not later
    for seq in (7, 8):
        telling.committed("coder", "Coder", BEFORE, record(turn=info(f"{seq}" * 16)), seq)
    assert len(later) == 1 and not wire.sent
    later[0]()
    assert [fact for _, fact, _ in wire.sent] == ["coder.3.7", "coder.3.8"]


def test_what_is_exported_is_what_is_sampled() -> None:
    wire = Wire()
    exported: list[Any] = []
    telling = teller(wire, "off", export=exported.append)
    assert telling.traced
    telling.committed("coder", "Coder", BEFORE, record(turn=info("a" * 16)), 7)
    silent = info("b" * 16)
    assert silent.trace is not None
    unsampled = structs.replace(silent, trace=structs.replace(silent.trace, sampled=False))
    telling.committed("coder", "Coder", BEFORE, record(turn=unsampled), 8)
    assert [span.id for spans in exported for span in spans] == ["a" * 16]
    assert not wire.sent and not teller(wire, "off").traced


def test_a_plain_turn_of_a_trace_that_is_not_sampled_is_not_looked_at() -> None:
    later: list[Any] = []
    telling = teller(Wire(), "attempts", export=lambda spans: None, later=later.append)
    plain = info("a" * 16)
    assert plain.trace is not None
    unsampled = structs.replace(plain, trace=structs.replace(plain.trace, sampled=False))
    telling.committed("coder", "Coder", BEFORE, record(turn=unsampled), 7)
    assert not later
    telling.committed(
        "coder", "Coder", BEFORE, record(turn=unsampled, effects=(SendMail(lane="peer-notify", to="boss", event=1),)), 8
    )
    assert later, "mail may be in another trace"


def test_a_defect_costs_the_spans_alone(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()
    broken = record(turn=structs.replace(info("a" * 16), usage=cast("Any", 5)))
    exported: list[Any] = []
    telling = teller(wire, "off", export=exported.append)
    telling.committed("coder", "Coder", BEFORE, broken, 7)
    telling.committed("coder", "Coder", BEFORE, record(turn=info("b" * 16)), 8)
    assert [span.id for spans in exported for span in spans] == ["b" * 16]
    assert "cannot be told" in caplog.text


def test_a_record_whose_fact_fits_no_message_is_published_as_its_spans() -> None:
    wire = Wire()
    wire.max_payload = 4096
    sends = tuple(SendMail(lane="peer-notify", to="boss", event=n) for n in range(300))
    told = record(turn=info("a" * 16), effects=sends)
    teller(wire, "all").committed("coder", "Coder", BEFORE, told, 7)
    assert {subject for subject, *_ in wire.sent} == {"mesh.trace.coder.spans"}
    found = tuple(span for *_, body in wire.sent for span in spans_in("coder", "spans", body, "mesh"))
    assert found == spans_told("coder", "Coder", BEFORE, told, 7)


@pytest.mark.case(541)
def test_a_beginning_is_published_at_once() -> None:
    wire = Wire()
    telling = teller(wire, "attempts")
    telling.began(began())
    ((subject, fact, body),) = wire.sent
    assert (subject, fact) == ("mesh.trace.coder.began", "a" * 16 + "-began")
    assert decode_began(body) == began()


@pytest.mark.case(544)
def test_one_that_its_process_began_and_never_ended_is_told_when_nothing_is_left_to_do() -> None:
    wire = Wire()
    exported: list[Any] = []
    telling = teller(wire, "attempts", export=exported.append)
    for span in "abc":
        telling.began(began(span * 16, generation=4 if span == "c" else 5))
    telling.committed("coder", "Coder", BEFORE, record(turn=info("a" * 16)), 7)
    exported.clear()
    wire.sent.clear()
    telling.committed("coder", "Coder", BEFORE, record("rest"), 8)
    ((_, fact, body),) = wire.sent
    assert fact == end_id("b" * 16), "the others have been ended, or belong to the next owner"
    (told,) = decode_spans(body)
    assert told.attributes[semconv.ATTEMPT_END] == "fenced" and exported == [(told,)]
    telling.committed("coder", "Coder", BEFORE, record("rest"), 9)
    assert len(wire.sent) == 1


def test_who_hands_an_agent_over_leaves_its_attempt_to_the_next_owner() -> None:
    wire = Wire()
    telling = teller(wire, "attempts")
    telling.began(began())
    assert telling.begun_of("coder", 5) == [began()] and telling.begun_of("coder", 6) == []
    telling.began(began(left=3.0), "left")
    assert telling.begun_of("coder", 5) == []
    assert [fact for _, fact, _ in wire.sent] == ["a" * 16 + "-began", "a" * 16 + "-left"]


@pytest.mark.case(731)
def test_calls_that_were_open_at_a_hand_over_are_told_by_the_owner_that_made_them() -> None:
    wire, exported = Wire(), list[tuple[ToldSpan, ...]]()
    telling = teller(wire, "attempts", export=exported.append)
    question = Inner(id="c" * 16, op="execute_tool", name="ask", began=2.0, ended=3.0, error="interrupted")
    telling.left(began(left=3.0), (question,), 1)
    assert [fact for _, fact, _ in wire.sent] == ["a" * 16 + "-left", "a" * 16 + "-open"]
    ((told,),) = exported
    assert (told.id, told.parent, told.name, told.error) == ("c" * 16, "a" * 16, "execute_tool ask", "interrupted")


def test_it_knows_for_whom_its_process_acts() -> None:
    telling = teller(Wire(), "attempts")
    telling.began(began())
    telling.owns("coder", 5, owned=True)
    telling.owns("coder", 4, owned=False)
    assert telling.owned("coder") == 5
    telling.owns("coder", 5, owned=False)
    assert telling.owned("coder") is None
    assert telling.forgotten("coder", 5) == [began()] and telling.forgotten("coder", 5) == []


def test_spans_that_fit_no_message_are_several_facts() -> None:
    spans = tuple(
        ToldSpan(trace=TRACE, id=f"{n:016x}", name="chat m", op="chat", start=1.0, end=2.0, agent="a", service="A")
        for n in range(9)
    )
    found = list(parts(spans, 2 * len(encode_fact(Spans(spans=spans[:1])))))
    assert tuple(span for _, body in found for span in decode_spans(body)) == spans
    assert len({part for part, _ in found}) == len(found) > 4
    assert list(parts(spans, 1 << 20)) == [("", encode_fact(Spans(spans=spans)))]
