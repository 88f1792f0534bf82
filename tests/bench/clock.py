"""Taking times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

WARM_UP = 20
"""Calls before those that count: the first ones open caches and paths."""
BLOCK = 25
"""Calls of one kind in a row, before the next kind has its turn."""
ASK_S = 60.0
"""Patience of an ask: one that is never answered ends the run soon enough to be looked into."""

type Call = Callable[[], Awaitable[object]]


async def side_by_side(*calls: Call, count: int, warm_up: int = WARM_UP) -> list[list[float]]:
    """Milliseconds of `count` runs of each of `calls`, each in ascending order.

    They take turns in small blocks, so that whatever else the machine does meets all of them alike.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        await _block(call, warm_up)
    for done in range(0, count, BLOCK):
        for call, times in zip(calls, taken, strict=True):
            times += await _block(call, min(BLOCK, count - done))
    return [sorted(times) for times in taken]


async def _block(call: Call, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        times.append((time.perf_counter() - began) * 1e3)
    return times


async def p50s(*calls: Call, count: int, warm_up: int = WARM_UP) -> list[float]:
    """The medians of `side_by_side`."""
    return [quantile(times, 0.5) for times in await side_by_side(*calls, count=count, warm_up=warm_up)]


async def rate(calls: list[Call], each: int) -> float:
    """Calls a second while every one of `calls` is a caller who makes `each`, one after another."""

    async def caller(call: Call) -> None:
        for _ in range(each):
            await call()

    await asyncio.gather(*(call() for call in calls))
    began = time.perf_counter()
    await asyncio.gather(*map(caller, calls))
    return len(calls) * each / (time.perf_counter() - began)


def quantile(ascending: list[float], share: float) -> float:
    """The value that `share` of `ascending` do not exceed."""
    return ascending[min(int(len(ascending) * share), len(ascending) - 1)]
