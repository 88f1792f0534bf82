"""The users of `mesh up --secure`, and that mesh as processes and commands see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentmesh.errors import BadRequest
from agentmesh_node.process.address import MeshAddress
from agentmesh_node.process.secured import SecuredStore

WHERE = MeshAddress(servers=[], root="mesh")


def test_each_part_logs_in_as_what_it_is(tmp_path: Path) -> None:
    store = SecuredStore(tmp_path, "mesh")
    store.listens("nats://127.0.0.1:5000")
    found = store.address("node", WHERE, "nats://127.0.0.1:5000")
    assert found.servers == ["nats://127.0.0.1:5000"]
    assert found.login.url_file == str(tmp_path / "access" / "node.url")
    assert store.folder.url("node").endswith("@127.0.0.1:5000")


def test_users_stay_over_a_restart_and_over_another_port(tmp_path: Path) -> None:
    first = SecuredStore(tmp_path, "mesh")
    first.listens("nats://127.0.0.1:5000")
    first.folder.add("shop", "caller", ("a",))
    before = first.folder.url("shop")
    again = SecuredStore(tmp_path, "mesh")
    again.listens("nats://127.0.0.1:6000")
    assert again.folder.url("shop") == before.replace("5000", "6000")


def test_the_server_reads_the_lists_of_this_build(tmp_path: Path) -> None:
    conf = SecuredStore(tmp_path, "mesh").folder.conf
    written = conf.read_text()
    conf.write_text("of the build before")
    SecuredStore(tmp_path, "mesh")
    assert conf.read_text() == written, "before the server starts, not behind it"


def test_users_of_another_mesh_are_not_taken(tmp_path: Path) -> None:
    SecuredStore(tmp_path, "mesh")
    with pytest.raises(BadRequest, match="has the users of the mesh 'mesh'"):
        SecuredStore(tmp_path, "shop")


def test_a_store_of_a_mesh_without_users_is_not_left_aside(tmp_path: Path) -> None:
    (tmp_path / "nats" / "jetstream" / "$G" / "streams" / "MESH_MAIL").mkdir(parents=True)
    with pytest.raises(BadRequest, match="holds a mesh without users"):
        SecuredStore(tmp_path, "mesh")


AGENT = """
from agentmesh import Agent, Idle, Init

class Echo(Agent[int]):
    script = staticmethod(lambda prompt: f"you said {prompt}")
    async def init_agent(self, options):
        return Init(0)
    async def handle_response(self, ref, response, state):
        return Idle(state + 1)
"""


@pytest.mark.processes
@pytest.mark.case(650)
@pytest.mark.case(652)
@pytest.mark.case(694)
def test_a_secured_mesh_serves_its_operator_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(AGENT)
    mesh = (sys.executable, "-m", "agentmesh_client.cli.main")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run((*mesh, *arguments), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    up = (*mesh, "up", "--secure", "--port", "0", "echo.py")
    with subprocess.Popen(up, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            ready = next(line for line in process.stdout if line.startswith("mesh ready"))
            address = ready.split()[2].rstrip(";")
            assert "@" not in address
            assert command("start", "e", "--kind", "Echo").returncode == 0
            assert command("ask", "e", "hello").stdout == "you said hello\n"
            stranger = command("ask", "e", "hello", "--nats", address)
            assert stranger.returncode == 6, stranger
            assert "asks for credentials" in stranger.stderr
            assert command("ps", "--nats", "@.mesh/access/observer.url").returncode == 0
            graph = command("graph", "--nats", "@.mesh/access/observer.url")
            assert graph.returncode == 0, graph
            seen = command("doctor", "--nats", "@.mesh/access/observer.url")
            assert seen.returncode == 0 and "may not ask about the stream MESH_MAIL" in seen.stdout, seen
            assert "guarantee: unknown: this user sees only some" in seen.stdout, "what it sees it judges"
            assert command("setup", "--dry-run", "--nats", "@.mesh/access/setup.url").returncode == 0
            watched = command("ask", "e", "hello", "--nats", "@.mesh/access/observer.url")
            assert watched.returncode == 6, watched
        finally:
            process.terminate()
            process.wait(30)
    log = (tmp_path / ".mesh" / "nats" / "nats-server.log").read_text()
    refused = [line for line in log.splitlines() if "Violation" in line and "user:observer" not in line]
    assert refused == []
