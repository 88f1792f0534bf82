"""Committed records tell the spans of what happened: all who know the record tell the same ones, and none holds content."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentmesh import semconv
from agentmesh.identity import Party
from agentmesh.ledger_entries import Handled, Inner, Step, Traced, TurnInfo
from agentmesh.records import Ledger, Record, Resolve, SendMail
from agentmesh.trace.context import TraceContext, send_span_id
from agentmesh.trace.spans import ToldSpan
from agentmesh.trace.told import Teller, attempt_span, inner_of, inner_spans, spans_told, turn_spans
from agentmesh.wire import ErrorBody, Outcome, PromptBody

TRACE = "0af7651916cd43dd8448eb211c80319c"
ABOVE, PROCESS, ATTEMPT, CHAT, TOOL = ("1" * 16, "2" * 16, "3" * 16, "4" * 16, "5" * 16)
SECRET = "what nobody may read"
MADE_OF = TraceContext(TRACE, ATTEMPT, depth=1, began=90.0).headers()
MAIL = SendMail(to="worker", lane="peer-inbox", prompt=PromptBody(prompt=SECRET), tag=SECRET, trace=MADE_OF)


def chat(**fields: Any) -> Inner:
    return Inner(id=CHAT, op="chat", name="m-1", began=101.0, ended=102.0, attributes={semconv.REQUEST_MODEL: "m-1"}, **fields)


def tool(**fields: Any) -> Inner:
    return Inner(id=TOOL, op="execute_tool", name="search", began=102.0, ended=103.0, **fields)


def turn(traced: Traced, **fields: Any) -> TurnInfo:
    given: dict[str, Any] = {"number": 7, "ref": "12", "started": 100.0, "ended": 104.0, "node": "n1", "generation": 5, **fields}
    return TurnInfo(prompt=SECRET, answer=SECRET, label=SECRET, trace=traced, **given)


TRACED = Traced(
    trace=TRACE, span=ATTEMPT, parent=PROCESS, process=PROCESS, above=ABOVE, lane="inbox", stored=99.0, began=100.5, boot="b1"
)


def record(**fields: Any) -> Record:
    return Record(kind="turn", id="r", at=104.0, incarnation="life", epoch=2, generation=5, node="n1", boot="b1", **fields)


def told(before: Ledger | None = None, **fields: Any) -> dict[str, ToldSpan]:
    spans = spans_told("coder", "Coder", before, record(**fields), 40, root="acme")
    assert SECRET not in msgspec.json.encode(spans).decode()
    named = {name for row in semconv.ATTRIBUTES for name in (row.name,)}
    assert all(set(span.attributes) <= named for span in spans), "all attributes stand in the table"
    for span in spans:
        on = {row.name for row in semconv.ATTRIBUTES if span.op in row.on}
        assert set(span.attributes) <= on, (span.op, set(span.attributes) - on)
    return {span.id: span for span in spans}


def test_a_turn_tells_its_message_its_attempt_and_what_ran_in_it() -> None:
    usage = {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 3, "usd": 0.25, "model": "m-1"}
    steps = {"0": Step(attempt=ATTEMPT, inner=chat()), "1": Step(attempt="f" * 16, inner=tool()), "2": Step(attempt=ATTEMPT)}
    spans = told(
        Ledger(incarnation="life", steps=steps),
        turn=turn(msgspec.structs.replace(TRACED, inner=(chat(), tool(error="boom"))), usage=usage, sender="boss"),
    )
    assert set(spans) == {PROCESS, ATTEMPT, CHAT, TOOL}, "each once, and no step of another attempt"
    process, attempt = spans[PROCESS], spans[ATTEMPT]
    assert (process.parent, process.start, process.end, process.kind) == (ABOVE, 99.0, 104.0, "consumer")
    assert process.name == "process mesh.inbox.{agent}"
    assert process.attributes[semconv.DESTINATION] == "acme.inbox.coder"
    assert process.attributes[semconv.WAIT] == 1.0
    assert process.attributes[semconv.CALLER_NAME] == "boss"
    assert (attempt.parent, attempt.start, attempt.end, attempt.name) == (PROCESS, 100.5, 104.0, "invoke_agent coder")
    assert {semconv.ATTEMPT_END: "ok", semconv.INPUT_TOKENS: 15, semconv.OUTPUT_TOKENS: 3, semconv.COST: 0.25}.items() <= (
        attempt.attributes.items()
    )
    assert {span.trace for span in spans.values()} == {TRACE}
    assert {span.service for span in spans.values()} == {"Coder"}
    assert {spans[CHAT].parent, spans[TOOL].parent} == {ATTEMPT}
    assert (spans[CHAT].name, spans[CHAT].kind, spans[TOOL].error) == ("chat m-1", "client", "boom")


def test_the_history_tells_the_same_as_the_record_but_for_steps() -> None:
    info = turn(TRACED, error=ErrorBody(code="interrupted", message=SECRET))
    teller = Teller(agent="coder", service="Coder", life="life", epoch=2, root="acme")
    assert {span.id: span for span in turn_spans(teller, info)} == told(turn=info)


def test_an_attempt_that_crashed_is_told_by_the_record_of_the_crash_without_its_message() -> None:
    crashed = msgspec.structs.replace(TRACED, process="", above="", lane="", stored=0.0, crashes=1, retries=2)
    spans = told(attempt=turn(crashed, error=ErrorBody(code="crashed", message=SECRET)))
    assert set(spans) == {ATTEMPT}
    assert (spans[ATTEMPT].error, spans[ATTEMPT].attributes[semconv.ATTEMPT]) == ("crashed", 4)
    assert spans[ATTEMPT].attributes[semconv.ATTEMPT_END] == "error"


def test_a_message_that_ran_nothing_is_a_span_with_its_error_alone() -> None:
    begun = msgspec.structs.replace(TRACED, span="")
    assert set(told(turn=turn(begun, error=ErrorBody(code="dead_letter")))) == {PROCESS}
    handled = Handled(lane="inbox", seq=12, trace=TRACE, span=PROCESS, parent=ABOVE, stored=99.0, ended=103.0, error="expired")
    span = told(handled=(handled,))[PROCESS]
    assert (span.error, span.start, span.end, semconv.WAIT in span.attributes) == ("expired", 99.0, 103.0, False)


def test_mail_is_sent_in_the_moment_of_its_record_and_answers_are_no_spans() -> None:
    answer = SendMail(to="boss", lane="peer-notify", outcome=Outcome(agent="coder", ref="1", ok=True, text=SECRET), trace=MADE_OF)
    withdrawal = SendMail(to="worker", lane="peer-answer", event={"o": 1}, trace=MADE_OF)
    resolve = Resolve(outcome=Outcome(agent="coder", ref="12", ok=True, text=SECRET))
    spans = told(effects=(resolve, answer, withdrawal, MAIL))
    origin = "2.40.3"
    span = spans[send_span_id("coder", origin)]
    assert list(spans.values()) == [span]
    assert (span.parent, span.start, span.end, span.kind) == (ATTEMPT, 104.0, 104.0, "producer")
    assert (span.attributes[semconv.TO], span.attributes[semconv.ORIGIN]) == ("worker", origin)
    root = told(effects=(msgspec.structs.replace(MAIL, trace={}),))
    assert [(span.parent, span.trace != TRACE) for span in root.values()] == [("", True)], "it begins a trace of its own"


def test_who_tells_of_an_attempt_that_was_lost_tells_the_same_but_for_its_end() -> None:
    whole = told(turn=turn(TRACED))[ATTEMPT]
    teller = Teller(agent="coder", service="Coder", life="life", epoch=2, root="acme")
    lost = attempt_span(
        teller,
        trace=TRACE,
        span=ATTEMPT,
        parent=PROCESS,
        ref="12",
        turn=7,
        began=100.5,
        ended=102.0,
        end="lost",
        node="n1",
        generation=5,
        boot="b1",
    )
    assert {**lost.attributes, semconv.ATTEMPT_END: "ok"} == whole.attributes
    assert (lost.id, lost.parent, lost.name, lost.start) == (whole.id, whole.parent, whole.name, whole.start)
    steps = {"0": Step(attempt=ATTEMPT, inner=chat())}
    assert [span.parent for span in inner_spans(teller, lost, inner_of(ATTEMPT, steps))] == [ATTEMPT]


def test_numbers_that_are_none_are_no_tokens() -> None:
    usage = {"input_tokens": "many", "output_tokens": -3, "cache_read_input_tokens": True, "usd": float("inf"), "model": 3}
    attributes = told(turn=turn(TRACED, usage=usage))[ATTEMPT].attributes
    assert not {semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS, semconv.CACHE_READ_TOKENS, semconv.RESPONSE_MODEL} & set(attributes)
    assert semconv.COST not in attributes


@pytest.mark.case(680)
def test_on_whose_behalf_it_was_stands_in_message_and_attempt_and_nowhere_else() -> None:
    shop, boss = Party(kind="user", name="shop", account="CALLERS"), Party(kind="agent", name="boss")
    inner = msgspec.structs.replace(TRACED, inner=(chat(),))
    spans = told(turn=turn(inner, chain=(shop, boss)))
    behalf = {semconv.USER: "shop", semconv.ACCOUNT: "CALLERS", semconv.CHAIN: "user shop of CALLERS -> agent boss"}
    assert all(behalf.items() <= spans[one].attributes.items() for one in (PROCESS, ATTEMPT))
    assert not set(behalf) & set(spans[CHAT].attributes)
    nameless = msgspec.structs.replace(shop, name="")
    event = Handled(lane="peer-notify", seq=9, trace=TRACE, span="6" * 16, chain=(nameless,), ended=3.0)
    (attributes,) = [span.attributes for span in told(handled=(event,)).values()]
    assert semconv.USER not in attributes and attributes[semconv.ACCOUNT] == "CALLERS"
    assert not set(behalf) & set(told(turn=turn(TRACED))[PROCESS].attributes), "where nobody is known nothing is said"
