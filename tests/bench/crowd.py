"""Does it cost an agent's callers anything how many others live on its node, or how large its state is?"""

from __future__ import annotations

from functools import partial

from agentmesh.edge.streams import ensure
from agentmesh.subjects import Subjects
from bench import sleepers
from bench.asks import BARE
from bench.clock import ASK_S, p50s
from bench.figures import Figure
from bench.stage import Stage


async def crowds(stage: Stage) -> list[Figure]:
    """One agent is asked on each of several nodes, which differ in how many other agents sleep there."""
    floors, sizes, subjects = await stage.floors(), stage.sizes, Subjects("crowd")
    like = await sleepers.pattern(stage)
    transport = await stage.transport()
    await ensure(transport, subjects, replicas=stage.replicas)
    figures = {}
    for crowd in sizes.crowds:
        node, asked = f"n{crowd}", f"asked.{crowd}"
        await sleepers.put(transport, subjects, like, node, [asked, *(f"other.{crowd}.{number}" for number in range(crowd))])
        await stage.node(subjects.root, node)
        figures[asked] = Figure(name=f"ask, {crowd:,} other agents on the node, p50", unit="ms", floor=BARE)
    mesh = await stage.client(subjects.root)
    for _ in range(sizes.rounds):
        asks = [partial(mesh.ask, asked, "hello", timeout=ASK_S) for asked in figures]
        floor, *taken = await p50s(floors.bare, *asks, count=sizes.calls)
        for figure, value in zip(figures.values(), taken, strict=True):
            figure.add(value, floor)
    return list(figures.values())


async def states(stage: Stage) -> list[Figure]:
    """One agent is asked whose state, which every turn changes, is large. The floor stores as many bytes once."""
    mesh, floors, sizes = await stage.mesh(), await stage.floors(), stage.sizes
    figures = []
    for size in sizes.ballasts:
        name, calls, body = f"state.{size}", max(sizes.calls * 1_000 // (size + 4_000), 5), b"x" * size
        await mesh.start_agent(name, kind="Echo", options={"ballast": size})
        figure = Figure(name=f"ask, state of {size // 1000:,} kB, p50", unit="ms", floor="JetStream publish of that size")
        for _ in range(sizes.rounds):
            floor, taken = await p50s(
                partial(floors.publish, body), partial(mesh.ask, name, "hello", timeout=ASK_S), count=calls, warm_up=2
            )
            figure.add(taken, floor)
        figures.append(figure)
    return figures
