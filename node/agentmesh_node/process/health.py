"""Liveness, readiness and metrics over HTTP: `GET /livez` and `GET /readyz`, each 200 or 503 with a reason, and `GET /metrics`.

Liveness is answered by the loop itself: a loop that hangs gives no answer, and the orchestrator times out (the heartbeat also
ends such a process, see `MESH_STALL_LIMIT_S`). That is why it is not `http.server`, whose thread would answer for it. Readiness
is whether the process takes work now: a draining one is alive and not ready. Metrics are collected in a thread, for that takes
some milliseconds; one process with a port for metrics alone answers all three there, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from agentmesh.errors import BadRequest, Unavailable

REQUEST_S = 5.0
MAX_LINE = 4096
MAX_HEADERS = 64
"""Most header lines of a request that are read."""
NO_METRICS = "metrics are not served here: pip install 'agentmesh[prometheus]'"
OF_WORKERS = "each worker serves its own: see --metrics-port"


class MetricsPage(Protocol):
    """The metrics as text (`telemetry.prometheus.Exposition`)."""

    def text(self, accept: str) -> tuple[str, bytes]:
        """Content type and body. Blocks."""


@contextlib.asynccontextmanager
async def serving(
    port: int | None,
    not_ready: Callable[[], str | None],
    *,
    metrics: MetricsPage | str = NO_METRICS,
    metrics_port: int | None = None,
    request_s: float = REQUEST_S,
) -> AsyncIterator[None]:
    """Serve on all interfaces while the context is open; without a port, do nothing.

    Args:
        not_ready: returns None, or the reason.
        metrics: what `/metrics` answers, or why it answers nothing.
        metrics_port: another port that answers the same; it may be the same one.
        request_s: a client that has not sent its request after so many seconds gets no answer.

    Raises:
        Unavailable: a port is taken.
        BadRequest: there is a port for metrics, and there are none.
    """
    if metrics_port is not None and isinstance(metrics, str):
        raise BadRequest(f"--metrics-port {metrics_port}: {metrics}")
    ports = {"--health-port": port, "--metrics-port": metrics_port if metrics_port != port or port == 0 else None}
    async with contextlib.AsyncExitStack() as stack:
        for option, number in ports.items():
            if number is not None:
                stack.callback((await _served(option, number, not_ready, metrics, request_s)).close)
        yield


async def _served(
    option: str, port: int, not_ready: Callable[[], str | None], metrics: MetricsPage | str, request_s: float
) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _answer(reader, writer, not_ready, metrics, request_s)

    try:
        return await asyncio.start_server(answer, port=port, limit=MAX_LINE)
    except OSError as error:
        raise Unavailable(f"{option} {port}: {error.strerror or error}") from None


async def _answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    not_ready: Callable[[], str | None],
    metrics: MetricsPage | str,
    request_s: float,
) -> None:
    try:
        async with asyncio.timeout(request_s):
            line = await reader.readline()
            words = line.decode("latin-1").split(" ")
            content_type, status = "text/plain", ""
            if _path(words) == "/metrics" and not isinstance(metrics, str):
                accept = await _accepted(reader)
                status, (content_type, body) = "200 OK", await asyncio.to_thread(metrics.text, accept)
            else:
                status, text = _reply(words, not_ready, metrics)
                body = f"{text}\n".encode()
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
    except (TimeoutError, OSError, ValueError):
        pass  # the probe went away, or was no HTTP
    finally:
        writer.close()


async def _accepted(reader: asyncio.StreamReader) -> str:
    """The request's header `Accept`, or ""."""
    for _ in range(MAX_HEADERS):
        name, colon, value = (await reader.readline()).decode("latin-1").partition(":")
        if not colon:
            break
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


def _path(words: list[str]) -> str:
    """What is asked for; "" if it is no request that can be answered."""
    return words[1].partition("?")[0] if len(words) >= 2 and words[0] in ("GET", "HEAD") else ""


def _reply(words: list[str], not_ready: Callable[[], str | None], metrics: MetricsPage | str) -> tuple[str, str]:
    path = _path(words)
    if not path:
        return "405 Method Not Allowed", "GET /livez, /readyz or /metrics"
    if path == "/livez":
        return "200 OK", "ok"
    if path == "/metrics" and isinstance(metrics, str):
        return "404 Not Found", metrics
    if path != "/readyz":
        return "404 Not Found", "GET /livez, /readyz or /metrics"
    reason = not_ready()
    return ("200 OK", "ok") if reason is None else ("503 Service Unavailable", reason)
