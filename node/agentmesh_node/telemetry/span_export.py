"""Told spans on their way to a collector, with those that users' own code makes. Importing this module imports the SDK.

One queue serves all of a process's spans, and they leave in batches, from a thread of its own. Only there they become what the
exporter takes: the node's loop does no more than to put them into the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from opentelemetry import context as otel_context
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, Span
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from agentmesh import semconv
from agentmesh.edge.clock import SYSTEM
from agentmesh.trace.readable import ServiceNames, readable, resource_of
from agentmesh.trace.spans import ToldSpan
from agentmesh_node.telemetry.open_spans import MOST_ATTRIBUTES, Added, Additions
from agentmesh_node.telemetry.tracing import here

_SAMPLED = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class _Queued:
    """A told span in the queue."""

    __slots__ = ("added", "span")
    context = _SAMPLED
    """What the queue asks for: only sampled spans are put into it."""

    def __init__(self, span: ToldSpan, added: Added | None) -> None:
        self.span = span
        self.added = added

    def readable(self, services: ServiceNames) -> ReadableSpan:
        """The span as an exporter takes it."""
        if self.added is None:
            return readable(self.span, services)
        events = [Event(event.name, _bounded(event.attributes), timestamp=event.time_ns) for event in self.added.events]
        return readable(self.span, services, attributes=_bounded(self.added.attributes), events=events)


def _bounded(attributes: dict[str, Any]) -> BoundedAttributes:
    """Users' attributes, without those that are none."""
    return BoundedAttributes(MOST_ATTRIBUTES, attributes)


class _Exporter(SpanExporter):
    """Makes of what is in the queue what `inner` takes."""

    def __init__(self, inner: SpanExporter, services: ServiceNames, instance: str) -> None:
        self._inner = inner
        self._services: ServiceNames = services
        self._instance = instance

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._inner.export([self._exported(span) for span in spans])

    def _exported(self, span: ReadableSpan | _Queued) -> ReadableSpan:
        if isinstance(span, _Queued):
            return span.readable(self._services)
        kind = (span.attributes or {}).get(semconv.KIND)
        if self._services != "kind" or not isinstance(kind, str):
            return span
        # A span of an agent's own code is a part of that agent: else tools would draw an edge from the agent to itself.
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=resource_of(kind, self._instance),
            attributes=span.attributes,
            events=span.events,
            links=span.links,
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class SpanQueue(BatchSpanProcessor):
    """The one queue of a process's spans; see `agentmesh_node.telemetry.tracing.SpanExport`."""

    def __init__(self, exporter: SpanExporter, services: ServiceNames, instance: str, *, every_ms: float | None = None) -> None:
        """
        Args:
            exporter: takes the spans.
            services: what `service.name` is of.
            instance: tells this process from others: `service.instance.id` of spans that users' code makes.
            every_ms: how often a batch leaves; None as the SDK's variables say.
        """
        self.additions = Additions(SYSTEM.now)
        super().__init__(_Exporter(exporter, services, instance), schedule_delay_millis=every_ms)

    def tell(self, spans: tuple[ToldSpan, ...]) -> None:
        """Export those of them that are sampled, some time soon."""
        for span in spans:
            added = self.additions.take(span.id)
            if span.sampled:
                self.on_end(cast("ReadableSpan", _Queued(span, added)))

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A span that users' code makes bears the agent that it belongs to."""
        found = here(parent_context if parent_context is not None else otel_context.get_current())
        if found is not None:
            span.set_attributes({semconv.AGENT_NAME: found.agent, semconv.KIND: found.kind})
