"""The OTLP receiver of the tests gets what exporters send, over HTTP and gRPC, and fails as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from fakes.otlp import OtlpReceiver

OTHER = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))
PATIENCE_S = 30


@pytest.fixture(params=["http", "grpc"])
def receiver(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    with OtlpReceiver(grpc=request.param == "grpc") as made:
        yield made


def exporters(receiver: OtlpReceiver, timeout: float) -> tuple[SpanExporter, MetricExporter]:
    if receiver.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

        at = receiver.endpoint
        return GrpcSpans(at, insecure=True, timeout=timeout), GrpcMetrics(at, insecure=True, timeout=timeout)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans

    return (
        HttpSpans(endpoint=f"{receiver.endpoint}/v1/traces", timeout=timeout),
        HttpMetrics(endpoint=f"{receiver.endpoint}/v1/metrics", timeout=timeout),
    )


def one_span(name: str) -> ReadableSpan:
    """A span that has ended."""
    span = TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_span(name)
    span.end()
    assert isinstance(span, ReadableSpan)
    return span


def test_a_span_arrives_with_all_that_it_has(receiver: OtlpReceiver) -> None:
    exporter, _ = exporters(receiver, PATIENCE_S)
    provider = TracerProvider(resource=Resource({"service.name": "s", "service.instance.id": "i"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("scope of it")
    with tracer.start_as_current_span("root") as root:
        made = tracer.start_span(
            "leaf",
            kind=SpanKind.CLIENT,
            links=[Link(OTHER, {"why": "since"})],
            attributes={"n": 3, "list": ["a", "b"]},
            start_time=5,
        )
        made.add_event("happened", {"x": True}, timestamp=6)
        made.set_status(Status(StatusCode.ERROR, "it broke"))
        made.end(7)
    provider.shutdown()
    receiver.until(lambda spans: len(spans) == 2)
    leaf, above = receiver.spans
    assert (leaf.name, leaf.kind, leaf.service, leaf.instance, leaf.scope) == ("leaf", "CLIENT", "s", "i", "scope of it")
    assert (leaf.start, leaf.end, leaf.status, leaf.message) == (5, 7, "ERROR", "it broke")
    assert leaf.attributes == {"n": 3, "list": ("a", "b")}
    assert [(event.name, event.time, event.attributes) for event in leaf.events] == [("happened", 6, {"x": True})]
    assert [(int(link.trace_id, 16), int(link.span_id, 16), link.attributes) for link in leaf.links] == [
        (0xABC, 0xDEF, {"why": "since"})
    ]
    context = root.get_span_context()
    assert (leaf.trace_id, leaf.parent) == (trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id))
    assert (above.parent, above.status, above.links) == ("", "UNSET", ())
    assert receiver.twice() == []


def test_points_of_metrics_arrive(receiver: OtlpReceiver) -> None:
    _, exporter = exporters(receiver, PATIENCE_S)
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)], shutdown_on_exit=False)
    meter = provider.get_meter("tests")
    meter.create_counter("turns", unit="{turn}").add(3, {"kind": "K"})
    meter.create_histogram("took", unit="s").record(0.5)
    provider.shutdown()
    points = {point.name: point for point in receiver.points}
    assert (points["turns"].shape, points["turns"].value, points["turns"].unit) == ("sum", 3, "{turn}")
    assert points["turns"].attributes == {"kind": "K"}
    assert (points["took"].shape, points["took"].value, points["took"].samples) == ("histogram", 0.5, 1)


def test_it_refuses_and_heals_and_forgets(receiver: OtlpReceiver) -> None:
    exporter, _ = exporters(receiver, PATIENCE_S)
    receiver.refuse(400)
    assert exporter.export([one_span("refused")]) is SpanExportResult.FAILURE
    assert (receiver.spans, receiver.requests) == ([], 1)
    receiver.heal()
    assert exporter.export([one_span("taken")]) is SpanExportResult.SUCCESS
    assert [span.name for span in receiver.spans] == ["taken"]
    again = one_span("again")
    exporter.export([again])
    exporter.export([again])
    assert receiver.twice() == ["again"]
    receiver.wipe()
    assert receiver.spans == []
    exporter.shutdown()


def test_what_hangs_is_let_go_by_healing_and_what_is_slow_is_kept_at_once(receiver: OtlpReceiver) -> None:
    exporter, _ = exporters(receiver, PATIENCE_S)
    results: list[SpanExportResult] = []
    receiver.slow(PATIENCE_S)
    slow = threading.Thread(target=lambda: results.append(exporter.export([one_span("slow")])))
    slow.start()
    receiver.wait_for("slow")
    assert results == [], "it has not been answered"
    receiver.heal()
    slow.join(PATIENCE_S)
    assert results == [SpanExportResult.SUCCESS]

    receiver.hang()
    hung, _ = exporters(receiver, 0.2)
    assert hung.export([one_span("hung")]) is SpanExportResult.FAILURE
    assert [span.name for span in receiver.spans] == ["slow"]
    exporter.shutdown()
    hung.shutdown()
