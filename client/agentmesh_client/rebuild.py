"""Writing spans that the mesh keeps to a collector once more. The OpenTelemetry SDK is imported where it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import batched
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agentmesh.errors import BadRequest, MeshError, Unavailable
from agentmesh.trace.spans import ToldSpan

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

BATCH = 512
"""Spans in one request: as many as the SDK's own exporter takes by default."""
TIMEOUT_S = 10.0
"""How long one request may take, with its repetitions."""
TRACES_PATH = "/v1/traces"


async def write_spans(spans: Sequence[ToldSpan], url: str) -> int:
    """Write `spans` to the collector at `url` (`http://HOST:4318`, `https://...`, or `grpc://HOST:4317`). Returns how many.

    The sampler's decision counts here, too: a span of a trace that is not sampled is not written.

    Raises:
        BadRequest: `url` is no such address.
        MeshError: the exporter is not installed.
        Unavailable: the collector does not take them.
    """
    from agentmesh.trace.readable import readable  # noqa: PLC0415

    exporter = exporter_to(url)
    wanted = [readable(span) for span in spans if span.sampled]
    try:
        for batch in batched(wanted, BATCH):
            result = await asyncio.to_thread(exporter.export, batch)
            if result.name != "SUCCESS":
                raise Unavailable(f"the collector at {url} does not take spans; look whether it runs, and at its log")
    finally:
        await asyncio.to_thread(exporter.shutdown)
    return len(wanted)


def exporter_to(url: str) -> SpanExporter:
    """The SDK's exporter to `url`.

    Raises:
        BadRequest, MeshError: as `write_spans`.
    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https", "grpc") or not address.hostname:
        raise BadRequest(
            f"--otlp takes the address of a collector, as http://127.0.0.1:4318 or grpc://127.0.0.1:4317, not {url!r}"
        )
    arguments: dict[str, Any] = {"timeout": TIMEOUT_S}
    try:
        if address.scheme == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
                OTLPSpanExporter as GrpcExporter,
            )

            return GrpcExporter(endpoint=f"http://{address.netloc}", insecure=True, **arguments)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        endpoint = url if address.path not in ("", "/") else url.rstrip("/") + TRACES_PATH
        return OTLPSpanExporter(endpoint=endpoint, **arguments)
    except ImportError as error:
        raise MeshError(f"no exporter for {url}: {error}; pip install 'agentmesh[otlp]'") from None
