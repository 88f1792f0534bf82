"""Told spans as the OpenTelemetry SDK's exporters take them. Only its functions import the SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from agentmesh import semconv
from agentmesh.trace.spans import SpanKind, ToldSpan

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import SpanContext

type ServiceNames = Literal["kind", "role"]
"""What `service.name` is of: the agent's kind, so that tools draw the edges between agents; or the process's role."""

_KINDS: Mapping[SpanKind, str] = {kind: kind.upper() for kind in ("internal", "client", "producer", "consumer")}


def readable(
    span: ToldSpan,
    services: ServiceNames = "kind",
    *,
    attributes: Mapping[str, Any] | None = None,
    events: Sequence[Event] = (),
) -> ReadableSpan:
    """`span` as exporters of the SDK take it.

    Args:
        span: what was told.
        services: what its `service.name` is of.
        attributes: those that users have added. What the mesh says itself goes before them.
        events: those that users have added.
    """
    from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415
    from opentelemetry.trace import Link, Status, StatusCode  # noqa: PLC0415
    from opentelemetry.trace import SpanKind as Kind  # noqa: PLC0415

    told: dict[str, Any] = dict(span.attributes)
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace, span.id, sampled=span.sampled),
        parent=_context(span.trace, span.parent, sampled=span.sampled) if span.parent else None,
        resource=resource_of(service_of(span, services), span.node),
        attributes={**attributes, **told} if attributes else told,
        events=events,
        links=[Link(_context(*link.split("-", 1), sampled=span.sampled)) for link in span.links],
        kind=Kind[_KINDS[span.kind]],
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=_nanoseconds(span.start),
        end_time=_nanoseconds(span.end),
        instrumentation_scope=_scope(),
    )


def service_of(span: ToldSpan, services: ServiceNames) -> str:
    """The `service.name` of a span."""
    return span.service if services == "kind" and span.service else semconv.service_name("node")


@cache
def resource_of(service: str, instance: str) -> Resource:
    """The resource of a service in one process."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

    return Resource.create(
        {
            semconv.SERVICE_NAME: service,
            semconv.SERVICE_NAMESPACE: "mesh",
            semconv.SERVICE_INSTANCE_ID: instance,
            semconv.SERVICE_VERSION: version("agentmesh"),
        }
    )


def _nanoseconds(seconds: float) -> int:
    # A float knows a time of today to a quarter of a microsecond: what nanoseconds would say is noise.
    return round(seconds * 1_000_000) * 1000


def _context(trace_id: str, span_id: str, *, sampled: bool) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags  # noqa: PLC0415

    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(sampled))


@cache
def _scope() -> Any:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

    return InstrumentationScope(semconv.SCOPE)
