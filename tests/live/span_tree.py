"""What must hold of the spans of a run, and how two of them are compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from agentmesh import semconv
from fakes.otlp_values import Received

MESH = semconv.SCOPE
"""The scope of the mesh's own spans."""


def own(spans: Iterable[Received]) -> list[Received]:
    """The mesh's own spans; the others are its users'."""
    return [span for span in spans if span.scope == MESH]


def orphans(spans: Sequence[Received], above: Iterable[str] = ()) -> list[str]:
    """The names of spans whose parent is missing; `above` are the ids of parents that others made."""
    there = {(span.trace_id, span.span_id) for span in spans}
    known = {"", *above}
    return [span.name for span in spans if span.parent not in known and (span.trace_id, span.parent) not in there]


def repeated(spans: Iterable[Received]) -> list[str]:
    """The names of spans that are there more than once."""
    counted = Counter((span.trace_id, span.span_id, span.name) for span in spans)
    return [name for (_, _, name), count in counted.items() if count > 1]


def attempts(spans: Iterable[Received], agent: str | None = None) -> list[Received]:
    """The attempts of turns, of one agent perhaps, by age."""
    found = [span for span in spans if span.attributes.get(semconv.OPERATION) == semconv.OPERATION_INVOKE_AGENT]
    found = [span for span in found if span.kind == "INTERNAL" and agent in (None, span.attributes.get(semconv.AGENT_NAME))]
    return sorted(found, key=lambda span: span.start)


def ends(spans: Iterable[Received], agent: str | None = None) -> list[object]:
    """How those attempts ended."""
    return [span.attributes.get(semconv.ATTEMPT_END) for span in attempts(spans, agent)]


type Compared = tuple[object, ...]


def compared(spans: Iterable[Received]) -> dict[tuple[str, str], Compared]:
    """Each span by its ids, with all of it that a rebuilt one must have too."""
    return {
        (span.trace_id, span.span_id): (
            span.name, span.kind, span.parent, span.service, span.status, span.start, span.end,
            tuple(sorted((link.trace_id, link.span_id) for link in span.links)),
            tuple(sorted((key, repr(value)) for key, value in span.attributes.items())),
        )
        for span in spans
    }  # fmt: skip


def drawn(spans: Sequence[Received]) -> str:
    """The spans as trees, for people."""
    there = {(span.trace_id, span.span_id) for span in spans}
    below: dict[tuple[str, str], list[Received]] = defaultdict(list)
    roots = []
    for span in sorted(spans, key=lambda span: span.start):
        where = (span.trace_id, span.parent)
        below[where].append(span)
        if where not in there:
            roots.append(span)
    lines: list[str] = []

    def draw(span: Received, depth: int) -> None:
        end = span.attributes.get(semconv.ATTEMPT_END, "")
        lost = f" (parent {span.parent} is missing)" if depth == 0 and span.parent else ""
        took = (span.end - span.start) / 1e6
        lines.append(f"{'  ' * depth}{span.name} [{span.kind}, {span.service} {span.instance}] {took:.1f} ms {end}{lost}")
        for each in below[span.trace_id, span.span_id]:
            draw(each, depth + 1)

    for root in roots:
        lines.append(f"trace {root.trace_id}")
        draw(root, 1 if not root.parent else 0)
    return "\n".join(lines)
