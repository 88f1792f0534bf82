"""What sleeping agents cost: `make bench-sleeping`.

Registers many agents on one node, waits until they all sleep, and prints what the node's memory grew by per agent; wakes some;
kills the node and prints how long another one takes until it answers for them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from agentmesh.control_values import ControlRequest, NodeStats
from agentmesh.wire import encode
from agentmesh_client import Mesh
from bench.failover import PATIENCE_S, Process, each, stage

SAMPLE = 200
LOOK_S = 0.5
LONG_S = 1200.0


def resident_kb(pid: int) -> int:
    """Memory that a process holds, in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


async def stats(mesh: Mesh, node: str) -> NodeStats:
    """What a node says of itself."""
    reply = await mesh.transport.request(mesh.subjects.node(node), encode(ControlRequest(op="ping")), timeout=PATIENCE_S)
    return msgspec.json.decode(reply.data, type=NodeStats)


async def until(condition: Callable[[], Awaitable[bool]]) -> float:
    """Seconds until `condition()` held."""
    began = time.monotonic()
    async with asyncio.timeout(LONG_S):
        while not await condition():  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(LOOK_S)
    return time.monotonic() - began


async def measure(agents: int, passivate_s: float) -> None:
    """All of it."""
    env = {"MESH_PASSIVATE_S": str(passivate_s)}
    async with stage(clustered=False, nodes=("n1",), env=env) as it:
        it.hold.unlink()
        mesh, node = it.mesh, it.processes["n1"]
        await mesh.start_agent("probe", kind="Worker", timeout=PATIENCE_S)
        empty = resident_kb(node.popen.pid)
        names = [f"w{number}" for number in range(agents)]
        began = time.monotonic()
        await each(names, lambda agent: mesh.start_agent(agent, kind="Worker", wait=False))
        print(f"registered {agents} agents in {time.monotonic() - began:.1f} s", flush=True)

        async def all_run() -> bool:
            found = await mesh.list_agents()
            return sum(entry.spec.status == "running" for entry in found) == agents + 1

        await until(all_run)
        print(f"all run {time.monotonic() - began:.1f} s after the first was registered", flush=True)

        async def all_sleep() -> bool:
            return (await stats(mesh, "n1")).awake == 0

        await until(all_sleep)
        asleep = resident_kb(node.popen.pid)
        print(
            f"all sleep; {asleep} kB, {empty} kB when empty: {1024 * (asleep - empty) / agents:.0f} bytes per agent", flush=True
        )
        await wake(mesh, names, "one")
        it.processes["n2"] = Process("node", "n2", it.servers.url, it.logs, *it.options, env=env)
        await it.processes["n2"].ready()
        node.popen.kill()
        began = time.monotonic()

        async def all_moved() -> bool:
            return (await stats(mesh, "n2")).agents >= agents + 1

        await until(all_moved)
        print(f"taken over by another node {time.monotonic() - began:.1f} s after kill -9", flush=True)
        await wake(mesh, names, "two")
        print(f"its memory: {resident_kb(it.processes['n2'].popen.pid)} kB", flush=True)


async def wake(mesh: Mesh, names: list[str], prompt: str) -> None:
    """Ask some agents that sleep, one after the other."""
    times = []
    for agent in names[:: max(1, len(names) // SAMPLE)]:
        began = time.monotonic()
        await mesh.ask(agent, prompt, timeout=PATIENCE_S)
        times.append(1000 * (time.monotonic() - began))
    figures = f"min {min(times):.1f}, median {statistics.median(times):.1f}, max {max(times):.1f} ms"
    print(f"asked {len(times)} sleeping agents: {figures}", flush=True)


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--passivate", type=float, default=5.0, help="seconds of idleness after which an agent sleeps")
    options = parser.parse_args()
    asyncio.run(measure(options.agents, options.passivate))


if __name__ == "__main__":
    main()
