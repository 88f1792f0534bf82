"""No secret in anything that a process of the mesh writes, nor in the list of processes (case 300).

The password of the mesh's user is one that occurs nowhere else. Every kind of process runs with it, and what they print, log,
store, publish and export is searched for it, and so are the arguments of all processes of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import agentmesh_client
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.read import read_all
from agentmesh.edge.stream_configs import stream_configs
from agentmesh.edge.streams import ensure
from agentmesh.subjects import Subjects
from commands import mesh_command
from fakes.otlp import OtlpReceiver
from live.mesh import AGENTS
from support import Server, eventually, free_ports, run

pytestmark = [pytest.mark.processes, pytest.mark.case(300)]

MARK = "zebrafinch7311"
"""The password."""
VERBS = (
    (
        ("start", "coder", "--kind", "Recorder"),
        ("ps",),
        ("nodes", "-o", "json"),
        ("doctor", "-o", "json"),
        ("ask", "nobody", "hello"),
    ),
    (
        ("ask", "coder", "hello"),
        ("ask", "coder", "fail:quota"),
        ("tell", "coder", "hello"),
        ("poll", "coder", "999"),
        ("notify", "coder", "{}"),
        ("status", "coder", "--content"),
        ("history", "coder"),
        ("interrupt", "coder"),
        ("cancel", "coder", "1"),
        ("resume", "coder"),
        ("dead", "ls", "coder"),
        ("rebalance",),
        ("move", "a1", "n2"),
        ("cordon", "n2"),
    ),
    (("stop", "coder"), ("drain", "n2")),
)
"""One command of each verb that ends by itself; those that stand together run at the same time."""


@pytest.fixture
def locked() -> Iterator[Server]:
    """A server that knows one user, with that password."""
    with Server(config=f'authorization {{ users: [ {{ user: "op", password: "{MARK}" }} ] }}') as server:
        yield server


def with_user(server: Server, password: str = MARK) -> str:
    return server.url.replace("nats://", f"nats://op:{password}@")


def environment(url: str, subjects: Subjects, collector: OtlpReceiver) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
    own = {"MESH_NATS_URL": url, "MESH_ROOT": subjects.root, "MESH_LOG_LEVEL": "debug", "PYTHONPATH": str(AGENTS.parents[1])}
    return {**clean, **own, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}


class Said:
    """All that the processes have written, by command."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder = folder
        self.env = env

    @contextlib.asynccontextmanager
    async def host(self, name: str, *arguments: str) -> AsyncIterator[None]:
        """A hosting process, from its ready line to its end by SIGTERM."""
        log = self._folder / f"{name}.log"
        process = self._spawn(log, arguments)
        try:
            await eventually(
                lambda: "ready:" in log.read_text() or process.poll() is not None, 60, f"{name} is ready or has ended"
            )
            assert process.poll() is None, log.read_text()
            yield
            process.terminate()
            await asyncio.to_thread(process.wait, 60)
        finally:
            process.kill()
            process.wait()

    def _spawn(self, log: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "agentmesh_node", *arguments],
                cwd=self._folder, env=dict(self.env), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def texts(self) -> dict[str, str]:
        """What each has written."""
        return {path.name: path.read_text(errors="replace") for path in self._folder.glob("*.log")}

    async def command(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """What a command of the client prints, with all that it can be made to tell."""
        name = re.sub(r"\W+", "-", "-".join(arguments))[:60]
        ended = await mesh_command((*arguments, "--debug"), {**self.env, **(env or {})}, cwd=self._folder)
        with (self._folder / f"mesh-{name}.log").open("a") as log:
            log.write(ended.stdout + ended.stderr)
        return ended.stdout + ended.stderr


def in_process_list() -> list[str]:
    """The command lines of this machine's processes that hold the password."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [command] if MARK in command else []
    return found


def test_the_password_of_the_mesh_is_in_nothing_that_its_processes_show(
    locked: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        with OtlpReceiver() as collector:
            said = Said(tmp_path, environment(with_user(locked), subjects, collector))
            events: list[bytes] = []
            transport = await connect(with_user(locked), name="observer")
            try:
                await ensure(transport, subjects)
                await transport.subscribe(f"{subjects.root}.>", lambda message: events.append(message.data))
                async with (
                    said.host("s1", "supervisor", "--id", "s1"),
                    said.host("n1", "node", "--id", "n1", "--agents", str(AGENTS), "--workers", "2"),
                    said.host("n2", "node", "--id", "n2", "--agents", str(AGENTS)),
                    said.host("up", "up", str(AGENTS), "--port", "0"),
                ):
                    assert not in_process_list()
                    for together in VERBS:
                        await asyncio.gather(*(said.command(*arguments) for arguments in together))
                    await transport.request(subjects.ask("coder"), b"hello", timeout=60)  # by the gateway
                    assert not in_process_list()
                streams = stream_configs(subjects, replicas=1, max_payload=transport.max_payload)
                stored = [await everything(transport, stream) for stream in streams]
            finally:
                await transport.close()
        texts = said.texts()
        assert "n1 ready: 2 workers" in texts["n1.log"]
        assert {name for name, text in texts.items() if MARK in text} == set()
        assert [data for data in (*events, *(one for many in stored for one in many)) if MARK.encode() in data] == []
        assert any(stored) and events and collector.spans
        assert [span for span in collector.spans if MARK in str(span)] == []

    run(main(), 110)


async def everything(transport: NatsTransport, stream: str) -> list[bytes]:
    """Bodies and headers of all messages of a stream."""
    return [message.data + str(message.headers).encode() for message in await read_all(transport, stream, ">")]


@pytest.mark.parametrize("verb", ["ps", "supervisor"])
def test_it_is_in_no_error_either(locked: Server, subjects: Subjects, tmp_path: Path, verb: str) -> None:
    """Wrong password, no server, no address: the secret that was meant is as secret."""
    nowhere = f"nats://op:{MARK}@127.0.0.1:{free_ports(1)[0]}"
    urls = (with_user(locked, f"{MARK}x"), nowhere, f"nats://op:{MARK}", f"nats://op:a,{MARK}@127.0.0.1", f"ws://op:{MARK}@h")

    async def main() -> None:
        with OtlpReceiver() as collector:
            said = Said(tmp_path, environment("", subjects, collector))
            options = ("--wait", "0") if verb == "supervisor" else ("--debug",)
            for url in urls:
                ended = await mesh_command((verb, *options), {**said.env, "MESH_NATS_URL": url}, cwd=tmp_path)
                out = ended.stdout + ended.stderr
                assert ended.returncode, out
                assert "mesh: " in out
                assert MARK not in out

    run(main(), 110)


def test_what_is_given_on_the_command_line_stays_with_the_process_that_got_it(
    locked: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def main() -> None:
        with OtlpReceiver() as collector:
            async with agentmesh_client.connect(with_user(locked), root=subjects.root) as mesh:
                await ensure(mesh.transport, subjects)
                said = Said(tmp_path, environment("", subjects, collector))
                options = ("--id", "n1", "--agents", str(AGENTS), "--workers", "2", "--nats", with_user(locked))
                async with said.host("n1", "node", *options):
                    assert len(in_process_list()) == 1, "the one that a person gave it to"

    run(main(), 110)
