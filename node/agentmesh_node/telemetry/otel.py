"""OpenTelemetry for a hosting process: exported if the environment names an OTLP endpoint, else almost free.

Spans are made everywhere through `opentelemetry-api`, whose no-op passes a caller's context on unchanged. Only `setup`
imports the SDK, and only if `OTEL_EXPORTER_OTLP_ENDPOINT`, or the one for traces or for metrics, is set; the other standard
variables (headers, timeout, sampler, batch sizes) then hold too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import metrics, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentmesh import semconv

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
METRICS_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORT_EVERY_MS = 500
log = logging.getLogger("agentmesh.telemetry")


class Telemetry:
    """The providers that `setup` has started. `provider` is None if no spans are exported."""

    def __init__(self, provider: TracerProvider | None, meters: MeterProvider | None = None) -> None:
        self.provider = provider
        self.meters = meters

    def shutdown(self) -> None:
        """Export what is pending and stop; bounded by the exporter's time-out (10 s by default). Blocks: call it in a thread."""
        if self.provider is not None:
            self.provider.shutdown()
        if self.meters is not None:
            self.meters.shutdown()


def setup(role: str, instance_id: str, environ: Mapping[str, str] | None = None) -> Telemetry:
    """Set the process's propagators and, where endpoints are set, its tracer and meter providers. Call it once, early.

    Args:
        role: `node`, `supervisor` or `client`; the resource's `service.name` becomes `mesh-<role>`.
        instance_id: tells this process from others of its role; `service.instance.id`.
        environ: where to look for the endpoint; the process's environment by default.

    An endpoint without the extra `otlp` installed is logged as a warning, and nothing is exported.
    """
    propagate.set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    environ = os.environ if environ is None else environ
    traced, metered = (any(environ.get(name) for name in names) for names in (ENDPOINTS, METRICS_ENDPOINTS))
    try:
        provider = _provider(role, instance_id) if traced else None
        meters = _meters(role, instance_id) if metered else None
    except ImportError as error:
        log.warning("neither traces nor metrics are exported: %s; pip install 'agentmesh[otlp]'", error)
        return Telemetry(None)
    if provider is not None:
        trace.set_tracer_provider(provider)
    if meters is not None:
        metrics.set_meter_provider(meters)
    return Telemetry(provider, meters)


def _provider(role: str, instance_id: str) -> TracerProvider:
    # The SDK and its exporter take a third of a second to import: only processes that export pay for that.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=_resource(role, instance_id), shutdown_on_exit=False)
    # A killed process loses what it has not exported: half a second of spans, not the five of the SDK. The variable wins.
    delay = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else EXPORT_EVERY_MS
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=delay))
    return provider


def _meters(role: str, instance_id: str) -> MeterProvider:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415

    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    return MeterProvider([reader], resource=_resource(role, instance_id), shutdown_on_exit=False)


def _resource(role: str, instance_id: str) -> Resource:
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415

    return Resource.create(
        {
            semconv.SERVICE_NAME: semconv.service_name(role),
            semconv.SERVICE_NAMESPACE: "mesh",
            semconv.SERVICE_INSTANCE_ID: instance_id,
            semconv.SERVICE_VERSION: version("agentmesh"),
        }
    )
