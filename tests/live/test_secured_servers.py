"""The recipes of docs/security.md#at-rest-and-on-the-wire in the generated layout: TLS of clients and routes, encryption."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import agentmesh_client
from agentmesh.edge.access_folder import AccessFolder, create
from agentmesh.edge.connection import connect
from agentmesh.errors import TlsFailed
from certificates import Authority
from commands import completed
from live.mesh import AGENTS, Host
from live.test_wrong_key import ends, waits
from preloaded import NODE
from support import Cluster, Server, eventually, run

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.case(659)]

SECRET = "zebrafinch"


def layout(folder: Path) -> AccessFolder:
    """The users of a mesh, and a caller of one agent. The addresses are set once the servers have some."""
    made = create(folder, root="mesh", servers="nats://127.0.0.1:4222")
    made.add("shop", "caller", ["clerk"])
    return made


def clean() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_", "SSL_"))}
    return {**kept, "PYTHONPATH": str(AGENTS.parents[1])}


class Processes:
    """A supervisor and a node of a secured mesh, each with the file of its role."""

    def __init__(self, users: AccessFolder, folder: Path, *options: str) -> None:
        self._users, self._options = users, options
        self._hosts = {name: Host(name, folder / f"{name}.log") for name in ("s1", "n1")}

    async def setup(self) -> None:
        """Make the streams."""
        verb = ("setup", "--new", "--wait", "60", "--nats", f"@{self._users.url_file('setup')}", *self._options)
        made = await asyncio.to_thread(completed, NODE, verb, clean(), timeout=90)
        assert made.returncode == 0, made.stderr

    async def start(self) -> None:
        """Start both, one behind the other."""
        for own_id, verb, more in (("s1", "supervisor", ()), ("n1", "node", ("--agents", str(AGENTS)))):
            file = f"@{self._users.url_file(verb)}"
            await self._hosts[own_id].start(verb, "--id", own_id, "--nats", file, *more, *self._options, env=clean())

    async def close(self) -> None:
        for host in self._hosts.values():
            await host.close()


@pytest.mark.parametrize("first", [False, True], ids=["after", "first"])
def test_three_servers_with_tls_between_them_and_to_clients(tmp_path: Path, first: bool) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.certificate("server")
    between = f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{authority.path}", verify: true }}'
    users = layout(tmp_path / "access")
    config = f"{authority.server(more='handshake_first: true' if first else '')}\n{users.conf.read_text()}"
    options = ("--tls-ca", str(authority.path), *(("--tls-first",) if first else ()))

    async def main(cluster: Cluster) -> None:
        users.move(cluster.url)
        processes = Processes(users, tmp_path, *options)
        tls = {"tls_ca": str(authority.path), "tls_first": first}
        try:
            await processes.setup()
            await processes.start()
            async with agentmesh_client.connect(f"@{users.url_file('operator')}", **tls) as operator:  # type: ignore[arg-type]
                await operator.start_agent("clerk", kind="Recorder", timeout=60)
            async with agentmesh_client.connect(f"@{users.url_file('shop')}", **tls) as shop:  # type: ignore[arg-type]
                assert (await shop.ask("clerk", "hello", timeout=60)).text == "hello"
        finally:
            await processes.close()

    async def refused(cluster: Cluster) -> None:
        """A server with a certificate of somebody else is not let in, nor is a client that does not believe the authority."""
        wrong_cert, wrong_key = stranger.certificate("stranger")
        port = cluster.servers[0].monitor("varz")["cluster"]["cluster_port"]
        tls = f'tls {{ cert_file: "{wrong_cert}", key_file: "{wrong_key}", ca_file: "{authority.path}", verify: true }}'
        other = f'cluster {{ name: "test", listen: "127.0.0.1:-1", routes: ["nats://127.0.0.1:{port}"]\n{tls} }}'
        server = Server(name="stranger", config=other)
        server.launch()
        try:
            await eventually(lambda: "TLS route handshake error" in cluster.servers[0].log, what="the refusal of its route")
        finally:
            server.close()
        assert cluster.servers[0].monitor("routez")["routes"]
        assert "stranger" not in {route["remote_name"] for route in cluster.servers[0].monitor("routez")["routes"]}
        with pytest.raises(TlsFailed):
            await connect(cluster.url.split(",")[0].replace("nats:", "tls:"), name="unbelieving", connect_timeout=3)

    with Cluster(config=config, between=between) as cluster:
        run(main(cluster), timeout=110)
        if not first:
            run(refused(cluster))


def test_an_encrypted_store_shows_nothing_and_with_a_wrong_key_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = layout(tmp_path / "access")

    async def begin() -> None:
        processes = Processes(users, tmp_path)
        try:
            await processes.setup()
            await processes.start()
            async with agentmesh_client.connect(f"@{users.url_file('operator')}") as operator:
                await operator.start_agent("clerk", kind="Recorder", timeout=60)
                assert (await operator.ask("clerk", SECRET, timeout=60)).text == SECRET
        finally:
            await processes.close()

    async def go_on() -> None:
        processes = Processes(users, tmp_path)
        try:
            await processes.start()
            async with agentmesh_client.connect(f"@{users.url_file('operator')}") as operator:
                assert (await operator.ask("clerk", "again", timeout=60)).text == "again"
                state = (await operator.status("clerk", content=True)).agent_state
                assert state["prompts"] == [SECRET, "again"]
        finally:
            await processes.close()

    monkeypatch.setenv("MESH_JS_KEY", "k-right")
    with Server(jetstream="cipher: aes, key: $MESH_JS_KEY", config=users.conf.read_text()) as server:
        users.move(server.url)
        run(begin(), timeout=110)
        stored = b"".join(path.read_bytes() for path in server.store.rglob("*") if path.is_file())
        assert stored and SECRET.encode() not in stored, "in the clear"

        server.stop()
        monkeypatch.setenv("MESH_JS_KEY", "k-other")
        server.launch()  # it serves, and never calls itself healthy
        for verb, own_id, more in (("node", "n1", ("--agents", str(AGENTS))), ("supervisor", "s1", ())):
            said = waits(tmp_path, f"@{users.url_file(verb)}", verb, "--id", own_id, *more)
            assert "run `mesh setup`" in said and " ready: " not in said
        code, said = ends(tmp_path, "setup", "--nats", f"@{users.url_file('setup')}")
        assert code == 1 and "encryption key" in said

        server.stop()
        monkeypatch.setenv("MESH_JS_KEY", "k-right")
        server.start()
        run(go_on(), timeout=110)
