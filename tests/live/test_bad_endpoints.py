"""Nodes whose OTLP endpoint is down, mute, slow or refuses: turns are answered, and a drain does not wait for it (case 511)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmesh.subjects import Subjects
from agentmesh_node.telemetry import otel
from fakes.otlp import OtlpReceiver
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, free_ports, run

WORST = {"OTEL_EXPORTER_OTLP_TIMEOUT": "600", "OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
"""A request to the endpoint may last for ten minutes: a turn or a drain that waits for one shows it."""
FAILS, LEFT = "telemetry cannot be exported", "the last spans and metrics were left"

type Endpoint = tuple[str, Callable[[], bool]]
"""Its URL, and whether it has been asked."""


@contextlib.contextmanager
def down() -> Iterator[Endpoint]:
    yield f"http://127.0.0.1:{free_ports(1)[0]}", lambda: True


@contextlib.contextmanager
def mute() -> Iterator[Endpoint]:
    with OtlpReceiver() as receiver:
        receiver.hang()
        yield receiver.endpoint, lambda: receiver.requests >= 2


@contextlib.contextmanager
def slow() -> Iterator[Endpoint]:
    with OtlpReceiver() as receiver:
        receiver.slow(600.0)
        yield receiver.endpoint, lambda: receiver.requests >= 2


@contextlib.contextmanager
def refusing() -> Iterator[Endpoint]:
    with OtlpReceiver() as receiver:
        receiver.refuse(503)
        yield receiver.endpoint, lambda: receiver.requests >= 2


@pytest.mark.case(511)
@pytest.mark.processes
@pytest.mark.parametrize("endpoint", [down, mute, slow, refusing], ids=lambda of: of.__name__)
def test_a_bad_endpoint_costs_no_turn_and_holds_up_no_drain(
    endpoint: Callable[[], contextlib.AbstractContextManager[Endpoint]], server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main(url: str, asked: Callable[[], bool]) -> None:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **WORST}
        async with process_mesh(server, subjects, tmp_path, "n1", "n2", env=env) as mesh:
            for agent in ("a", "b"):
                await mesh.client.start_agent(agent, kind="Recorder", timeout=PATIENCE_S)
            await turns(mesh, 20)
            await eventually(asked, PATIENCE_S, "the endpoint has been asked")
            leaving = await mesh.host_of("a")
            assert await leaving.terminate() == 0, leaving.log
            await turns(mesh, 20)
            for host in mesh.hosts.values():
                assert host.log.count(FAILS) + host.log.count(LEFT) <= 1
                assert "Traceback" not in host.log
                assert "opentelemetry" not in host.log, "the SDK's own lines"

    with endpoint() as (url, asked):
        run(main(url, asked), 110)
    assert otel.SHUTDOWN_S <= 2.0


async def turns(mesh: ProcessMesh, count: int) -> None:
    for number in range(count):
        for agent in ("a", "b"):
            assert (await mesh.client.ask(agent, f"{number}", timeout=PATIENCE_S)).text == f"{number}"
