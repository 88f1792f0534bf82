"""How long callers wait when something dies: `make bench-failover`.

Some agents are in a turn, their callers wait; then a node, a leader or a server goes. Printed are the times from that moment to
each caller's answer, and what must be zero: answers that never came, prompts that took effect more or less often than once, and
other nodes that the leader took for gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

import agentmesh_client
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import Subjects
from agentmesh_client import Mesh
from bench.moving import moving
from support import Cluster, Server, connected

HERE = Path(__file__).parent
PATIENCE_S = 120.0
AT_ONCE = 64
NODES = ("n1", "n2", "n3")
SUPERVISORS = ("s1", "s2")
MOVING = "moving"


class Process:
    """One hosting process."""

    def __init__(self, verb: str, own_id: str, url: str, logs: Path, *options: str, env: dict[str, str]) -> None:
        self.id = own_id
        self._log = logs / f"{own_id}.log"
        command = [sys.executable, "-m", "agentmesh_node", verb, "--id", own_id, "--nats", url, *options]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "OTEL_"))}
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=clean | env)
        self._line = f"{verb} {own_id} ready"

    async def ready(self) -> None:
        """Wait until it says that it does its work."""
        while self._line not in self._log.read_text():
            assert self.popen.poll() is None, self._log.read_text()
            await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        return await asyncio.to_thread(self.popen.wait, PATIENCE_S)

    def close(self) -> None:
        """Be sure that it is gone."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)


class Stage:
    """A running mesh of processes, and a client."""

    def __init__(
        self, mesh: Mesh, processes: dict[str, Process], servers: Server | Cluster, logs: Path, options: tuple[str, ...]
    ) -> None:
        self.mesh = mesh
        self.processes = processes
        self.servers = servers
        self.logs = logs
        self.options = options
        self.hold = logs / "hold"

    async def start_node(self, own_id: str, env: Mapping[str, str]) -> None:
        """Start one more node."""
        hers = {**env, "MESH_BENCH_LOGS": str(self.logs)}
        process = self.processes[own_id] = Process("node", own_id, self.servers.url, self.logs, *self.options, env=hers)
        await process.ready()

    async def leader(self) -> str:
        """Id of the leading supervisor."""
        from agentmesh.edge.registry import Registry

        entry = await Registry(self.mesh.transport, self.mesh.subjects).get("supervisor")
        assert entry is not None and entry.value is not None
        return msgspec.json.decode(entry.value, type=SupervisorLease).id


@contextlib.asynccontextmanager
async def stage(
    *, clustered: bool, nodes: Sequence[str] = NODES, env: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Stage]:
    """Server or servers, two supervisors, nodes, a client. n1 holds turns."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as directory, Cluster() if clustered else Server() as servers:
        logs = Path(directory)
        hold = logs / "hold"
        hold.touch()
        processes: dict[str, Process] = {}
        agents = ("--agents", str(HERE / "failover_agents.py"))
        try:
            async with connected(servers.url) as transport:
                await ensure(transport, Subjects())
            for own_id in SUPERVISORS:
                processes[own_id] = Process("supervisor", own_id, servers.url, logs, env=dict(env))
            await asyncio.gather(*(p.ready() for p in processes.values()))
            for own_id in nodes:
                hers = {**env, "MESH_BENCH_LOGS": str(logs), **({"MESH_BENCH_HOLD": str(hold)} if own_id == "n1" else {})}
                processes[own_id] = Process("node", own_id, servers.url, logs, *agents, env=hers)
            await asyncio.gather(*(p.ready() for p in processes.values()))
            async with agentmesh_client.connect(servers.url) as mesh:
                yield Stage(mesh, processes, servers, logs, agents)
        finally:
            for process in processes.values():
                process.close()


async def each[T](items: Sequence[T], work: Callable[[T], Awaitable[Any]]) -> None:
    """Do `work` for all items, some at a time."""
    todo = iter(items)

    async def worker() -> None:
        for item in todo:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


class Waiting:
    """Callers whose prompts are in a turn."""

    def __init__(self, mesh: Mesh, agents: Sequence[str]) -> None:
        self._mesh = mesh
        self._agents = agents
        self.answered: dict[str, float] = {}
        self.errors: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Send the prompts; return when all turns have begun."""
        started: set[str] = set()
        all_started = asyncio.Event()

        def note(message: Message) -> None:
            started.add(msgspec.json.decode(message.data)["agent"])
            if len(started) >= len(self._agents):
                all_started.set()

        listening = await self._mesh.transport.subscribe(self._mesh.subjects.event("*", "prompt_start"), note)
        await self._mesh.transport.flush()
        self._tasks = [asyncio.create_task(self._ask(agent)) for agent in self._agents]
        async with asyncio.timeout(PATIENCE_S):
            await all_started.wait()
        await listening.unsubscribe()

    async def _ask(self, agent: str) -> None:
        try:
            answer = await self._mesh.ask(agent, f"hold {agent}", timeout=PATIENCE_S)
            if answer.text != f"hold {agent}":
                self.errors[agent] = f"another answer: {answer.text}"
        except Exception as error:  # noqa: BLE001 - counted
            self.errors[agent] = repr(error)
        self.answered[agent] = time.monotonic()

    async def end(self) -> None:
        """Wait for all answers."""
        await asyncio.gather(*self._tasks)


async def scenario(name: str, agents: int, busy: int) -> None:
    """One line of figures."""
    async with stage(clustered=name in ("server", "registry")) as it:
        names = [f"w{number}" for number in range(agents)]
        await each(names, lambda agent: it.mesh.start_agent(agent, kind="Worker", timeout=PATIENCE_S))
        homes = {entry.name: entry.node for entry in await it.mesh.list_agents()}
        on_victim = [agent for agent in names if homes[agent] == "n1"]
        await asyncio.sleep(3.0)  # idle agents say in their journals that they rest
        wrongly = await gone(it.mesh)
        waiting = Waiting(it.mesh, on_victim[:busy])
        await waiting.begin()
        began = time.monotonic()
        exit_code = await SCENARIOS[name](it)
        await waiting.end()
        times = sorted(1000 * (waiting.answered[agent] - began) for agent in on_victim[:busy])
        if name == "freeze":
            it.processes["n1"].signal(signal.SIGCONT)
        lost, doubled = await audit(it.mesh, names, set(on_victim[:busy]))
        p99 = times[min(len(times) - 1, round(0.99 * len(times)))]
        figures = f"{times[0]:8.0f} {statistics.median(times):8.0f} {p99:8.0f} {times[-1]:8.0f}"
        zeros = f"{len(waiting.errors):6} {lost:5} {doubled:8} {len(wrongly - {'n1'}):5}"
        end = f"   exit {exit_code}" if exit_code is not None else ""
        print(f"{name:8} {agents:6} {len(on_victim):6} {len(times):5}  {figures}   {zeros}{end}", flush=True)
        for agent, error in list(waiting.errors.items())[:3]:
            print(f"         {agent}: {error}")


async def gone(mesh: Mesh) -> set[str]:
    """Nodes that the leader takes for gone, from now on."""
    found: set[str] = set()

    def note(message: Message) -> None:
        found.add(msgspec.json.decode(message.data)["node"])

    await mesh.transport.subscribe(mesh.subjects.event("_supervisor", "node_gone"), note)
    await mesh.transport.flush()
    return found


async def audit(mesh: Mesh, names: Sequence[str], busy: set[str]) -> tuple[int, int]:
    """Prompts without effect, and prompts with more than one, after one more prompt to every agent."""
    lost = doubled = 0

    async def check(agent: str) -> None:
        nonlocal lost, doubled
        await mesh.ask(agent, "again", timeout=PATIENCE_S)
        seen = (await mesh.status(agent, True)).agent_state["prompts"]
        wanted = [f"hold {agent}", "again"] if agent in busy else ["again"]
        lost += sum(seen.count(prompt) < 1 for prompt in wanted)
        doubled += len(seen) - len(set(seen))

    await each(names, check)
    return lost, doubled


# --- what happens -------------------------------------------------------------------------------------------------
async def kill(it: Stage) -> None:
    """kill -9 of the node."""
    it.processes["n1"].signal(signal.SIGKILL)


async def freeze(it: Stage) -> None:
    """SIGSTOP of the node: its connections stay open. It is thawed after the last answer."""
    it.processes["n1"].signal(signal.SIGSTOP)


async def drain(it: Stage) -> int:
    """SIGTERM of the node; its turns end half a second later."""
    it.processes["n1"].signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    it.hold.unlink()
    return await it.processes["n1"].ended()


async def leader(it: Stage) -> None:
    """kill -9 of the node and of the leading supervisor at once."""
    leading = await it.leader()
    it.processes["n1"].signal(signal.SIGKILL)
    it.processes[leading].signal(signal.SIGKILL)


async def server(it: Stage) -> None:
    """kill -9 of the NATS server that leads the journal's stream; the turns end meanwhile."""
    assert isinstance(it.servers, Cluster)
    it.servers.stream_leader(it.mesh.subjects.stream("journal")).kill()
    it.hold.unlink()


async def registry(it: Stage) -> None:
    """kill -9 of the NATS server that leads the registry: all leases lapse before it has a leader again."""
    assert isinstance(it.servers, Cluster)
    it.servers.stream_leader(it.mesh.subjects.stream("registry")).kill()
    it.hold.unlink()
    await asyncio.sleep(12.0)


SCENARIOS: dict[str, Callable[[Stage], Awaitable[int | None]]] = {
    "kill": kill,
    "freeze": freeze,
    "drain": drain,
    "leader": leader,
    "server": server,
    "registry": registry,
}


def main() -> None:
    """Run the scenarios that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*SCENARIOS, MOVING]
    parser.add_argument("scenarios", nargs="*", default=known, help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--agents", type=int, default=1000, help="agents over three nodes")
    parser.add_argument("--busy", type=int, default=100, help="of those on n1, how many are in a turn")
    parser.add_argument("--rounds", type=int, default=3, help=f"of {MOVING}")
    parser.add_argument("--other", type=Path, default=None, help=f"{MOVING} with the processes of this checkout too")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(known):
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    if others := [name for name in options.scenarios if name != MOVING]:
        print("From the fault to each answer, ms. n1 is the victim; its busy agents' callers wait.")
        columns = " ".join(f"{column:>8}" for column in ("min", "p50", "p99", "max"))
        print(f"{'fault':8} {'agents':>6} {'on n1':>6} {'busy':>5}  {columns}   errors  lost  doubled wrong")
    for name in others:
        asyncio.run(scenario(name, options.agents, options.busy))
    if MOVING in options.scenarios:
        asyncio.run(moving(stage, options.busy, options.rounds, options.other))


if __name__ == "__main__":
    main()
