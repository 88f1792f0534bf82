"""OpenTelemetry for a process that hosts: exported when an OTLP endpoint is named in the environment, else free of cost.

Spans are made everywhere through `opentelemetry-api`, whose no-op carries a caller's context onward unchanged. Only `setup`
imports the SDK, and only if `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set; the other standard
variables (headers, timeout, sampler, batch sizes) then hold too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentmesh import semconv

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORT_EVERY_MS = 500
_log = logging.getLogger("agentmesh.telemetry")


class Telemetry:
    """What `setup` has started. `provider` is None when nothing is exported."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self.provider = provider

    def shutdown(self) -> None:
        """Export what is pending and stop; bounded by the exporter's time-out (10 s by default). Blocks: call it in a thread."""
        if self.provider is not None:
            self.provider.shutdown()


def setup(role: str, instance_id: str, environ: Mapping[str, str] | None = None) -> Telemetry:
    """Set the process's propagators and, where an endpoint is set, its tracer provider. Call it once, early.

    Args:
        role: `node`, `supervisor` or `client`; the resource's `service.name` becomes `mesh-<role>`.
        instance_id: What tells this process from its like; `service.instance.id`.
        environ: Where to look for the endpoint; the process's environment by default.

    An endpoint without the extra `otlp` installed is logged as a warning, and nothing is exported.
    """
    propagate.set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    environ = os.environ if environ is None else environ
    if not any(environ.get(name) for name in ENDPOINTS):
        return Telemetry(None)
    try:
        provider = _provider(role, instance_id)
    except ImportError as error:
        _log.warning("no traces are exported: %s; pip install 'agentmesh[otlp]'", error)
        return Telemetry(None)
    trace.set_tracer_provider(provider)
    return Telemetry(provider)


def _provider(role: str, instance_id: str) -> TracerProvider:
    # The SDK and its exporter take a third of a second to import: only who exports pays.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=_resource(role, instance_id), shutdown_on_exit=False)
    # A killed process loses what it has not exported: half a second of spans, not the five of the SDK. The variable wins.
    delay = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else EXPORT_EVERY_MS
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=delay))
    return provider


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
