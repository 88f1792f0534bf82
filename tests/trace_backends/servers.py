"""Arize Phoenix and Jaeger as processes on loopback, and what they say of the traces they have got."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from support import free_ports
from trace_backends.installed import JAEGER, PHOENIX

START_S = 180.0
"""How long a server may take to its first answer; Phoenix makes a database."""
POLL_S = 0.1
PROJECT = "default"
"""Phoenix's project of spans that name none."""


class Shown(NamedTuple):
    """A span as a back end shows it."""

    name: str
    kind: str
    """Phoenix: `AGENT`, `LLM`, `TOOL`, `CHAIN`, `UNKNOWN`, ...; Jaeger: the tag `span.kind`."""
    service: str
    trace_id: str
    span_id: str
    parent: str
    attributes: dict[str, Any]
    error: bool


class Call(NamedTuple):
    """An edge of Jaeger's dependency graph."""

    parent: str
    child: str
    times: int


class Phoenix(NamedTuple):
    """A Phoenix server that runs."""

    url: str
    otlp: str
    """OTLP over HTTP: the base that exporters append `/v1/traces` to."""
    grpc: str
    """OTLP over gRPC."""

    def spans(self) -> list[Shown]:
        """All spans that it has."""
        found: list[Shown] = []
        cursor = ""
        while True:
            page = _get(f"{self.url}/v1/projects/{PROJECT}/spans?limit=500&cursor={urllib.parse.quote(cursor)}")
            found.extend(_of_phoenix(span) for span in page["data"])
            cursor = page.get("next_cursor") or ""
            if not cursor:
                return found


class Jaeger(NamedTuple):
    """A Jaeger server that runs."""

    url: str
    otlp: str
    grpc: str

    def dependencies(self) -> set[Call]:
        """Its graph of the last hour."""
        page = _get(f"{self.url}/api/dependencies?endTs={int(time.time() * 1000) + 60_000}&lookback=3600000")
        return {Call(edge["parent"], edge["child"], edge["callCount"]) for edge in page["data"]}

    def trace(self, trace_id: str) -> list[Shown]:
        """The spans of a trace; none if it has no such trace."""
        try:
            page = _get(f"{self.url}/api/traces/{trace_id}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise
        return [_of_jaeger(span, found["processes"]) for found in page["data"] for span in found["spans"]]

    def warnings(self, trace_id: str) -> list[str]:
        """What it finds wrong with a trace: parents that are not there, clocks that differ, ids that come twice."""
        page = _get(f"{self.url}/api/traces/{trace_id}")
        return [warning for found in page["data"] for span in found["spans"] for warning in span.get("warnings") or ()]


def _of_phoenix(span: dict[str, Any]) -> Shown:
    attributes = span["attributes"]
    return Shown(
        span["name"],
        span["span_kind"],
        "",
        span["context"]["trace_id"],
        span["context"]["span_id"],
        span.get("parent_id") or "",
        attributes,
        span["status_code"] == "ERROR",
    )


def _of_jaeger(span: dict[str, Any], processes: dict[str, Any]) -> Shown:
    tags = {tag["key"]: tag["value"] for tag in span["tags"]}
    above = [each["spanID"] for each in span["references"] if each["traceID"] == span["traceID"]]
    return Shown(
        span["operationName"],
        tags.get("span.kind", ""),
        processes[span["processID"]]["serviceName"],
        span["traceID"],
        span["spanID"],
        above[0] if above else "",
        tags,
        bool(tags.get("error")),
    )


@contextlib.contextmanager
def phoenix(directory: Path) -> Iterator[Phoenix]:
    """A Phoenix server with its data in `directory`."""
    http, grpc = free_ports(2)
    settings = {
        "PHOENIX_WORKING_DIR": str(directory / "phoenix"),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(http),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
    }
    url = f"http://127.0.0.1:{http}"
    with _process([str(PHOENIX / "bin" / "phoenix"), "serve"], settings, directory / "phoenix.log", f"{url}/healthz"):
        yield Phoenix(url, url, f"http://127.0.0.1:{grpc}")


@contextlib.contextmanager
def jaeger(directory: Path) -> Iterator[Jaeger]:
    """A Jaeger server with its data in memory."""
    names = (
        "admin.http", "collector.grpc-server", "collector.http-server", "collector.otlp.grpc", "collector.otlp.http",
        "query.grpc-server", "query.http-server",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [f"--{name}.host-port=127.0.0.1:{port}" for name, port in ports.items()]
    url = f"http://127.0.0.1:{ports['query.http-server']}"
    # It traces itself too, unless it is told not to.
    with _process(
        [str(JAEGER), *options], {"OTEL_TRACES_SAMPLER": "always_off"}, directory / "jaeger.log", f"{url}/api/services"
    ):
        yield Jaeger(url, f"http://127.0.0.1:{ports['collector.otlp.http']}", f"http://127.0.0.1:{ports['collector.otlp.grpc']}")


@contextlib.contextmanager
def _process(command: list[str], settings: Mapping[str, str], log: Path, page: str) -> Iterator[None]:
    """Run a server, from its first answer on."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PHOENIX_"))}
    with (
        log.open("wb") as output,
        tempfile.TemporaryDirectory() as home,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**environ, "HOME": home, **settings}
        ) as process,
    ):
        try:
            _wait(process, page, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], page: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(page, timeout=5):
                return
        except OSError:
            assert process.poll() is None, f"{page}: the server has ended:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{page}: no answer after {START_S} s:\n{log.read_text()[-3000:]}"
            time.sleep(POLL_S)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as page:
        return json.load(page)
