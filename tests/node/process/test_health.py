"""Liveness and readiness over HTTP: what a probe is told, and that no probe does harm."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from agentmesh.errors import BadRequest, Unavailable
from agentmesh_node.process.health import MAX_LINE, NO_METRICS, serving
from support import free_ports, run

HOST = "127.0.0.1"


class Probe:
    """A process's health on a free port, and what it answers."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.trouble: str | None = None

    async def say(self, request: bytes) -> str:
        """Everything that is answered to `request`, until the connection is closed."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(request)
            if not request.endswith(b"\n"):
                writer.write_eof()
            return (await reader.read()).decode()
        except ConnectionResetError:
            return ""  # closed before all of the request was read
        finally:
            writer.close()

    async def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Status and body."""
        head, _, body = (await self.say(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).partition("\r\n\r\n")
        assert f"Content-Length: {len(body)}" in head and "Connection: close" in head
        return int(head.split()[1]), body.strip()


def probed(scenario: Callable[[Probe], Awaitable[None]]) -> None:
    async def main() -> None:
        probe = Probe(free_ports(1)[0])
        async with serving(probe.port, lambda: probe.trouble):
            await scenario(probe)

    watched(main())


def watched(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`; no connection may end with an exception that nobody handles."""
    defects: list[str] = []

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: defects.append(str(context)))
        await main

    run(whole())
    assert defects == []


def test_a_process_that_drains_is_alive_and_not_ready() -> None:
    async def scenario(probe: Probe) -> None:
        assert await probe.get("/livez") == (200, "ok")
        assert await probe.get("/readyz") == (200, "ok")
        probe.trouble = "draining"
        assert await probe.get("/livez") == (200, "ok")
        assert await probe.get("/readyz") == (503, "draining")
        probe.trouble = None
        assert await probe.get("/readyz?verbose=1") == (200, "ok")

    probed(scenario)


def test_a_reason_of_any_script_is_told_whole() -> None:
    async def scenario(probe: Probe) -> None:
        probe.trouble = "the stream MESH_MAIL is missing \N{EM DASH} restore it"
        answer = await probe.say(b"GET /readyz HTTP/1.1\r\n\r\n")
        head, _, body = answer.partition("\r\n\r\n")
        assert f"Content-Length: {len(body.encode())}" in head
        assert body == probe.trouble + "\n"

    probed(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/livez", 200), ("GET", "/", 404), ("GET", "/livezz", 404), ("GET", "/readyzz", 404), ("POST", "/livez", 405)],
)
def test_only_two_pages_can_be_read(method: str, path: str, status: int) -> None:
    async def scenario(probe: Probe) -> None:
        assert (await probe.get(path, method))[0] == status

    probed(scenario)


@pytest.mark.parametrize("request_", [b"\r\n", b"hello\r\n", b"\xff\xfe\r\n", b"GET\r\n", b"GET"])
def test_what_is_no_request_is_answered_too(request_: bytes) -> None:
    async def scenario(probe: Probe) -> None:
        assert (await probe.say(request_)).startswith("HTTP/1.1 405")
        assert await probe.get("/livez") == (200, "ok")

    probed(scenario)


def test_a_line_without_end_is_cut_off() -> None:
    async def scenario(probe: Probe) -> None:
        assert await probe.say(b"GET /" + b"x" * 2 * MAX_LINE) == ""
        assert await probe.get("/livez") == (200, "ok")

    probed(scenario)


def test_a_probe_that_says_nothing_holds_up_no_other() -> None:
    async def scenario(probe: Probe) -> None:
        _, silent = await asyncio.open_connection(HOST, probe.port)
        assert await probe.get("/livez") == (200, "ok")
        silent.close()

    probed(scenario)


def test_a_probe_that_says_nothing_is_given_up_after_a_while() -> None:
    async def main() -> None:
        port = free_ports(1)[0]
        async with serving(port, lambda: None, request_s=0.01):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /livez")  # a line that never ends
            assert await reader.read() == b""
            writer.close()

    watched(main())


def test_a_port_that_is_taken_is_said() -> None:
    async def main() -> None:
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(Unavailable, match=rf"--health-port {port}: .*in use"):
                async with serving(port, lambda: None):
                    raise AssertionError("nothing is served")

    run(main())


def test_without_a_port_nothing_is_served() -> None:
    async def main() -> None:
        entered = False
        async with serving(None, lambda: None):
            entered = True
        assert entered

    run(main())


def test_afterwards_the_port_is_free_again() -> None:
    async def main() -> None:
        port = free_ports(1)[0]
        for _ in range(2):
            async with serving(port, lambda: None):
                await Probe(port).get("/livez")
        with pytest.raises(OSError):
            await asyncio.open_connection(HOST, port)

    run(main())


# --- metrics ------------------------------------------------------------------------------------------------------------
class Exposed:
    """Says which format was asked for."""

    def text(self, accept: str) -> tuple[str, bytes]:
        return f"text/{accept or 'any'}", b"up 1\n"


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        (b"", "text/any"),
        (b"Accept: x\r\n", "text/x"),
        (b"Host: h\r\nACCEPT : x;q=1\r\n", "text/x;q=1"),
        (b"a: b\r\n" * 100 + b"Accept: x\r\n", "text/any"),
    ],
)
def test_metrics_are_served_in_the_format_that_is_asked_for(headers: bytes, content_type: str) -> None:
    async def main() -> None:
        port = free_ports(1)[0]
        async with serving(port, lambda: None, metrics=Exposed(), metrics_port=port):
            answer = await Probe(port).say(b"GET /metrics HTTP/1.1\r\n" + headers + b"\r\n")
        assert answer.startswith("HTTP/1.1 200")
        assert f"Content-Type: {content_type}\r\n" in answer
        assert answer.endswith("\r\n\r\nup 1\n")

    watched(main())


def test_metrics_may_have_a_port_of_their_own() -> None:
    async def main() -> None:
        health, metrics = free_ports(2)
        for ports in ((health, metrics), (None, metrics)):
            async with serving(ports[0], lambda: "starting", metrics=Exposed(), metrics_port=ports[1]):
                assert await Probe(metrics).get("/metrics") == (200, "up 1")
                assert await Probe(metrics).get("/readyz") == (503, "starting")
                if ports[0] is not None:
                    assert await Probe(health).get("/metrics") == (200, "up 1")

    watched(main())


def test_where_there_are_no_metrics_the_reason_is_said() -> None:
    async def main() -> None:
        port = free_ports(1)[0]
        async with serving(port, lambda: None):
            assert await Probe(port).get("/metrics") == (404, NO_METRICS)
        with pytest.raises(BadRequest, match=rf"--metrics-port {port}: .*pip install 'agentmesh\[prometheus\]'"):
            async with serving(None, lambda: None, metrics_port=port):
                raise AssertionError("nothing is served")

    watched(main())
