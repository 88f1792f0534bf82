"""The death of a node, as one figure of the table. `failover.py` has it and the other faults at length."""

from __future__ import annotations

import time

from bench.clock import quantile
from bench.failover import PATIENCE_S, Waiting, audit, each, kill, stage
from bench.figures import Bound, Figure
from bench.stage import Sizes


async def killed(sizes: Sizes) -> list[Figure]:
    """kill -9 of one of three nodes: from the kill to the answers of its agents that were in a turn.

    Raises:
        RuntimeError: a prompt was lost, took effect twice or got an error. That would be no matter of speed.
    """
    agents, busy = sizes.victims
    half, last = (
        Figure(name=f"node killed, {agents:,} agents there, {busy} in a turn: {which} answer", unit="ms", bound=bound)
        for which, bound in (("middle", None), ("last", Bound(limit=1000, of="value")))
    )
    for _ in range(max(sizes.rounds // 2, 1)):
        taken = await _kill_one(3 * agents, busy)
        half.add(quantile(taken, 0.5))
        last.add(taken[-1])
    return [half, last]


async def _kill_one(agents: int, busy: int) -> list[float]:
    """Milliseconds from the kill to each answer, in ascending order."""
    async with stage(clustered=False) as it:
        names = [f"w{number}" for number in range(agents)]
        await each(names, lambda agent: it.mesh.start_agent(agent, kind="Worker", timeout=PATIENCE_S))
        on_victim = [entry.name for entry in await it.mesh.list_agents() if entry.node == "n1"][:busy]
        waiting = Waiting(it.mesh, on_victim)
        await waiting.begin()
        began = time.monotonic()
        await kill(it)
        await waiting.end()
        lost, doubled = await audit(it.mesh, names, set(on_victim))
        if lost or doubled or waiting.errors:
            raise RuntimeError(f"{lost} prompts lost, {doubled} took effect twice, errors: {waiting.errors}")
        return sorted((answered - began) * 1e3 for answered in waiting.answered.values())
