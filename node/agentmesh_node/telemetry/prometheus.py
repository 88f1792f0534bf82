"""The metrics of a process as Prometheus scrapes them: the official clients' reader, registry and text. It imports the SDK."""

from __future__ import annotations

import threading

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder


class Exposition:
    """What `GET /metrics` answers: the mesh's metrics, and those of the process that the official client has."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self.reader = PrometheusMetricReader(registry=self._registry, scope_info_enabled=False)
        """For the meter provider, which comes first."""
        self._one_at_a_time = threading.Lock()
        """Two collections at once take each other's numbers from the reader."""

    def text(self, accept: str) -> tuple[str, bytes]:
        """The content type and the body, in the format that the header `accept` prefers: OpenMetrics, or Prometheus' own text.
        Blocks for some milliseconds: call it in a thread."""
        encode, content_type = choose_encoder(accept)
        with self._one_at_a_time:
            return content_type, encode(self._registry)
