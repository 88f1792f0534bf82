"""What agents take: memory while they sleep, bytes in the journal while they work."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import read_all
from agentmesh.edge.streams import ensure
from agentmesh.records import decode_record
from agentmesh.subjects import Subjects
from bench import sleepers
from bench.clock import ASK_S
from bench.figures import Bound, Figure
from bench.stage import Stage
from support import Server, eventually

WAIT_S = 300.0
STEADY_S = 1.0


async def memory(stage: Stage) -> list[Figure]:
    """Memory of a node process that holds many sleeping agents, less that of one in an empty mesh, for each agent.

    What a node knows of the registry is in it: the specs of all agents, also of those that live elsewhere.
    """
    like = await sleepers.pattern(stage)
    figures = []
    for count in stage.sizes.sleepers:
        figure = Figure(name=f"memory of each of {count:,} sleeping agents", unit="kB", bound=Bound(limit=8, of="value"))
        # The largest takes long to set up, and hardly varies.
        for number in range(stage.sizes.rounds if count < 50_000 else 1):
            figure.add(await _memory(stage, like, count, f"sleep{count}-{number}"))
        figures.append(figure)
    return figures


async def _memory(stage: Stage, like: sleepers.Pattern, count: int, root: str) -> float:
    """kB for each of `count` agents, which are a mesh of their own."""
    subjects, transport = Subjects(root), await stage.transport()
    for needed in (subjects, Subjects(f"{root}-empty")):
        await ensure(transport, needed, replicas=stage.replicas)
    await sleepers.put(transport, subjects, like, root, [f"sleeper.{number}" for number in range(count)])
    written = (await stream_state(transport, subjects.stream("journal"))).last_seq
    empty, full = await stage.node(f"{root}-empty", "empty"), await stage.node(root, root)
    try:
        await _subscribed(stage, f"mesh-node-{root}", count)
        taken = (await _steady(full.pid) - await _steady(empty.pid)) / count
        if (await stream_state(transport, subjects.stream("journal"))).last_seq != written:
            raise RuntimeError("some agents did not sleep: their journals have new records")
        return taken
    finally:
        await empty.end()
        await full.end()


async def _subscribed(stage: Stage, connection: str, count: int) -> None:
    """Wait until a connection of that name has as many subscriptions: each sleeping agent is one."""
    assert isinstance(stage.server, Server)
    server = stage.server

    async def all_there() -> bool:
        page = await asyncio.to_thread(server.monitor, "connz")
        return any(c.get("name") == connection and c["subscriptions"] >= count for c in page["connections"])

    await eventually(all_there, WAIT_S, f"{count} subscriptions")


async def _steady(pid: int) -> float:
    """Resident kB of a process, once it has not changed by a percent for a second."""
    seen = _resident(pid)
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.sleep(STEADY_S)
            now = _resident(pid)
            if abs(now - seen) < seen / 100:
                return now
            seen = now


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return float(line.split()[1])
    return float(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True).stdout)


async def journal(stage: Stage) -> list[Figure]:
    """How much of the journal's stream a turn takes: the prompt, the answer, and what the turn changed."""
    mesh, sizes = await stage.mesh(), stage.sizes
    subjects, stream = mesh.subjects, mesh.subjects.stream("journal")
    turn = Figure(name="journal bytes of a turn (5-byte prompt and answer)", unit="B")
    kept = Figure(name=f"journal bytes kept after {10 * sizes.turns:,} turns", unit="kB")
    for number in range(sizes.rounds):
        name = f"journal.{number}"
        await mesh.start_agent(name, kind="Echo")
        before = await stream_state(mesh.transport, stream)
        for _ in range(10 * sizes.turns):
            await mesh.ask(name, "hello", timeout=ASK_S)
        found = await read_all(mesh.transport, stream, subjects.journal(name))
        turns = [m for m in found if (record := decode_record(m.data)).kind == "turn" and record.snapshot is None]
        turn.add(sum(len(message.data) for message in turns) / max(len(turns), 1))
        kept.add(sum(len(message.data) for message in found) / 1e3)
        assert (await stream_state(mesh.transport, stream)).last_seq >= before.last_seq + 10 * sizes.turns
    return [turn, kept]
