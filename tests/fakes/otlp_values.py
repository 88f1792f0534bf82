"""What an OTLP receiver got, as plain values: spans and points of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


class Link(NamedTuple):
    """A link of a span, ids in lower-case hex."""

    trace_id: str
    span_id: str
    attributes: dict[str, object]


class Event(NamedTuple):
    """An event of a span; `time` in nanoseconds since the epoch."""

    name: str
    time: int
    attributes: dict[str, object]


class Received(NamedTuple):
    """One exported span. Ids are lower-case hex, `parent` is "" for a root; times are nanoseconds since the epoch."""

    name: str
    kind: str
    """`INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER`, `CONSUMER`."""
    trace_id: str
    span_id: str
    parent: str
    links: tuple[Link, ...]
    start: int
    end: int
    status: str
    """`UNSET`, `OK`, `ERROR`."""
    message: str
    """What the status says besides."""
    attributes: dict[str, object]
    events: tuple[Event, ...]
    flags: int
    trace_state: str
    scope: str
    resource: dict[str, object]

    @property
    def service(self) -> str:
        """`service.name` of its resource."""
        return str(self.resource.get("service.name", ""))

    @property
    def instance(self) -> str:
        """`service.instance.id` of its resource."""
        return str(self.resource.get("service.instance.id", ""))

    @property
    def linked(self) -> tuple[str, ...]:
        """The ids of the spans that it links to."""
        return tuple(link.span_id for link in self.links)


class Point(NamedTuple):
    """One point of a metric. `value` is a sum's or a gauge's value, or a histogram's sum; `samples` says of how many."""

    name: str
    unit: str
    shape: str
    """`sum`, `gauge`, `histogram`, `exponential_histogram`, `summary`."""
    value: float
    samples: int
    time: int
    attributes: dict[str, object]
    scope: str
    resource: dict[str, object]


def spans_in(request: ExportTraceServiceRequest) -> Iterator[Received]:
    """The spans of one request."""
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _received(span, of_scope.scope.name, resource)


def points_in(request: ExportMetricsServiceRequest) -> Iterator[Point]:
    """The points of one request."""
    for of_resource in request.resource_metrics:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                yield from _points(metric, of_scope.scope.name, resource)


def _received(span: Span, scope: str, resource: dict[str, object]) -> Received:
    return Received(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        attributes=_attributes(span.attributes),
        events=tuple(Event(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events),
        flags=span.flags,
        trace_state=span.trace_state,
        scope=scope,
        resource=resource,
    )


def _points(metric: Metric, scope: str, resource: dict[str, object]) -> Iterator[Point]:
    shape = metric.WhichOneof("data")
    if shape is None:
        return
    for point in getattr(metric, shape).data_points:
        which = point.WhichOneof("value") if shape in ("sum", "gauge") else None
        yield Point(
            name=metric.name,
            unit=metric.unit,
            shape=shape,
            value=float(getattr(point, which) if which else getattr(point, "sum", 0)),
            samples=1 if which else point.count,
            time=point.time_unix_nano,
            attributes=_attributes(point.attributes),
            scope=scope,
            resource=resource,
        )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> object:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return tuple(_value(each) for each in value.array_value.values)
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case str(which):
            return getattr(value, which)
