"""The beginning of a life, and an agent that is taken up again from its journal."""

from __future__ import annotations

import asyncio
import itertools
import time
from functools import partial

from agentmesh.edge.transport import Message
from agentmesh.subjects import Subjects
from agentmesh_client import Mesh
from bench.clock import ASK_S, p50s, quantile
from bench.figures import Bound, Figure
from bench.stage import Stage

REST_S = 0.05
"""Idle time after which this benchmark's node lets an agent go; 300 s by default."""
ASLEEP_S = 0.3
TOLD_S = 0.05
"""Within so much a node has told what happened: it gathers facts for some milliseconds."""
WAIT_S = 30.0


async def start(stage: Stage) -> list[Figure]:
    """`start_agent` until the agent runs: the spec is written, the leader places it, the node takes it up and tells."""
    mesh, floors, sizes = await stage.mesh(), await stage.floors(), stage.sizes
    numbers = itertools.count()
    figure = Figure(
        name="start_agent until it runs, p50", unit="ms", floor="JetStream publish", bound=Bound(limit=10, of="value")
    )
    for _ in range(sizes.rounds):
        floor, taken = await p50s(
            floors.publish, lambda: mesh.start_agent(f"new.{next(numbers)}", kind="Echo"), count=sizes.starts, warm_up=1
        )
        figure.add(taken, floor)
    return [figure]


async def cold(stage: Stage) -> list[Figure]:
    """An ask to an agent that sleeps: its node reads its journal, takes it up by a record, and runs the turn."""
    sizes, root = stage.sizes, "cold"
    mesh = await stage.client(root)
    await stage.supervisor(root)
    await stage.node(root, "n1", rest_s=REST_S, passivate_s=REST_S)
    figure = Figure(name=f"ask to a sleeping agent, journal of {sizes.turns} turns", unit="ms", floor="ask to it awake")
    for number in range(sizes.rounds):
        name = f"cold.{number}"
        await mesh.start_agent(name, kind="Echo")
        watched = await _Activations.of(mesh, name)
        (awake,) = await p50s(partial(mesh.ask, name, "hello", timeout=ASK_S), count=sizes.turns, warm_up=0)
        taken = sorted([await _ask_asleep(mesh, name, watched) for _ in range(sizes.colds)])
        figure.add(quantile(taken, 0.5), awake)
    return [figure]


class _Activations:
    """Counts how often nodes have taken an agent up."""

    def __init__(self) -> None:
        self.count = 0

    @staticmethod
    async def of(mesh: Mesh, agent: str) -> _Activations:
        made = _Activations()
        await mesh.transport.subscribe(Subjects(mesh.subjects.root).event(agent, "activated"), made._on_event)
        await mesh.transport.flush()
        return made

    def _on_event(self, message: Message) -> None:
        self.count += 1


async def _ask_asleep(mesh: Mesh, agent: str, watched: _Activations) -> float:
    """Milliseconds of an ask that was the agent's waking. Nothing tells that it sleeps: one that did not is asked again."""
    async with asyncio.timeout(WAIT_S):
        while True:
            await asyncio.sleep(ASLEEP_S)
            before, began = watched.count, time.perf_counter()
            await mesh.ask(agent, "hello", timeout=ASK_S)
            taken = time.perf_counter() - began
            await asyncio.sleep(TOLD_S)
            if watched.count > before:
                return taken * 1e3
