"""Asks: one caller, many callers, and the same without an SDK; beside the floors, the protocol alone and the peer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from bench import peer
from bench.clock import ASK_S, Call, quantile, rate, side_by_side
from bench.figures import Bound, Figure
from bench.stage import HERE, Stage

BARE = "bare request"
BY_HAND = "the mesh's writes by hand"
QUEUE = "JetStream queue"
FASTSTREAM = "FastStream on JetStream"


async def one_caller(stage: Stage) -> list[Figure]:
    """`ask` by one caller who waits for each answer."""
    mesh, floors, hand = await stage.mesh(), await stage.floors(), await stage.by_hand()
    await mesh.start_agent("one", kind="Echo")
    name = "ask, one caller, p50"
    half = Figure(name=name, unit="ms", floor=BARE, bound=Bound(limit=2.5, aim=2.0))
    most = Figure(name="ask, one caller, p99", unit="ms", floor=BARE)
    others = [Figure(name=name, unit="ms", floor=floor) for floor in (BY_HAND, QUEUE, FASTSTREAM)]
    plain = Figure(name="ask by a plain NATS request, p50", unit="ms", floor=BARE)
    protocol = Figure(name=f"{BY_HAND}, one caller, p50", unit="ms", floor=BARE)
    async with _peer(stage) as echo:
        calls: list[Call] = [
            floors.bare,
            partial(mesh.ask, "one", "hello", timeout=ASK_S),
            partial(floors.nc.request, "mesh.ask.one", b"hello", timeout=30),
            partial(hand.ask, "one"),
            floors.queue,
            *([echo] if echo is not None else []),
        ]
        for _ in range(stage.sizes.rounds):
            floor, ask, by_request, *rest = await side_by_side(*calls, count=stage.sizes.calls)
            half.add(quantile(ask, 0.5), quantile(floor, 0.5))
            most.add(quantile(ask, 0.99), quantile(floor, 0.99))
            plain.add(quantile(by_request, 0.5), quantile(floor, 0.5))
            protocol.add(quantile(rest[0], 0.5), quantile(floor, 0.5))
            for figure, beside in zip(others, rest, strict=False):
                figure.add(quantile(ask, 0.5), quantile(beside, 0.5))
    return [half, most, *_measured(others), plain, protocol]


async def many_callers(stage: Stage) -> list[Figure]:
    """Asks a second by as many callers as agents, all on one node."""
    mesh, floors, hand, sizes = await stage.mesh(), await stage.floors(), await stage.by_hand(), stage.sizes
    names = [f"many.{number}" for number in range(sizes.callers)]
    for name in names:
        await mesh.start_agent(name, kind="Echo")
    asks: list[Call] = [partial(mesh.ask, name, "hello", timeout=ASK_S) for name in names]
    by_hand: list[Call] = [partial(hand.ask, f"many{number}") for number in range(sizes.callers)]
    title = f"asks/s, {sizes.callers} callers, {sizes.callers} agents"
    bare = Figure(name=title, unit="/s", floor=BARE, bound=Bound(limit=0.25, aim=0.4, sense="at least"))
    beside = [Figure(name=title, unit="/s", floor=floor) for floor in (BY_HAND, QUEUE)]
    peers = Figure(name=title, unit="/s", floor=FASTSTREAM, bound=Bound(limit=3, sense="at least"))
    protocol = [Figure(name=f"{BY_HAND}, {sizes.callers} callers", unit="/s", floor=floor) for floor in (BARE, FASTSTREAM)]
    async with _peer(stage) as echo:
        for _ in range(sizes.rounds):
            floor = await rate([floors.bare] * sizes.callers, 4 * sizes.each)
            mine = await rate(asks, sizes.each)
            written = await rate(by_hand, 2 * sizes.each)
            bare.add(mine, floor)
            protocol[0].add(written, floor)
            beside[0].add(mine, written)
            beside[1].add(mine, await rate([floors.queue] * sizes.callers, 2 * sizes.each))
            if echo is not None:
                answered = await rate([echo] * sizes.callers, sizes.each)
                peers.add(mine, answered)
                protocol[1].add(written, answered)
    return [bare, *beside, *_measured([peers, *protocol])]


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


def _measured(figures: list[Figure]) -> list[Figure]:
    """Those that have values: all, or all but the peer's."""
    return [figure for figure in figures if figure.values]
