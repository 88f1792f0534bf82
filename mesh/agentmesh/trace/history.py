"""The spans that a journal still tells: of its records, and of the turns that its snapshots remember. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentmesh.ledger import apply
from agentmesh.records import Ledger, Record
from agentmesh.trace.spans import ToldSpan
from agentmesh.trace.told import Teller, spans_told, turn_spans
from agentmesh.trace.tree import merged


def journal_spans(agent: str, service: str, records: Iterable[tuple[int, Record]], *, root: str = "mesh") -> tuple[ToldSpan, ...]:
    """All spans that the records of a journal (sequence, record; oldest first) tell, each once.

    Args:
        agent: whose journal it is.
        service: that agent's kind.
        root: the mesh's.
    """
    found: list[ToldSpan] = []
    ledger: Ledger | None = None
    for seq, record in records:
        former = record.snapshot
        if former is not None:
            teller = Teller(agent=agent, service=service, life=former.incarnation, epoch=former.epoch, root=root)
            found += [span for info in former.history for span in turn_spans(teller, info)]
        found += spans_told(agent, service, former if former is not None else ledger, record, seq, root=root)
        ledger = apply(ledger, record, seq)
    return tuple(merged(found).values())
