"""Taking times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

WARM_UP = 20
"""Calls before those that count: the first ones open caches and paths."""

type Call = Callable[[], Awaitable[object]]


async def latencies(call: Call, count: int, *, warm_up: int = WARM_UP) -> list[float]:
    """Milliseconds of each of `count` calls, made one after another, in ascending order."""
    for _ in range(warm_up):
        await call()
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - began)
    return sorted(second * 1e3 for second in taken)


async def p50(call: Call, count: int, *, warm_up: int = WARM_UP) -> float:
    """The median of `latencies`."""
    return quantile(await latencies(call, count, warm_up=warm_up), 0.5)


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
