"""The clients for other languages against a real mesh, each driven by lines over its standard input (client/*/conformance).

A client is built in a folder of its own, from the package registries of its language; what its build names as missing on this
machine is a skip with that reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentmesh.subjects import Subjects
from live.agents import Recorder
from live.mesh import LocalMesh, local_mesh
from support import Server, run

LANGUAGES = {"typescript": ("npm", "test", "--silent"), "c": ("test/run",)}
"""How a language's own tests are run, where its client lies."""
CLIENTS = Path(__file__).parents[2] / "client"
BUILD_S = 300
PATIENCE_S = 100.0
MISSING = 3
"""The exit code of a build that lacks a tool."""
USERS = """
accounts: { MESH: { jetstream: enabled, users: [
    { user: mesh, password: mesh }
    { user: mute, password: p, permissions: { publish: { deny: ["*.ask.>", "*.live.>"] } } }
    { user: deaf, password: p, permissions: { subscribe: { deny: ["_INBOX.>"] } } }
    { user: own, password: p, permissions: { subscribe: { allow: ["private.own.>"] } } }
] } }
no_auth_user: mesh
"""

pytestmark = [pytest.mark.slow, pytest.mark.processes]


class Gated(Recorder):
    """Holds the turns whose prompt begins with `held` until the gate is open, and says three words in the turn `words`."""

    gate: ClassVar[asyncio.Event]
    begun: ClassVar[asyncio.Event]

    @staticmethod
    async def script(prompt: str) -> Any:
        if prompt.startswith("held"):
            Gated.begun.set()
            await Gated.gate.wait()
        if prompt == "words":
            return [{"kind": "text", "data": {"text": word}} for word in ("one ", "two ", "three")] + [
                {"kind": "result", "data": {"text": "done"}}
            ]
        return prompt


class Driver:
    """The driver of a client: requests go in as lines, several may be open, and each has one result or error."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._open: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    async def ready(self) -> dict[str, Any]:
        """What it says when it is connected, or why it is not."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._ready

    async def close(self) -> int:
        """End of input; returns its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(PATIENCE_S):
            code = await self._process.wait()
            await self._reading
        return code

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    def begin(self, op: str, **fields: Any) -> str:
        """Send a line, and return its id."""
        own_id = str(len(self._open) + 1)
        self._open[own_id] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": own_id, "op": op, "timeout_s": PATIENCE_S, **fields}).encode() + b"\n")
        return own_id

    async def end(self, own_id: str) -> dict[str, Any]:
        """The last line of a request: a `result` or an `error`."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._open[own_id]

    async def do(self, op: str, **fields: Any) -> Any:
        """The result of a request."""
        line = await self.end(self.begin(op, **fields))
        assert "result" in line, line
        return line["result"]

    async def refused(self, op: str, **fields: Any) -> dict[str, Any]:
        """The error of a request."""
        line = await self.end(self.begin(op, **fields))
        assert "error" in line, line
        error: dict[str, Any] = line["error"]
        return error

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while text := await self._process.stdout.readline():
            line = json.loads(text)
            if "ready" in line:
                self._ready.set_result(line["ready"])
            elif "event" in line:
                self.events.setdefault(line["id"], []).append(line["event"])
            else:
                self._open[line["id"]].set_result(line)  # a second one would raise


@contextlib.asynccontextmanager
async def driven(client: Path, mesh: LocalMesh, **environment: str) -> AsyncIterator[Driver]:
    """A client that is connected to the server of `mesh`."""
    told = {"MESH_CONFORMANCE_URL": mesh.server.url, "MESH_CONFORMANCE_ROOT": mesh.subjects.root, **environment}
    process = await asyncio.create_subprocess_exec(
        client / "conformance" / "run", stdin=PIPE, stdout=PIPE, env={**os.environ, **told}, limit=1 << 24
    )
    driver = Driver(process)
    try:
        yield driver
        assert await driver.close() == 0
    finally:
        driver.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def gated_mesh(server: Server, subjects: Subjects) -> AsyncIterator[LocalMesh]:
    Gated.gate, Gated.begun = asyncio.Event(), asyncio.Event()
    async with local_mesh(server, subjects, serves={"Gated": Gated}) as mesh:
        await mesh.client.start_agent("coder", kind="Gated", timeout=PATIENCE_S)
        yield mesh


@pytest.fixture(scope="module", params=sorted(LANGUAGES))
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A client of some language, built."""
    where = tmp_path_factory.mktemp("client") / request.param
    shutil.copytree(CLIENTS / request.param, where, ignore=shutil.ignore_patterns("node_modules", "dist"))
    built = subprocess.run([where / "conformance" / "build"], capture_output=True, text=True, timeout=BUILD_S)
    if built.returncode == MISSING:
        pytest.skip(built.stderr.strip())
    assert built.returncode == 0, built.stdout + built.stderr
    yield where
    shutil.rmtree(where, ignore_errors=True)


@pytest.fixture
def users() -> Iterator[Server]:
    """A server with users that may not do all."""
    with Server(config=USERS) as running:
        yield running


def test_its_own_tests_pass(client: Path) -> None:
    ran = subprocess.run(LANGUAGES[client.name], cwd=client, capture_output=True, text=True, timeout=BUILD_S)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]


@pytest.mark.case(850, 851)
def test_it_has_all_operations_and_names_what_goes_wrong(client: Path, fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with gated_mesh(fresh_server, subjects) as mesh, driven(client, mesh) as driver:
            assert "error" not in await driver.ready()
            first = await driver.do("ask", agent="coder", prompt="{hello", metadata={"a": 1}, key="once")
            assert first["text"] == "{hello"
            assert isinstance(first["ref"], str)
            assert (await driver.do("ask", agent="coder", prompt="again", key="once"))["ref"] == first["ref"]
            polled = await driver.do("poll", agent="coder", ref=first["ref"])
            assert polled["status"] == "completed"
            assert polled["outcome"]["text"] == "{hello"
            streamed = driver.begin("stream", agent="coder", prompt="words")
            assert (await driver.end(streamed))["result"]["shown"] == "one two three"
            assert [event["type"] for event in driver.events[streamed]] == ["start", "text", "text", "text"]
            assert (await driver.do("notify", agent="coder", event={"a": 1}))["ref"].isdecimal()
            due = await driver.do("set_timer", agent="coder", timer="t", event=1, after_s=3000)
            assert due["set"] is True
            assert due["due"].startswith("20")
            assert (await driver.do("cancel_timer", agent="coder", timer="t"))["cancelled"] is True
            assert (await driver.do("resume", agent="coder"))["resumed"] is False
            held = driver.begin("ask", agent="coder", prompt="held")
            await asyncio.wait_for(Gated.begun.wait(), PATIENCE_S)
            assert (await driver.do("status", agent="coder", content=True))["state"] == "processing"
            waiting = await driver.do("tell", agent="coder", prompt="waits")
            assert (await driver.do("cancel", agent="coder", ref=waiting["ref"]))["cancelled"] is True
            assert (await driver.do("interrupt", agent="coder"))["interrupted"] is True
            assert (await driver.end(held))["error"]["code"] == "interrupted"
            assert (await driver.refused("ask", agent="nobody", prompt="x"))["code"] == "not_found"
            assert (await driver.refused("status", agent="nobody"))["code"] == "not_found"
            assert (await driver.refused("ask", agent="coder", prompt=""))["code"] == "bad_request"
            large = await driver.refused("ask", agent="coder", prompt="x" * 1_100_000)
            assert (large["code"], large["details"]["limit"]) == ("too_large", 1_048_576)
            assert (await driver.refused("whistle"))["code"] == "unsupported"
            held = driver.begin("ask", agent="coder", prompt="held, and left")
            assert (await driver.do("cancel_local", target=held))["done"] is True
            assert (await driver.end(held))["error"]["code"] == "cancelled_local"
            late = await driver.refused("ask", agent="coder", prompt="held, and too late", timeout_s=0.5)
            assert late["code"] == "ask_timeout"
            Gated.gate.set()

    run(main())


@pytest.mark.case(852)
def test_a_server_that_dies_in_mid_ask_costs_neither_the_answer_nor_a_second_turn(
    client: Path, fresh_server: Server, subjects: Subjects
) -> None:
    async def main() -> None:
        async with gated_mesh(fresh_server, subjects) as mesh, driven(client, mesh) as driver:
            await driver.ready()
            asks = [driver.begin("ask", agent="coder", prompt="held"), driver.begin("stream", agent="coder", prompt="second")]
            await asyncio.wait_for(Gated.begun.wait(), PATIENCE_S)
            await asyncio.to_thread(fresh_server.kill)
            asks.append(driver.begin("ask", agent="coder", prompt="third"))
            Gated.gate.set()
            await asyncio.to_thread(fresh_server.start)
            answered = [await driver.end(ask) for ask in asks]
            assert [line["result"]["text"] for line in answered] == ["held", "second", "third"]
            status = await driver.do("status", agent="coder", content=True)
            assert sorted(status["agent_state"]["prompts"]) == ["held", "second", "third"]

    run(main())


@pytest.mark.case(853)
def test_what_the_server_refuses_is_told_at_once(client: Path, users: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with gated_mesh(users, subjects) as mesh:
            await refused_to(mesh, "mute", "ask", "stream", "status")
            await refused_to(mesh, "deaf", "ask", "tell", "status")
            own = {**login("own"), "MESH_CONFORMANCE_INBOX_PREFIX": "private.own"}
            async with driven(client, mesh, **own) as driver:
                await driver.ready()
                assert (await driver.do("ask", agent="coder", prompt="hello"))["text"] == "hello"
            async with driven(client, mesh, MESH_CONFORMANCE_USER="stranger", MESH_CONFORMANCE_PASSWORD="p") as driver:
                assert (await driver.ready())["error"]["code"] == "not_permitted"

    async def refused_to(mesh: LocalMesh, user: str, *ops: str) -> None:
        async with driven(client, mesh, **login(user)) as driver:
            await driver.ready()
            for op in ops:
                assert (await driver.refused(op, agent="coder", prompt="x"))["code"] == "not_permitted", (user, op)

    def login(user: str) -> dict[str, str]:
        return {"MESH_CONFORMANCE_USER": user, "MESH_CONFORMANCE_PASSWORD": "p"}

    run(main())
