"""The hosting verbs as processes: what they print, write and return."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import agentmesh_client
from agentmesh.edge.manage import stream_state
from agentmesh.subjects import Subjects
from agentmesh_client.admin import Operator
from commands import mesh_command
from live.mesh import PATIENCE_S, local_mesh
from support import Server, connected, eventually, run

pytestmark = pytest.mark.processes

AGENTS = '''
import msgspec
from agentmesh import Agent, Idle, Init

class State(msgspec.Struct):
    seen: int = 0

class Counter(Agent[State]):
    """Answers with the number of prompts so far."""
    backend = "scripted"
    async def init_agent(self, options):
        return Init(State())
    async def handle_response(self, ref, response, state):
        return Idle(State(state.seen + 1))

class Echo(Counter):
    pass
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a user's agents."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    (tmp_path / "broken_agents.py").write_text("class X(")
    (tmp_path / "ending_agents.py").write_text("import sys\nsys.exit(3)")
    return tmp_path


@contextmanager
def verb(project: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A hosting verb as a process, killed in the end if it still runs."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "agentmesh_node", *arguments],
        cwd=project, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().rstrip("\n")
    if not line:
        raise AssertionError(f"it ended with {process.wait(10)}: {process.communicate()[1]}")
    return line


def setup(project: Path, *arguments: str) -> tuple[int, str, str]:
    """What `mesh setup` returns and says."""
    with verb(project, "setup", *arguments) as process:
        said, complaint = process.communicate(timeout=60)
        return process.returncode, said, complaint


def end(process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """The exit code after a signal, and what else it said on stdout."""
    process.send_signal(how)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def test_node_and_supervisor_say_one_line_when_ready_and_drain_on_sigterm(server: Server, project: Path) -> None:
    async def started_and_asked() -> str:
        async with agentmesh_client.connect(server.url) as mesh:
            await mesh.start_agent("counter", kind="Counter")
            return (await mesh.ask("counter", "hello")).text

    assert setup(project, "--new", "--nats", server.url)[0] == 0
    with (
        verb(project, "supervisor", "--id", "s1", "--nats", server.url) as supervisor,
        verb(project, "node", "--agents", "my_agents", "--id", "n1", "--nats", server.url, "--label", "gpu=yes") as node,
    ):
        assert first_line(supervisor) == f"supervisor s1 ready: {server.url}"
        assert first_line(node) == f"node n1 ready: kinds Counter, Echo; {server.url}"
        assert run(started_and_asked()) == "hello"
        assert end(node) == (0, "")
        assert end(supervisor, signal.SIGINT) == (0, "")


def test_without_a_server_a_node_says_so_and_ends_with_5(project: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{closed.getsockname()[1]}"
        with verb(project, "node", "--agents", "my_agents.py", "--nats", url, "--wait", "0.5") as node:
            said, complaint = node.communicate(timeout=120)
    assert node.returncode == 5
    assert said == ""
    assert re.fullmatch(rf"mesh: .*{re.escape(url)}.*\n", complaint.splitlines(keepends=True)[-1])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["node", "--agents", "nowhere"], "there is no module 'nowhere'"),
        (["node", "--agents", "my_agents", "--id", "a.b"], "not a node id"),
        (["node", "--agents", "my_agents", "--label", "gpu"], "write KEY=VALUE"),
        (["node", "--agents", "my_agents", "--root", "No Root"], "cannot be a mesh's root"),
        (["node", "--agents", "my_agents", "--capacity", "-1"], '"-1" for --capacity. Must be >= 0'),
        (["node", "--agents", "broken_agents"], "broken_agents cannot be imported: SyntaxError"),
        (["node", "--agents", "ending_agents"], "ending_agents cannot be imported: SystemExit: 3"),
        (["supervisor", "--id", "*"], "not a node id"),
        (["up", "my_agents", "--port", "99999"], "99999 is no port"),
        (["up", "my_agents", "--sync-interval", "often"], "is no sync interval"),
        (["up", "my_agents.txt"], "there is no module 'my_agents.txt'"),
    ],
)
def test_wrong_use_is_one_sentence_and_2(project: Path, arguments: list[str], complaint: str) -> None:
    with verb(project, *arguments) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.startswith("mesh: ")
    assert len(said.splitlines()) == 1
    assert complaint in said


async def turns(url: str, *, start: bool) -> int:
    async with agentmesh_client.connect(url) as mesh:
        if start:
            await mesh.start_agent("counter", kind="Counter")
        await mesh.ask("counter", "again")
        status = await mesh.status("counter", content=True)
        seen = status.agent_state["seen"]
        assert isinstance(seen, int)
        return seen


@pytest.mark.case(214)
def test_up_brings_everything_and_a_restart_finds_it_again(project: Path) -> None:
    for round_number in (1, 2):
        with verb(project, "up", "my_agents", "--port", "0") as mesh:
            line = first_line(mesh)
            match = re.fullmatch(r"mesh ready: (nats://127\.0\.0\.1:\d+); kinds Counter, Echo; data in \.mesh", line)
            assert match is not None, line
            assert (project / ".mesh" / "url").read_text() == match[1] + "\n"
            assert run(turns(match[1], start=round_number == 1)) == round_number
            assert end(mesh, signal.SIGINT) == (0, "")


def test_node_and_supervisor_of_up_share_an_id_and_each_request_is_answered_by_the_one_that_is_meant(project: Path) -> None:
    async def operate(url: str) -> None:
        async with agentmesh_client.connect(url) as mesh:
            operator = Operator(mesh.transport, mesh.subjects)
            for _ in range(5):
                await operator.cordon("dev")
                await operator.cordon("dev", on=False)
                assert await operator.rebalance() == 0
            await operator.drain("dev")

    with verb(project, "up", "my_agents", "--port", "0") as mesh:
        url = first_line(mesh).split()[2].rstrip(";")
        assert run(turns(url, start=True)) == 1  # the supervisor knows the node
        run(operate(url))
        assert mesh.wait(timeout=120) == 0


@pytest.mark.case(462)
def test_a_drain_of_the_node_of_up_ends_well_though_its_server_ends_with_it(project: Path) -> None:
    async def drained(url: str) -> tuple[int, str]:
        done = await mesh_command(["drain", "dev", "--nats", url], dict(os.environ))
        return done.returncode, done.stdout + done.stderr

    for _ in range(3):
        with verb(project, "up", "my_agents", "--port", "0") as mesh:
            url = first_line(mesh).split()[2].rstrip(";")
            assert run(drained(url)) == (0, "dev is gone\n")
            assert mesh.wait(timeout=120) == 0


@pytest.mark.case(201)
def test_up_outlives_its_server_and_a_killed_up_leaves_nothing_in_the_way(project: Path) -> None:
    with verb(project, "up", "my_agents", "--port", "0") as mesh:
        url = first_line(mesh).split()[2].rstrip(";")
        assert run(turns(url, start=True)) == 1
        os.kill(int((project / ".mesh" / "nats" / "nats-server.pid").read_text()), signal.SIGKILL)
        assert run(turns(url, start=False), timeout=60) == 2
        mesh.kill()
        mesh.communicate()
    with verb(project, "up", "my_agents", "--port", "0") as mesh:
        assert run(turns(first_line(mesh).split()[2].rstrip(";"), start=False)) == 3
        with verb(project, "up", "my_agents", "--port", "0") as second:
            _, complaint = second.communicate(timeout=120)
            assert "in use by another mesh" in complaint
        assert end(mesh)[0] == 0


def test_a_second_signal_does_not_wait_for_the_turn(project: Path) -> None:
    slow = AGENTS.replace('backend = "scripted"', 'backend = "scripted"\n    delay_s = 60')
    (project / "slow_agents.py").write_text(slow)

    async def busy(url: str) -> None:
        async with agentmesh_client.connect(url) as mesh:
            await mesh.start_agent("counter", kind="Counter")
            await mesh.tell("counter", "take your time")

            async def runs() -> bool:
                return (await mesh.status("counter")).state == "processing"

            await eventually(runs)

    with verb(project, "up", "slow_agents", "--port", "0") as mesh:
        run(busy(first_line(mesh).split()[2].rstrip(";")))
        mesh.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            mesh.wait(1)  # it drains: the turn may end
        assert end(mesh, signal.SIGINT)[0] == 130


@pytest.mark.case(263)
def test_setup_adds_to_a_mesh_that_works_meanwhile(server: Server, subjects: Subjects, project: Path) -> None:
    async def widest() -> int:
        async with connected(server.url) as t:
            return int((await stream_state(t, subjects.stream("result"))).config["max_age"])

    async def main() -> None:
        async with local_mesh(server, subjects, results_age_s=300.0) as mesh:
            await mesh.client.start_agent("a", kind="Recorder")
            asked = 0
            adding = asyncio.create_task(
                asyncio.to_thread(setup, project, "--nats", server.url, "--root", subjects.root, "--results-age", "600")
            )
            while not adding.done() or asked < 3:
                assert (await mesh.client.ask("a", str(asked), timeout=PATIENCE_S)).text == str(asked)
                asked += 1
            code, said, complaint = await adding
            assert (code, complaint) == (0, "")
            assert f"change {subjects.stream('result')}: max_age from 300 s to 600 s" in said
            assert (await mesh.client.ask("a", "afterwards", timeout=PATIENCE_S)).text == "afterwards"
        assert await widest() == 600_000_000_000

    run(main(), 110)
