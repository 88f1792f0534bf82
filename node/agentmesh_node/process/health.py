"""Liveness and readiness over HTTP, for orchestrators: `GET /livez` and `GET /readyz`, each 200 or 503 with a reason.

Liveness is answered by the loop itself: a loop that hangs gives no answer, and the orchestrator times out (the heartbeat also
ends such a process, see `MESH_STALL_LIMIT_S`). That is why it is not `http.server`, whose thread would answer for it. Readiness
is whether the process takes work now: a draining one is alive and not ready.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from agentmesh.errors import Unavailable

REQUEST_S = 5.0
MAX_LINE = 4096


@contextlib.asynccontextmanager
async def serving(port: int | None, not_ready: Callable[[], str | None], *, request_s: float = REQUEST_S) -> AsyncIterator[None]:
    """Serve on all interfaces while the context is open; without a port, do nothing. `not_ready()` returns None, or the reason. A
    probe that has not sent its request after `request_s` seconds gets no answer.

    Raises:
        Unavailable: the port is taken.
    """
    if port is None:
        yield
        return
    try:
        server = await asyncio.start_server(lambda r, w: _answer(r, w, not_ready, request_s), port=port, limit=MAX_LINE)
    except OSError as error:
        raise Unavailable(f"--health-port {port}: {error.strerror or error}") from None
    try:
        yield
    finally:
        server.close()


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, not_ready: Callable[[], str | None], request_s: float
) -> None:
    try:
        async with asyncio.timeout(request_s):
            line = await reader.readline()
            status, text = _reply(line.decode("latin-1").split(" "), not_ready)
            body = f"{text}\n".encode()
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
    except (TimeoutError, OSError, ValueError):
        pass  # the probe went away, or was no HTTP
    finally:
        writer.close()


def _reply(words: list[str], not_ready: Callable[[], str | None]) -> tuple[str, str]:
    if len(words) < 2 or words[0] not in ("GET", "HEAD"):
        return "405 Method Not Allowed", "GET /livez or /readyz"
    path = words[1].partition("?")[0]
    if path == "/livez":
        return "200 OK", "ok"
    if path != "/readyz":
        return "404 Not Found", "GET /livez or /readyz"
    reason = not_ready()
    return ("200 OK", "ok") if reason is None else ("503 Service Unavailable", reason)
