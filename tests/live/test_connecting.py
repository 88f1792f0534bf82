"""A whole mesh of processes that connect by credentials, or by a context of the NATS CLI, over TLS with a private authority."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from certificates import Authority
from commands import completed
from keys import Operator
from live.mesh import AGENTS, Host
from preloaded import MESH, NODE
from support import Server, run

pytestmark = [pytest.mark.processes, pytest.mark.case(600), pytest.mark.case(604)]

PASSWORD = "zebrafinch 7312 @/:%"


def by_credentials(folder: Path, authority: Authority) -> tuple[str, list[str]]:
    """The server's configuration, and the options of every process."""
    operator = Operator()
    creds = operator.creds(folder / "mesh.creds", "mesh", sub={"allow": ["_INBOX.mesh.>", "mesh.>"]})
    return f"{authority.server()}\n{operator.config()}", ["--creds", str(creds), "--tls-ca", str(authority.path)]


def by_context(folder: Path, authority: Authority) -> tuple[str, list[str]]:
    context = {"user": "mesh", "password": PASSWORD, "ca": str(authority.path), "tls_first": True}
    (folder / "context.json").write_text(json.dumps(context))
    users = f'authorization {{ users: [ {{ user: "mesh", password: "{PASSWORD}" }} ] }}'
    return f"{authority.server(more='handshake_first: true')}\n{users}", ["--context", str(folder / "context.json")]


@pytest.mark.parametrize("way", [by_credentials, by_context])
def test_every_kind_of_process_connects(way: Callable[[Path, Authority], tuple[str, list[str]]], tmp_path: Path) -> None:
    config, options = way(tmp_path, Authority(tmp_path))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "SSL_"))}

    async def main(url: str) -> None:
        env = {**clean, "MESH_NATS_URL": url, "PYTHONPATH": str(AGENTS.parents[1])}

        async def said(program: str, *verb: str) -> str:
            done = await asyncio.to_thread(completed, program, (*verb, *options), env, timeout=60)
            assert done.returncode == 0, f"{verb}: {done.stderr}"
            return str(done.stdout)

        assert "has all its streams" in await said(NODE, "setup", "--new")
        supervisor, node = Host("s1", tmp_path / "s1.log"), Host("n1", tmp_path / "n1.log")
        try:
            await supervisor.start("supervisor", "--id", "s1", *options, env=env)
            await node.start("node", "--id", "n1", "--agents", str(AGENTS), "--workers", "2", *options, env=env)
            await said(MESH, "start", "coder", "--kind", "Recorder")
            assert (await said(MESH, "ask", "coder", "hello")).strip() == "hello"
            assert "n1-1" in await said(MESH, "nodes")
            assert "CRITICAL" not in await said(MESH, "doctor")
            assert not any(b"zebrafinch" in arguments for arguments in _arguments_of_all())
            assert await node.terminate() == 0
            assert await supervisor.terminate() == 0
        finally:
            await node.close()
            await supervisor.close()
        written = supervisor.log + node.log
        assert "zebrafinch" not in written and "Traceback" not in written, written

    with Server(config=config) as server:
        run(main(server.url), timeout=110)


def _arguments_of_all() -> list[bytes]:
    """The command lines of all processes of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(path.read_bytes())
    return found
