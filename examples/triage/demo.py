"""A coordinator outlives its node: `make demo`, or `python examples/triage/demo.py [LOGFILE]`.

With MODEL=local in the environment the agents run on a small, real model of this machine, with MODEL=URL on that of a server.

An embedded NATS server, a supervisor and two agent nodes run as processes of their own. `Triage` (agents.py) has three readers
go through a log. While they do, the node that runs the coordinator is killed with SIGKILL. The exit code is 0 only if the agent
was taken over and its caller got one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from pathlib import Path

from opentelemetry import trace
from timeline import Timeline

import agentmesh_client
from agentmesh import semconv
from agentmesh.edge.connection import connect
from agentmesh.edge.streams import ensure
from agentmesh.errors import MeshError
from agentmesh.subjects import Subjects
from agentmesh_client import Mesh
from agentmesh_client.cli.drawn import tree_text
from agentmesh_node.backends.model_server.local import LOCAL, MODEL, LocalModel
from agentmesh_node.process.nats_server import EmbeddedServer
from agentmesh_node.telemetry import otel

HERE = Path(__file__).parent
EXAMPLE = HERE / "agents.py"
COORDINATOR = "triage"
QUESTION = "What went wrong this morning, and where should we look first?"
LIMIT_S = 80.0
MODEL_LIMIT_S = 300.0
"""With a real model, whose pace is the machine's."""
IN_THE_MIDDLE_S = 1.0
"""How far into the readers' turns the kill comes."""
READY_S = 60.0


class Processes:
    """The supervisor and the nodes, each a process with a log of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self.url = url
        """The server's."""
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, verb: str, own_id: str, *options: str) -> None:
        """Start `mesh VERB --id OWN_ID ...` and return when it says that it is ready."""
        with self._log(own_id).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agentmesh_node", verb, "--id", own_id, "--nats", self.url, *options,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env={**os.environ, "MESH_LOG": "text"},
            )  # fmt: skip
        self._running[own_id] = process
        assert process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
        if b"ready" not in line:
            raise RuntimeError(f"{verb} {own_id} did not start:\n{self._log(own_id).read_text()}")

    async def kill(self, own_id: str) -> None:
        """SIGKILL: no last words, no hand-over."""
        process = self._running.pop(own_id)
        process.kill()
        await process.wait()

    async def close(self) -> None:
        """End what still runs: nodes drain."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()

    def last_words(self) -> str:
        """The ends of all logs, for the case that something went wrong."""
        return "\n".join(f"--- {p.name}\n" + "\n".join(p.read_text().splitlines()[-15:]) for p in self._directory.glob("*.log"))

    def _log(self, own_id: str) -> Path:
        return self._directory / f"{own_id}.log"


async def make_streams(url: str) -> None:
    """What `mesh setup --new` does: the server's store is a new directory."""
    transport = await connect(url, name="demo-setup")
    try:
        await ensure(transport, Subjects())
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def stage(show: Timeline, file: Path = EXAMPLE) -> AsyncIterator[tuple[Processes, Mesh]]:
    """A mesh of one server, one supervisor and two nodes with the agents of `file`, and a client that listens to its events."""
    with tempfile.TemporaryDirectory(prefix="mesh-demo-") as name:
        directory = Path(name)
        async with contextlib.AsyncExitStack() as ended, EmbeddedServer(directory / "nats") as server:
            show.say("server", f"{server.url}, JetStream in {server.store}")
            processes = Processes(directory, server.url)
            try:
                await make_streams(server.url)
                await processes.start("supervisor", "s1")
                agents = ("--agents", str(file), "--trace-facts", "all", *await served(show, ended))
                await asyncio.gather(*(processes.start("node", node, *agents) for node in ("n1", "n2")))
                show.say("ready", "supervisor s1, nodes n1 and n2")
                async with agentmesh_client.connect(server.url) as mesh:
                    await mesh.transport.subscribe(mesh.subjects.event_all(), show.on_event)
                    await mesh.transport.subscribe(mesh.subjects.done(COORDINATOR, "*"), show.on_outcome)
                    yield processes, mesh
            except BaseException:
                print(processes.last_words(), file=sys.stderr)
                raise
            finally:
                await processes.close()


async def served(show: Timeline, ended: contextlib.AsyncExitStack) -> tuple[str, ...]:
    """The option of nodes whose agents run on a server of models. A local one ends with `ended`."""
    named = os.environ.get("MODEL")
    if not named:
        return ()
    if named == LOCAL:
        local = await ended.enter_async_context(LocalModel())
        show.say("model", f"{MODEL} at {local.address}, process {local.pid}")
        named = local.address
    return ("--model", named)


async def play(show: Timeline, log: Path) -> str:
    """Ask, kill, and return the answer."""
    backend = model()
    async with stage(show) as (processes, mesh):
        options = {"log": str(log), "readers": backend, "small": os.environ.get("MODEL") == LOCAL}
        await mesh.start_agent(COORDINATOR, kind="Triage", backend=backend, options=options)
        show.say(f"caller -> {COORDINATOR}", f"asks: {QUESTION}")
        asked = asyncio.create_task(mesh.ask(COORDINATOR, QUESTION, timeout=limit_s()))
        killed = asyncio.create_task(kill_its_node(show, processes, mesh))
        try:
            answer = await asked
            await killed
        finally:
            asked.cancel()
            killed.cancel()
        show.say(f"{COORDINATOR} -> caller", f"answers, from {answer.node}")
        async with asyncio.timeout(READY_S):
            await show.answered.wait()
            show.request = await told(mesh, answer.ref)
        return answer.text


async def told(mesh: Mesh, ref: str) -> str:
    """The request as a tree, as `mesh trace` shows it: the attempt that died with its node is struck through."""
    async for report in mesh.traces.follow(f"{COORDINATOR}/{ref}"):
        if report.over:
            break
    return f"mesh trace {COORDINATOR}/{ref}\n{tree_text(report.branches, colour=Timeline.colour())}"


async def kill_its_node(show: Timeline, processes: Processes, mesh: Mesh) -> None:
    """In the middle of the readers' turns, kill the node that the registry names as the coordinator's."""
    await show.readers_busy.wait()
    await asyncio.sleep(IN_THE_MIDDLE_S)
    node = await mesh.whereis(COORDINATOR)
    assert node is not None, "a running agent has a node"
    there = [entry.name for entry in await mesh.list_agents() if entry.node == node]
    show.kill(node, there)
    await processes.kill(node)


def model() -> str:
    """The backend: Claude where there is a key for it and the backend is installed, else the stand-in of this example, or the
    server of models that takes its place."""
    if os.environ.get("MODEL"):
        return "scripted"
    installed = {entry.name for entry in entry_points(group="agentmesh.backends")}
    return "anthropic" if os.environ.get("ANTHROPIC_API_KEY") and "anthropic" in installed else "scripted"


def limit_s() -> float:
    """Longest that the demo may take."""
    return MODEL_LIMIT_S if os.environ.get("MODEL") else LIMIT_S


def verdict(show: Timeline) -> list[str]:
    """What did not come out as promised."""
    wrong = []
    if show.takeover_s is None:
        wrong.append("the coordinator was not taken over")
    if len(show.outcomes) != 1:
        wrong.append(f"the caller's request has {len(show.outcomes)} outcomes, not one")
    return wrong


async def main(log: Path) -> int:
    """Run the demo; returns the exit code."""
    show = Timeline(COORDINATOR)
    started = otel.setup("client", "demo")
    try:
        async with asyncio.timeout(limit_s()):
            with trace.get_tracer(semconv.SCOPE).start_as_current_span("triage demo"):
                answer = await play(show, log)
    except (MeshError, TimeoutError, RuntimeError) as error:
        print(f"The demo failed: {str(error) or 'it took too long'}", file=sys.stderr)
        return 1
    finally:
        await asyncio.to_thread(started.shutdown)
    print(f"\n{answer}\n\n{show.graph()}\n\n{show.request}\n")
    wrong = verdict(show)
    for complaint in wrong:
        print(f"The demo failed: {complaint}", file=sys.stderr)
    if not wrong:
        print(f"One question, one answer; the coordinator was back {show.takeover_s:.2f} s after its node was killed.")
        print("To ask again yourself: mesh up examples/triage/agents.py, then mesh start triage --kind Triage")
    return 1 if wrong else 0


if __name__ == "__main__":
    chosen = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else HERE / "app.log"
    try:
        raise SystemExit(asyncio.run(main(chosen)))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
