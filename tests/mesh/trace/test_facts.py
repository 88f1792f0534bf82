"""Facts of records: readers tell the same spans from them as from the record itself, and nothing of its content."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from agentmesh.effects import Resolve, SendMail, StopAgent
from agentmesh.ledger_entries import Handled, Inner, Step, Traced, TurnInfo
from agentmesh.records import Ledger, Record
from agentmesh.trace.facts import record_fact, spans_in
from agentmesh.trace.told import spans_told
from agentmesh.wire import ErrorBody, Outcome, PromptBody

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CHAT = Inner(id="1" * 16, op="chat", name="large", began=1.0, ended=1.5, attributes={"gen_ai.usage.output_tokens": 7})
BEFORE = Ledger(incarnation="life", steps={"0": Step(value=Raw(b'"SECRET"'), attempt=SPAN, inner=CHAT)})


def record(**fields: Any) -> Record:
    return Record(kind="turn", id="r", at=2.0, incarnation="life", epoch=3, generation=5, node="n1", boot="b", **fields)


def turn(**fields: Any) -> TurnInfo:
    traced = Traced(trace=TRACE, span=SPAN, parent="2" * 16, process="2" * 16, lane="inbox", stored=0.5, began=1.0, boot="b")
    made = {"prompt": "SECRET", "answer": "SECRET", "note": "SECRET", "label": "SECRET", "usage": {"output_tokens": 7}}
    return TurnInfo(number=1, ref="12", started=1.0, ended=2.0, node="n1", generation=5, trace=traced, **{**made, **fields})


SENDS = (
    Resolve(outcome=Outcome(agent="coder", ref="12", ok=True, text="SECRET")),
    SendMail(lane="peer-inbox", to="boss", prompt=PromptBody(prompt="SECRET"), trace={"traceparent": f"00-{TRACE}-{SPAN}-01"}),
    StopAgent(name="x"),
    SendMail(lane="peer-notify", to="log", event="SECRET"),
    SendMail(lane="peer-answer", to="boss", outcome=Outcome(agent="coder", ref="1", ok=True, text="SECRET")),
)
HEARD = Handled(lane="notify", seq=4, trace=TRACE, span="3" * 16, stored=1.0, began=1.1, ended=1.2)


@pytest.mark.parametrize(
    "told",
    [
        record(turn=turn(), effects=SENDS),
        record(attempt=turn(error=ErrorBody(code="crashed", message="SECRET", details={"x": "SECRET"}))),
        record(handled=(HEARD,), effects=SENDS[:2]),
        record(turn=turn(), handled=(HEARD,), trace={"traceparent": f"00-{TRACE}-{SPAN}-00"}),
    ],
)
def test_a_fact_tells_what_its_record_tells_and_no_content(told: Record) -> None:
    body = record_fact("Coder", BEFORE, told, 7, 0.5)
    assert body is not None
    assert b"SECRET" not in body
    assert spans_in("coder", "record", body, "team") == spans_told("coder", "Coder", BEFORE, told, 7, root="team", ratio=0.5)


def test_a_record_that_tells_nothing_has_no_fact() -> None:
    assert record_fact("Coder", BEFORE, record(effects=SENDS[:1]), 7) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"service":"A","seq":1,"at":1,"life":"l","sends":[[999999999,"a","peer-inbox"]],"turn":{"number":"x"}}',
    ],
)
def test_what_a_stranger_writes_is_no_fact(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        spans_in("coder", "record", body, "mesh")


def test_absurd_places_of_mail_cost_no_memory() -> None:
    body = b'{"service":"A","seq":1,"at":1,"life":"l","sends":[[999999999,"a","peer-inbox"],[-5,"a","peer-inbox"]]}'
    assert spans_in("coder", "record", body, "mesh") == ()


def test_a_turns_usage_that_is_none_is_no_fact() -> None:
    body = record_fact("Coder", BEFORE, record(turn=turn()), 7)
    assert body is not None
    broken = body.replace(b'"usage":{"output_tokens":7}', b'"usage":{"output_tokens":{"a":1}}')
    assert broken != body
    assert spans_in("coder", "record", broken, "mesh")  # what is no number is left out
