"""What a journal still tells of spans: its records, and the turns that a snapshot remembers."""

from __future__ import annotations

from typing import Any

from agentmesh import semconv
from agentmesh.effects import SendMail
from agentmesh.ledger_entries import Inner, Step, Traced, TurnInfo
from agentmesh.records import Change, Ledger, Record
from agentmesh.trace.history import journal_spans

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def record(kind: Any = "turn", **fields: Any) -> Record:
    return Record(kind=kind, id="r", at=9.0, incarnation="life", epoch=1, generation=5, node="n1", boot="b", **fields)


def turn(number: int) -> TurnInfo:
    span, process = f"{number:016x}", f"{number + 100:016x}"
    traced = Traced(trace=TRACE, span=span, parent=process, process=process, lane="inbox", stored=0.5, began=1.0, boot="b")
    return TurnInfo(number=number, ref=str(number), started=1.0, ended=2.0, node="n1", generation=5, trace=traced)


def ids(spans: Any, op: str) -> list[str]:
    return sorted(span.id for span in spans if span.op == op)


def test_records_and_the_turns_of_a_snapshot_are_told_each_once() -> None:
    snapshot = Ledger(incarnation="life", history=(turn(1), turn(2)))
    records = [(4, record(turn=turn(2))), (5, record("rest", snapshot=snapshot)), (6, record(turn=turn(3)))]
    spans = journal_spans("coder", "Coder", records)
    assert ids(spans, "invoke_agent") == [f"{number:016x}" for number in (1, 2, 3)]
    assert ids(spans, "process") == [f"{number + 100:016x}" for number in (1, 2, 3)]
    assert {span.service for span in spans} == {"Coder"}


def test_what_ran_in_a_turn_is_told_by_its_steps() -> None:
    chat = Inner(id="c" * 16, op="chat", name="large", began=1.1, ended=1.5)
    step = Step(attempt=f"{1:016x}", inner=chat)
    spans = journal_spans("coder", "Coder", [(4, record("step", change=Change(steps={"0": step}))), (5, record(turn=turn(1)))])
    (found,) = [span for span in spans if span.op == "chat"]
    assert (found.id, found.parent) == (chat.id, f"{1:016x}")


def test_mail_is_told_under_its_origin() -> None:
    sent = SendMail(lane="peer-inbox", to="log", trace={"traceparent": f"00-{TRACE}-{1:016x}-01"})
    spans = journal_spans("coder", "Coder", [(4, record("event", effects=(sent,)))])
    (found,) = spans
    assert (found.op, found.parent, found.attributes[semconv.TO]) == ("send", f"{1:016x}", "log")
    assert found.attributes[semconv.ORIGIN] == "1.4.0"


def test_a_journal_of_turns_that_were_not_traced_tells_nothing() -> None:
    plain = TurnInfo(number=1, ref="1", started=1.0, ended=2.0, node="n1", generation=5)
    assert journal_spans("coder", "Coder", [(4, record(turn=plain))]) == ()
