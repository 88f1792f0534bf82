"""From agent to agent: a hop, and a question to many workers whose answers come together."""

from __future__ import annotations

import asyncio
import json
from functools import partial

from bench.asks import BARE
from bench.clock import ASK_S, p50s, quantile, side_by_side
from bench.figures import Bound, Figure
from bench.stage import Stage

RING = 10
LAPS = 10


async def ring(stage: Stage) -> list[Figure]:
    """One prompt round a ring of ten agents: from callback to callback, commit and mail included."""
    mesh, floors, sizes = await stage.mesh(), await stage.floors(), stage.sizes
    names = [f"ring.{number}" for number in range(RING)]
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        await mesh.start_agent(name, kind="Ring", options={"first": names[0], "next": following})
    half = Figure(name=f"hop from agent to agent, ring of {RING}, p50", unit="ms", floor=BARE, bound=Bound(limit=3.5))
    most = Figure(name=f"hop from agent to agent, ring of {RING}, p99", unit="ms", floor=BARE)
    for _ in range(sizes.rounds):
        floor: list[float] = []
        hops: list[float] = []
        for _ in range(LAPS):
            floor += (await side_by_side(floors.bare, count=sizes.hops // LAPS))[0]
            await mesh.ask(names[0], f"lap {sizes.hops // LAPS}", timeout=ASK_S)
        for name in names:
            hops += json.loads((await mesh.ask(name, "report", timeout=ASK_S)).text or "")
        floor.sort()
        hops.sort()
        half.add(quantile(hops, 0.5), quantile(floor, 0.5))
        most.add(quantile(hops, 0.99), quantile(floor, 0.99))
    return [half, most]


async def fan(stage: Stage) -> list[Figure]:
    """One agent asks many workers at once and answers when the last one has."""
    mesh, floors, sizes = await stage.mesh(), await stage.floors(), stage.sizes
    await mesh.start_agent("boss", kind="Boss")
    for number in range(sizes.workers):
        await mesh.start_agent(f"boss.{number}", kind="Echo")
    figure = Figure(
        name=f"fan-out to {sizes.workers} workers and fan-in, p50", unit="ms", floor=f"{sizes.workers} bare requests at once"
    )

    async def bare() -> None:
        await asyncio.gather(*(floors.bare() for _ in range(sizes.workers)))

    calls = max(sizes.calls // 20, 3)
    for _ in range(sizes.rounds):
        floor, taken = await p50s(bare, partial(mesh.ask, "boss", str(sizes.workers), timeout=ASK_S), count=calls, warm_up=2)
        figure.add(taken, floor)
    return [figure]
