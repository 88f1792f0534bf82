"""Three servers, three replicas of every stream: what an ask costs beside one publish that a majority has stored.

Which server leads which stream, and which one each process is connected to, is left to chance, and a write to a stream that is
led elsewhere takes two more trips. So each round has a cluster of its own: the spread shows what that chance is worth.
"""

from __future__ import annotations

from functools import partial

from bench.asks import BY_HAND, QUEUE
from bench.clock import ASK_S, Call, quantile, rate, side_by_side
from bench.figures import Bound, Figure
from bench.stage import Sizes, Stage, cluster

PUBLISH = "replicated publish"
NAME = "three servers: ask, one caller, p50"


class _Figures:
    """What is measured, over clusters."""

    def __init__(self, callers: int) -> None:
        self.half = Figure(name=NAME, unit="ms", floor=PUBLISH, bound=Bound(limit=3))
        self.most = Figure(name="three servers: ask, one caller, p99", unit="ms", floor=PUBLISH)
        self.by_hand = Figure(name=NAME, unit="ms", floor=BY_HAND)
        self.queue = Figure(name=NAME, unit="ms", floor=QUEUE)
        self.protocol = Figure(name=f"three servers: {BY_HAND}, one caller, p50", unit="ms", floor=PUBLISH)
        self.many = Figure(name=f"three servers: asks/s, {callers} callers", unit="/s", floor=PUBLISH)

    async def one_caller(self, stage: Stage) -> None:
        """`ask` by one caller who waits for each answer."""
        mesh, floors, hand = await stage.mesh(), await stage.floors(), await stage.by_hand()
        await mesh.start_agent("one", kind="Echo")
        floor, ask, written, queued = await side_by_side(
            floors.publish,
            partial(mesh.ask, "one", "hello", timeout=ASK_S),
            partial(hand.ask, "one"),
            floors.queue,
            count=stage.sizes.calls,
        )
        self.half.add(quantile(ask, 0.5), quantile(floor, 0.5))
        self.most.add(quantile(ask, 0.99), quantile(floor, 0.99))
        self.by_hand.add(quantile(ask, 0.5), quantile(written, 0.5))
        self.queue.add(quantile(ask, 0.5), quantile(queued, 0.5))
        self.protocol.add(quantile(written, 0.5), quantile(floor, 0.5))

    async def many_callers(self, stage: Stage) -> None:
        """Asks a second by as many callers as agents."""
        mesh, floors, sizes = await stage.mesh(), await stage.floors(), stage.sizes
        names = [f"many.{number}" for number in range(sizes.callers)]
        for name in names:
            await mesh.start_agent(name, kind="Echo")
        asks: list[Call] = [partial(mesh.ask, name, "hello", timeout=ASK_S) for name in names]
        floor = await rate([floors.publish] * sizes.callers, 2 * sizes.each)
        self.many.add(await rate(asks, sizes.each), floor)


async def replicated(sizes: Sizes) -> list[Figure]:
    """The figures of `asks`, each round on a new cluster."""
    figures = _Figures(sizes.callers)
    for _ in range(sizes.rounds):
        async with cluster(sizes) as stage:
            await figures.one_caller(stage)
            await figures.many_callers(stage)
    return [figures.half, figures.most, figures.by_hand, figures.queue, figures.protocol, figures.many]
