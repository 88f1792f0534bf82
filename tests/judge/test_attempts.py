"""The judge of attempts is itself judged: of forged histories it names what was done to each."""

from __future__ import annotations

from typing import Any

from agentmesh import semconv
from agentmesh.ledger_entries import Step, Traced, TurnInfo
from agentmesh.records import Change, Record
from agentmesh.trace.spans import Began, ToldSpan
from judge.attempts import untold
from judge.evidence import Evidence

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ONE, TWO, THREE = (letter * 16 for letter in "abc")


def record(kind: Any, **fields: Any) -> Record:
    return Record(kind=kind, id="r", at=2.0, incarnation="life", epoch=1, generation=5, node="n1", boot="b", **fields)


def began(span: str) -> Began:
    return Began(
        trace=TRACE, span=span, agent="k0", service="Cell", life="life", ref="1", input="inbox:1", turn=1, started=1.0, node="n1",
        generation=5, boot="b",
    )  # fmt: skip


def told(span: str, end: str, **fields: Any) -> ToldSpan:
    known: dict[str, Any] = {
        "trace": TRACE, "id": span, "name": "invoke_agent k0", "op": "invoke_agent", "start": 1.0, "end": 2.0, "agent": "k0",
        "service": "Cell", "attributes": {semconv.ATTEMPT_END: end},
    }  # fmt: skip
    return ToldSpan(**known | fields)


def honest() -> Evidence:
    """One attempt that its record ends, one that said that it began and was lost, one that left a step and was lost."""
    info = TurnInfo(number=1, ref="1", started=1.0, ended=2.0, node="n1", generation=5, trace=Traced(trace=TRACE, span=ONE))
    records = [(1, record("step", change=Change(steps={"0": Step(attempt=THREE)}))), (2, record("turn", turn=info))]
    spans = [told(ONE, "ok"), told(TWO, "lost"), told(THREE, "lost"), told(TWO, "lost")]
    return Evidence(journals={"k0": records}, begun=[began(ONE), began(TWO)], spans=spans)


def wrong(**changed: Any) -> list[str]:
    evidence = honest()
    for name, value in changed.items():
        setattr(evidence, name, value)
    return list(untold(evidence))


def test_an_honest_history_is_found_well() -> None:
    assert wrong() == []
    assert wrong(spans=None) == [], "of a run that has not recorded the facts nothing is said"


def test_an_attempt_that_nobody_told_of_is_named() -> None:
    spans = honest().spans or ()
    (by_fact,) = wrong(spans=[span for span in spans if span.id != TWO])
    (by_step,) = wrong(spans=[span for span in spans if span.id != THREE])
    assert TWO in by_fact and THREE in by_step
    assert wrong(spans=[span for span in spans if span.id != ONE]) == [], "its record tells of it"
    assert wrong(spans=[], journals={}) == [], "there is no owner to come"


def test_one_that_was_told_in_two_ways_is_named() -> None:
    spans = honest().spans or ()
    assert any("two ways" in line for line in wrong(spans=[*spans, told(TWO, "lost", start=1.5)]))
    assert any("fenced" in line for line in wrong(spans=[*spans, told(TWO, "fenced")]))
    assert any("record stands: True" in line for line in wrong(spans=[*spans, told(ONE, "lost")]))
    assert any("another trace" in line for line in wrong(spans=[told(TWO, "lost", trace="1" * 32), told(THREE, "lost")]))
