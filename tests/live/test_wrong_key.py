"""An encrypted store that is opened with a wrong key shows no streams. No process takes that for a new mesh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agentmesh.edge.api import call_api
from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.edge.streams import absent, ensure
from agentmesh.subjects import Subjects
from live import agents as live_agents
from live.mesh import PATIENCE_S
from live.test_workers import http_get
from support import Server, connected, eventually, free_ports, run

pytestmark = [pytest.mark.processes, pytest.mark.case(260), pytest.mark.case(261)]

MAIL = 100
AGENTS = str(Path(live_agents.__file__))
SUBJECTS = Subjects()
KEY = 'cipher: aes, key: "{}"'


@contextmanager
def process(project: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A hosting verb, killed in the end if it still runs, and the file with all that it says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
    paths = os.pathsep.join(filter(None, (str(Path(AGENTS).parents[1]), kept.get("PYTHONPATH"))))
    log = project / f"{arguments[0]}.log"
    with log.open("wb") as said:
        running = subprocess.Popen(
            [sys.executable, "-m", "agentmesh_node", *arguments],
            cwd=project, env=kept | {"PYTHONPATH": paths}, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield running, log
    finally:
        running.kill()
        running.wait()


def ends(project: Path, *arguments: str) -> tuple[int, str]:
    """How a verb ends by itself, and what it says."""
    with process(project, *arguments) as (running, log):
        return running.wait(PATIENCE_S), log.read_text()


def waits(project: Path, nats: str, *arguments: str) -> str:
    """What a verb says that does not end, and is not ready; it ends when it is told to."""
    (port,) = free_ports(1)
    with process(project, *arguments, "--nats", nats, "--health-port", str(port)) as (running, log):
        run(eventually(lambda: "stream_missing" in log.read_text(), PATIENCE_S, "its complaint"))
        status, reason = run(http_get(port, "/readyz"))
        assert status == 503
        assert reason.startswith("stream_missing: ") and "run `mesh setup`" in reason
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 0, "it was stopped in order, though it had not been ready"
        return log.read_text()


async def mail(server: Server) -> Sequence[bytes]:
    async with connected(server.url) as t:
        return [message.data for message in await read_all(t, SUBJECTS.stream("mail"), SUBJECTS.mail_filter("a"))]


async def shown(server: Server) -> int:
    async with connected(server.url) as t:
        return int(msgspec.json.decode(await call_api(t, "STREAM.NAMES"))["total"])


def test_with_a_wrong_key_nothing_is_made_and_with_the_right_one_everything_is_there(tmp_path: Path) -> None:
    written = [str(number).encode() for number in range(MAIL)]

    async def begin() -> None:
        async with connected(server.url) as t:
            await ensure(t, SUBJECTS)
            for body in written:
                await store(t, SUBJECTS.inbox("a"), body)

    with Server(jetstream=KEY.format("right")) as server:
        run(begin())
        server.stop()
        server.jetstream = KEY.format("wrong")
        server.launch()  # it serves, and never calls itself healthy
        assert run(shown(server)) == 0, "the fault that this is about"

        for said in (  # cases 260 and 261
            waits(tmp_path, server.url, "node", "--agents", AGENTS, "--id", "n1"),
            waits(tmp_path, server.url, "supervisor", "--id", "s1"),
        ):
            assert said.count("run `mesh setup`") == 1
            assert " ready: " not in said
        code, said = ends(tmp_path, "setup", "--nats", server.url)
        assert code == 1
        assert "encryption key" in said and "--new" in said
        assert run(shown(server)) == 0, "nobody has made any"

        server.stop()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "nats").symlink_to(server.store)
        code, said = ends(tmp_path, "up", AGENTS, "--data", "data", "--port", "0")
        assert code == 1
        assert "has held a mesh" in said and "encrypted" in said

        server.jetstream = KEY.format("right")
        server.start()
        assert run(mail(server)) == written
        assert run(lacking(server)) == []


async def lacking(server: Server) -> list[str]:
    async with connected(server.url) as t:
        return (await absent(t, SUBJECTS)).lost
