"""Three servers, three replicas of every stream: what an ask costs beside one publish that a majority has stored."""

from __future__ import annotations

from functools import partial

from bench.asks import BY_HAND, QUEUE
from bench.clock import ASK_S, Call, quantile, rate, side_by_side
from bench.figures import Bound, Figure
from bench.stage import Sizes, Stage, cluster

PUBLISH = "replicated publish"


async def replicated(sizes: Sizes) -> list[Figure]:
    """The figures of `asks`, on a cluster."""
    async with cluster(sizes) as stage:
        return [*await _one_caller(stage), *await _many_callers(stage)]


async def _one_caller(stage: Stage) -> list[Figure]:
    mesh, floors, hand = await stage.mesh(), await stage.floors(), await stage.by_hand()
    await mesh.start_agent("one", kind="Echo")
    name = "three servers: ask, one caller, p50"
    half = Figure(name=name, unit="ms", floor=PUBLISH, bound=Bound(limit=3))
    most = Figure(name="three servers: ask, one caller, p99", unit="ms", floor=PUBLISH)
    by_hand = Figure(name=name, unit="ms", floor=BY_HAND)
    queue = Figure(name=name, unit="ms", floor=QUEUE)
    protocol = Figure(name=f"three servers: {BY_HAND}, one caller, p50", unit="ms", floor=PUBLISH)
    for _ in range(stage.sizes.rounds):
        floor, ask, written, queued = await side_by_side(
            floors.publish,
            partial(mesh.ask, "one", "hello", timeout=ASK_S),
            partial(hand.ask, "one"),
            floors.queue,
            count=stage.sizes.calls,
        )
        half.add(quantile(ask, 0.5), quantile(floor, 0.5))
        most.add(quantile(ask, 0.99), quantile(floor, 0.99))
        by_hand.add(quantile(ask, 0.5), quantile(written, 0.5))
        queue.add(quantile(ask, 0.5), quantile(queued, 0.5))
        protocol.add(quantile(written, 0.5), quantile(floor, 0.5))
    return [half, most, by_hand, queue, protocol]


async def _many_callers(stage: Stage) -> list[Figure]:
    mesh, floors, sizes = await stage.mesh(), await stage.floors(), stage.sizes
    names = [f"many.{number}" for number in range(sizes.callers)]
    for name in names:
        await mesh.start_agent(name, kind="Echo")
    asks: list[Call] = [partial(mesh.ask, name, "hello", timeout=ASK_S) for name in names]
    figure = Figure(name=f"three servers: asks/s, {sizes.callers} callers", unit="/s", floor=PUBLISH)
    for _ in range(sizes.rounds):
        floor = await rate([floors.publish] * sizes.callers, 2 * sizes.each)
        figure.add(await rate(asks, sizes.each), floor)
    return [figure]
