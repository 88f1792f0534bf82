"""What orchestrators see of a node: its health over HTTP, and several processes behind one command."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.subjects import Subjects
from live.mesh import AGENTS, PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, free_ports, run

LONG_S = 120


async def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body; (0, "") when nothing listens."""

    def get() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read().decode().strip()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    return await asyncio.to_thread(get)


async def boots(mesh: ProcessMesh) -> dict[str, str]:
    return {node.id: node.lease.boot for node in await mesh.client.nodes()}


def test_health_follows_a_node_from_ready_to_draining(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        (port,) = free_ports(1)
        async with process_mesh(server, subjects, tmp_path) as mesh:
            node = await mesh.node("n1", "--health-port", str(port))
            assert await http_get(port, "/livez") == (200, "ok")
            assert await http_get(port, "/readyz") == (200, "ok")
            assert (await http_get(port, "/secrets"))[0] == 404
            gate = tmp_path / "gate"
            await mesh.client.start_agent("a", kind="Recorder")
            asking = asyncio.create_task(mesh.client.ask("a", f"gate:{gate} done", timeout=PATIENCE_S))
            await mesh.saw("prompt_start", "a")
            leaving = asyncio.create_task(node.terminate())

            async def draining() -> bool:
                return await http_get(port, "/readyz") == (503, "draining")

            await eventually(draining, PATIENCE_S, "readiness going away")
            assert await http_get(port, "/livez") == (200, "ok")
            gate.touch()
            assert (await asking).text == "done"
            assert await leaving == 0

    run(scenario(), LONG_S)


def test_a_supervisor_tells_its_health_too(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        (port,) = free_ports(1)
        async with process_mesh(server, subjects, tmp_path) as mesh:
            await mesh.start("supervisor", "s2", "--health-port", str(port))
            assert await http_get(port, "/readyz") == (200, "ok")

    run(scenario(), LONG_S)


@pytest.mark.case(222)
def test_workers_are_nodes_that_are_kept_alive_and_drain_together(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        (port,) = free_ports(1)
        async with process_mesh(server, subjects, tmp_path) as mesh:
            node = await mesh.node("n", "--workers", "2", "--health-port", str(port))
            before = await boots(mesh)
            assert set(before) == {"n-1", "n-2"}
            assert await http_get(port, "/readyz") == (200, "ok")
            for number in range(4):
                await mesh.client.start_agent(f"a{number}", kind="Recorder")
            os.kill(worker_pid(node.pid, "n-1"), signal.SIGKILL)

            async def back() -> bool:
                now = await boots(mesh)
                return set(now) == set(before) and now["n-1"] != before["n-1"]

            await eventually(back, PATIENCE_S, "the worker's return")
            for number in range(4):
                assert (await mesh.client.ask(f"a{number}", "there?", timeout=PATIENCE_S)).text == "there?"
            assert await node.terminate() == 0, node.log
            assert await boots(mesh) == {}

    run(scenario(), LONG_S)


def test_workers_do_not_outlive_the_process_that_keeps_them(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            node = await mesh.node("n", "--workers", "2")
            await node.kill()

            async def gone() -> bool:
                return await boots(mesh) == {}

            await eventually(gone, PATIENCE_S, "the workers' end")

    run(scenario(), LONG_S)


@pytest.mark.processes
def test_a_worker_that_cannot_start_ends_the_command_with_its_code() -> None:
    command = [sys.executable, "-m", "agentmesh_node", "node", "--id", "n", "--agents", str(AGENTS), "--workers", "2"]
    ended = subprocess.run(
        [*command, "--nats", "nats://127.0.0.1:1", "--wait", "0.5"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 5, ended.stderr
    assert "before it was ready" in ended.stderr
    assert "no NATS server answers" in ended.stderr


def worker_pid(keeper: int, own_id: str) -> int:
    """The process that runs as node `own_id`, a child of the process `keeper`: other tests have nodes of the same name."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == keeper and own_id.encode() in words:
                return int(entry.name)
    raise AssertionError(f"no process runs as {own_id}")
