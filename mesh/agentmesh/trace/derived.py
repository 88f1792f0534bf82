"""What a record does not tell of a plain turn's spans, as it follows from what the record says of the turn
(docs/design/049-ids-that-nobody-asks-for.md). Pure."""

from __future__ import annotations

from agentmesh.ledger import turn_name
from agentmesh.ledger_entries import Derived, Traced, TurnBefore, TurnInfo
from agentmesh.times import parse_time
from agentmesh.trace.context import attempt_span_id, is_sampled, process_span_id, trace_id_of


def traced_of(agent: str, life: str, info: TurnInfo) -> Traced | None:
    """What is told of the spans of a turn; None if nothing is.

    Args:
        agent: whose turn it is.
        life: that one's incarnation.
        info: the turn's entry, of a record or of the history.

    Raises:
        BadRequest: no record of this mesh has such an entry.
    """
    derived = info.derived
    if derived is None or info.trace is not None:
        return info.trace
    trace = trace_id_of(None, agent, life, info.ref, derived.stored)
    lane = derived.key.partition(":")[0]
    process = process_span_id(agent, life, lane, info.ref)
    name = turn_name(agent, life, derived.epoch, info.number, derived.key)
    before = derived.before
    return Traced(
        trace=trace,
        span=attempt_span_id(name, info.generation, derived.boot, derived.crashes, 0),
        parent=process,
        links=derived.links if before is None else (_link(agent, life, before, info, derived),),
        sampled=derived.ratio is None or is_sampled(trace, derived.ratio),
        began=derived.began or 0.0,
        boot=derived.boot,
        crashes=derived.crashes,
        process=process,
        lane=lane,
        stored=parse_time(derived.stored) if derived.stored is not None else 0.0,
    )


def _link(agent: str, life: str, before: TurnBefore, info: TurnInfo, derived: Derived) -> str:
    name = turn_name(agent, life, before.epoch, before.number, before.key)
    generation, boot = (before.generation, before.boot) if before.boot else (info.generation, derived.boot)
    span = attempt_span_id(name, generation, boot, before.crashes, 0)
    return f"{trace_id_of(None, agent, life, before.ref, before.stored)}-{span}"


def boot_of(info: TurnInfo) -> str | None:
    """The process that ran a turn, as far as its entry says."""
    if info.trace is not None:
        return info.trace.boot
    return info.derived.boot if info.derived is not None else None
