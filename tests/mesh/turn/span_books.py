"""What must hold of the spans that an agent's records tell, whatever has happened to it."""

from __future__ import annotations

from collections import Counter

from agentmesh.records import Traced
from agentmesh.trace.derived import traced_of
from agentmesh.turn.values import AttemptSpans
from mesh.turn.harness import Rig


def check_spans(bench: Rig) -> None:
    """Each attempt that began is told once, by the record that ended it, unless its owner died meanwhile; no message is told
    twice; and every parent that this agent made is told."""
    agent = bench.config.name
    turns = [
        traced_of(agent, record.incarnation, turn)
        for record in bench.written
        for turn in (record.turn, record.attempt)
        if turn is not None
    ]
    traces = [trace for trace in turns if trace is not None]
    assert len(traces) == len(turns), "a turn of which no span is told"
    attempts = Counter(trace.span for trace in traces if trace.span)
    messages = Counter(trace.process for trace in traces if trace.process)
    handled = [one for record in bench.written for one in record.handled]
    messages.update(one.span for one in handled)
    assert max(attempts.values(), default=1) == 1, "an attempt is told twice"
    assert max(messages.values(), default=1) == 1, "a message is told twice"
    assert set(attempts) <= set(bench.begun), "an attempt is told that never began"
    assert set(bench.begun) - set(attempts) <= bench.lost, "an attempt is neither told nor lost"
    told = set(attempts) | set(messages)
    for trace in traces:
        _check_parent(trace, told)
        if trace.span:
            _check_told(trace, bench.begun[trace.span])


def _check_told(trace: Traced, began: AttemptSpans) -> None:
    """What is told of an attempt, or follows from what is told, is what stood when it began."""
    context = began.context
    assert (trace.trace, trace.sampled, trace.parent) == (context.trace_id, context.sampled, began.parent)
    assert (trace.links, trace.crashes, trace.retries) == (began.links, began.crashes, began.retries)
    if trace.process:
        assert (trace.process, trace.above, trace.lane, trace.stored) == (began.process, began.above, began.lane, began.stored)


def _check_parent(trace: Traced, told: set[str]) -> None:
    if trace.parent:
        assert trace.parent in told or not trace.process, "an attempt whose message is not told"
        assert trace.parent in told, "an attempt below something that is not told"
    else:
        assert trace.links, "a turn that nothing has caused"
    assert not any(link.endswith(f"-{trace.parent}") for link in trace.links), "what is above is a link, too"
