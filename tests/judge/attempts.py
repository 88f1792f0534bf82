"""What must hold of the attempts of a run: each that journals and begin facts have was told once, with one end
(docs/design/039-attempts-that-nobody-ended.md)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from msgspec import UNSET

from agentmesh import semconv
from agentmesh.ledger import apply
from agentmesh.records import Ledger
from agentmesh.trace.context import inner_span_id
from agentmesh.trace.lost import attempts_ended
from agentmesh.trace.spans import ToldSpan
from agentmesh.trace.told import spans_told
from judge.evidence import Evidence

COMMITTED = ("ok", "error")


def untold(evidence: Evidence) -> Iterator[str]:
    """What is wrong with them; nothing where the stream of facts was not recorded."""
    if evidence.spans is None:
        return
    journals = evidence.journals.items()
    ended = {span for agent, records in journals for _, record in records for span in attempts_ended(agent, record)}
    told: dict[str, dict[str, ToldSpan]] = defaultdict(dict)
    for span in evidence.spans:
        if span.op != "invoke_agent":
            continue
        end = str(span.attributes.get(semconv.ATTEMPT_END))
        other = told[span.id].setdefault(end, span)
        if other != span:
            yield f"{span.agent}: the attempt {span.id} was told in two ways: {other} and {span}"
    begun = {fact.span: fact for fact in evidence.begun}
    for attempt, ends in told.items():
        if len(ends) > 1 or (attempt in ended and not set(ends) <= set(COMMITTED)):
            agent = next(iter(ends.values())).agent
            yield f"{agent}: the attempt {attempt} was told to have ended {sorted(ends)}; its record stands: {attempt in ended}"
    for attempt, agent in (_stepped(evidence) | {fact.span: fact.agent for fact in evidence.begun}).items():
        # Strangers have emptied the journal of an agent that has none: it ends as lost, and no owner comes that would tell.
        if attempt not in ended and attempt not in told and agent in evidence.journals:
            yield f"{agent}: nobody has told of the attempt {attempt} ({begun.get(attempt)})"
        if attempt in begun and attempt in told and any(span.trace != begun[attempt].trace for span in told[attempt].values()):
            yield f"{agent}: the attempt {attempt} was told in another trace than it began in"


def orphans(evidence: Evidence, *, lossless: bool = True) -> Iterator[str]:
    """Spans below one that nobody tells, or that two records tell: those of journals and of facts together are whole trees.
    `lossless`: no fact can have been lost."""
    spans = {span.id: span for span in evidence.spans or ()}
    cut_off = _cut_off(evidence, lossless=lossless)
    told: set[str] = set()
    for agent, records in evidence.journals.items():
        ledger: Ledger | None = None
        for seq, record in records:
            for span in spans_told(agent, "", ledger, record, seq):
                if span.id in told:
                    yield f"{agent}: the record {seq} tells the span {span.name} ({span.id}) once more"
                told.add(span.id)
                spans[span.id] = span
            ledger = apply(ledger, record, seq)
    for span in spans.values():
        if span.parent and span.parent not in spans and span.parent not in cut_off:
            yield f"{span.agent}: the span {span.name} ({span.id}) stands below {span.parent}, of which nobody tells"


def _cut_off(evidence: Evidence, *, lossless: bool) -> set[str]:
    """The spans of tools that asked an agent when their turn was cut off, or its node died: nobody tells them, but those of an
    attempt that was handed on."""
    moved = {s.id for s in evidence.spans or () if lossless and s.attributes.get(semconv.ATTEMPT_END) == "moved"}
    found: set[str] = set()
    for records in evidence.journals.values():
        for _, record in records:
            waits = record.change.waits if record.change.waits is not UNSET else {}
            asked = ((name, wait.attempt) for name, wait in waits.items() if wait is not None and wait.attempt not in moved)
            found |= {inner_span_id(attempt, "execute_tool", name) for name, attempt in asked}
    return found


def _stepped(evidence: Evidence) -> dict[str, str]:
    """The attempts that have taken steps, with their agents."""
    found: dict[str, str] = {}
    for agent, records in evidence.journals.items():
        for _, record in records:
            steps = record.change.steps if record.change.steps is not UNSET else {}
            found |= {step.attempt: agent for step in steps.values() if step is not None and step.attempt}
    return found
