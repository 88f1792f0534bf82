"""Asks: one caller, many callers, and the same without an SDK; beside the floors and the peer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from bench import peer
from bench.clock import ASK_S, Call, quantile, rate, side_by_side
from bench.figures import Bound, Figure
from bench.stage import HERE, Stage

BARE = "bare request"
QUEUE = "JetStream queue"
FASTSTREAM = "FastStream on JetStream"


async def one_caller(stage: Stage) -> list[Figure]:
    """`ask` by one caller who waits for each answer."""
    mesh, floors, calls = await stage.mesh(), await stage.floors(), stage.sizes.calls
    await mesh.start_agent("one", kind="Echo")
    bare = {q: Figure(name=f"ask, one caller, p{q:.0%}"[:-1], unit="ms", floor=BARE) for q in (0.5, 0.99)}
    bare[0.5].bound = Bound(limit=2.5, aim=2.0)
    queue = Figure(name="ask, one caller, p50", unit="ms", floor=QUEUE)
    plain = Figure(name="ask by a plain NATS request, p50", unit="ms", floor=BARE)
    peers = Figure(name="ask, one caller, p50", unit="ms", floor=FASTSTREAM)
    async with _peer(stage) as echo:
        for _ in range(stage.sizes.rounds):
            others: list[Call] = [floors.queue, partial(floors.nc.request, "mesh.ask.one", b"hello", timeout=30)]
            if echo is not None:
                others.append(echo)
            floor, ask, *rest = await side_by_side(
                floors.bare, partial(mesh.ask, "one", "hello", timeout=ASK_S), *others, count=calls
            )
            for q, figure in bare.items():
                figure.add(quantile(ask, q), quantile(floor, q))
            queue.add(quantile(ask, 0.5), quantile(rest[0], 0.5))
            plain.add(quantile(rest[1], 0.5), quantile(floor, 0.5))
            if echo is not None:
                peers.add(quantile(ask, 0.5), quantile(rest[2], 0.5))
    return [*bare.values(), queue, *_if_measured(peers), plain]


async def many_callers(stage: Stage) -> list[Figure]:
    """Asks a second by as many callers as agents, all on one node."""
    mesh, floors, sizes = await stage.mesh(), await stage.floors(), stage.sizes
    names = [f"many.{number}" for number in range(sizes.callers)]
    for name in names:
        await mesh.start_agent(name, kind="Echo")
    asks: list[Call] = [partial(mesh.ask, name, "hello", timeout=ASK_S) for name in names]
    title = f"asks/s, {sizes.callers} callers, {sizes.callers} agents"
    bare = Figure(name=title, unit="/s", floor=BARE, bound=Bound(limit=0.25, aim=0.4, sense="at least"))
    queue = Figure(name=title, unit="/s", floor=QUEUE)
    peers = Figure(name=title, unit="/s", floor=FASTSTREAM, bound=Bound(limit=3, sense="at least"))
    async with _peer(stage) as echo:
        for _ in range(sizes.rounds):
            floor = await rate([floors.bare] * sizes.callers, 4 * sizes.each)
            mine = await rate(asks, sizes.each)
            bare.add(mine, floor)
            queue.add(mine, await rate([floors.queue] * sizes.callers, 2 * sizes.each))
            if echo is not None:
                peers.add(mine, await rate([echo] * sizes.callers, sizes.each))
    return [bare, queue, *_if_measured(peers)]


@contextlib.asynccontextmanager
async def _peer(stage: Stage) -> AsyncIterator[Call | None]:
    if not peer.installed():
        yield None
        return
    child = await stage.spawn(str(HERE / "peer.py"), stage.url)
    try:
        async with peer.caller(stage.url) as echo:
            yield echo
    finally:
        await child.end()


def _if_measured(figure: Figure) -> list[Figure]:
    return [figure] if figure.values else []
