"""OpenTelemetry for a hosting process: exported if the environment names an OTLP endpoint, else almost free.

Spans and measurements are made everywhere through `opentelemetry-api`, whose no-op passes a caller's context on unchanged. Only
`setup` imports the SDK, and only if `OTEL_EXPORTER_OTLP_ENDPOINT`, or the one for traces or for metrics, is set; the other
standard variables (protocol, headers, timeout, sampler, batch sizes) then hold too. An endpoint that is down, slow or refuses
costs nothing but what it should have got: it is told once (`outages`), and a process that ends leaves it after `SHUTDOWN_S`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import metrics, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentmesh import semconv
from agentmesh.edge import store_errors
from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BadRequest
from agentmesh.trace.readable import ServiceNames
from agentmesh_node.telemetry.instruments import own
from agentmesh_node.telemetry.outages import Outages, hush, watched
from agentmesh_node.telemetry.tracing import set_span_export

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    from agentmesh_node.telemetry.prometheus import Exposition
    from agentmesh_node.telemetry.span_export import SpanQueue

EXPORT_EVERY_MS = 500
SHUTDOWN_S = 1.5
"""How long a process that ends waits for its last telemetry to be taken."""
SERVICE_VARIABLE = "MESH_TRACE_SERVICE"
"""What the `service.name` of agents' spans is of: `kind`, the agent's (the default), or `role`, the process's."""
PROTOCOLS = ("http/protobuf", "grpc")
log = logging.getLogger("agentmesh.telemetry")


class Telemetry:
    """The providers that `setup` has started. `provider` is None if no spans are exported."""

    def __init__(
        self, provider: TracerProvider | None, meters: MeterProvider | None = None, exposition: Exposition | None = None
    ) -> None:
        self.provider = provider
        self.meters = meters
        self.exposition = exposition
        """The metrics for Prometheus; None if they are not exposed, or the extra `prometheus` is not installed."""

    def shutdown(self, within_s: float = SHUTDOWN_S) -> None:
        """Export what is pending and stop, within `within_s` seconds: what an endpoint has not taken by then is left. Blocks:
        call it in a thread."""
        # In threads that the process does not wait for: the SDK's own calls may last as long as the exporter's time-out and more.
        if self.provider is not None:
            set_span_export(None)
        parts = [part.shutdown for part in (self.provider, self.meters) if part is not None]
        ends = [threading.Thread(target=_quietly, args=(part,), daemon=True, name="end of telemetry") for part in parts]
        for end in ends:
            end.start()
        deadline = SYSTEM.monotonic() + within_s
        for end in ends:
            end.join(max(0.0, deadline - SYSTEM.monotonic()))
        if any(end.is_alive() for end in ends) and not any(outages.lasts for outages in _shared):
            log.warning("the last spans and metrics were left: their endpoint does not take them in time")


def setup(role: str, instance_id: str, environ: Mapping[str, str] | None = None, *, expose: bool = False) -> Telemetry:
    """Set the process's propagators and, where endpoints are set, its tracer and meter providers. Call it once, early.

    Args:
        role: `node`, `supervisor` or `client`; the resource's `service.name` becomes `mesh-<role>`.
        instance_id: tells this process from others of its role; `service.instance.id`.
        environ: where to look for endpoints and protocols; the process's environment by default.
        expose: have the metrics for Prometheus, too, if the extra `prometheus` is installed.

    What cannot be meant, and an endpoint without the extra `otlp` (or `otlp-grpc`) installed, is logged as a warning, and nothing
    is exported.
    """
    propagate.set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    environ = os.environ if environ is None else environ
    traced = _made("traces", environ, lambda protocol: _provider(role, instance_id, protocol, _services(environ)))
    periodic = _made("metrics", environ, _periodic)
    exposition = _exposition() if expose else None
    readers = [reader for reader in (periodic, exposition.reader if exposition is not None else None) if reader is not None]
    meters = _meters(role, instance_id, readers) if readers else None
    provider = None
    if traced is not None:
        provider, queue = traced
        trace.set_tracer_provider(provider)
        set_span_export(queue)
    if meters is not None:
        metrics.set_meter_provider(meters)
    own.cache_clear()
    own().observed(semconv.STORE_ERRORS_COUNTER, _store_errors)
    return Telemetry(provider, meters, exposition)


def _store_errors() -> list[tuple[float, dict[str, str]]]:
    return [(count, {semconv.ERROR_TYPE: code}) for code, count in list(store_errors.counts.items())]


def _exposition() -> Exposition | None:
    try:
        from agentmesh_node.telemetry.prometheus import Exposition  # noqa: PLC0415 - it imports the SDK
    except ImportError as error:
        log.debug("no metrics for Prometheus: %s", error)
        return None
    return Exposition()


def _made[T](signal: str, environ: Mapping[str, str], make: Callable[[str], T]) -> T | None:
    """What `make` makes of the protocol for `signal`; None if the environment names no endpoint for it, or cannot be meant."""
    name = signal.upper()
    set_up = environ.get(f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not set_up or environ.get(f"OTEL_{name}_EXPORTER", "").strip().lower() == "none":
        return None
    given = environ.get(f"OTEL_EXPORTER_OTLP_{name}_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or PROTOCOLS[0]
    protocol = given.strip().lower()
    try:
        if protocol not in PROTOCOLS:
            raise BadRequest(f"the OTLP protocol {given!r} is none of {', '.join(PROTOCOLS)}")
        return make(protocol)
    except ImportError as error:
        extra = "otlp-grpc" if protocol == "grpc" else "otlp"
        log.warning("no %s are exported: %s; pip install 'agentmesh[%s]'", signal, error, extra)
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises for variables that it cannot read
        log.warning("no %s are exported: %s; mend the OTEL_ variables", signal, error)
    return None


def _quietly(part: Callable[[], Any]) -> None:
    try:
        part()
    except Exception as error:
        log.debug("the end of telemetry failed", exc_info=error)


_shared: list[Outages] = []


def _outages() -> Outages:
    """Those of this process: one outage may concern spans and metrics."""
    if not _shared:
        hush()
        _shared.append(Outages())
    return _shared[0]


def _exporter(signal: str, protocol: str) -> Any:
    """The module with the SDK's exporter."""
    return import_module(f"opentelemetry.exporter.otlp.proto.{protocol.partition('/')[0]}.{signal}_exporter")


# The SDK and its exporters take a third of a second to import: only processes that export pay for that.
def _provider(role: str, instance_id: str, protocol: str, services: ServiceNames) -> tuple[TracerProvider, SpanQueue]:
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

    from agentmesh_node.telemetry.span_export import SpanQueue  # noqa: PLC0415

    exporter = watched(_exporter("trace", protocol).OTLPSpanExporter, "spans", SpanExportResult.FAILURE, _outages())
    provider = TracerProvider(resource=_resource(role, instance_id), shutdown_on_exit=False)
    # A killed process loses what it has not exported: half a second of spans, not the five of the SDK. The variable wins.
    delay = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else EXPORT_EVERY_MS
    queue = SpanQueue(exporter, services, instance_id, every_ms=delay)
    provider.add_span_processor(queue)
    return provider, queue


def _services(environ: Mapping[str, str]) -> ServiceNames:
    """What the `service.name` of agents' spans is of.

    Raises:
        BadRequest: the variable says neither.
    """
    given = environ.get(SERVICE_VARIABLE, "").strip().lower() or "kind"
    if given not in ("kind", "role"):
        raise BadRequest(f"{SERVICE_VARIABLE}: {given!r} is neither kind nor role")
    return cast("ServiceNames", given)


def trace_ratio(environ: Mapping[str, str] | None = None) -> float:
    """The share of the traces that begin here which is sampled, by the SDK's variables. A sender's decision goes before."""
    environ = os.environ if environ is None else environ
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().removeprefix("parentbased_")
    if sampler == "always_off":
        return 0.0
    if sampler != "traceidratio":
        return 1.0
    try:
        return min(1.0, max(0.0, float(environ.get("OTEL_TRACES_SAMPLER_ARG") or 1.0)))
    except ValueError:  # as the SDK takes it
        return 1.0


def _periodic(protocol: str) -> MetricReader:
    from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader  # noqa: PLC0415

    exporter = watched(_exporter("metric", protocol).OTLPMetricExporter, "metrics", MetricExportResult.FAILURE, _outages())
    return PeriodicExportingMetricReader(exporter)


def _meters(role: str, instance_id: str, readers: list[MetricReader]) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415

    return MeterProvider(readers, resource=_resource(role, instance_id), shutdown_on_exit=False)


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
