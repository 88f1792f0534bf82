"""Waiting through what passes: a stream that elects a leader, a server that restarts, an owner in takeover."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from agentmesh.edge.jetstream import Uncertain
from agentmesh.errors import MeshError, Unavailable

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0


def pauses() -> Iterator[float]:
    """Growing pauses between tries, in seconds, without end."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE_S)


async def patiently[T](call: Callable[[], Awaitable[T]], timeout: float) -> T:
    """The result of `call`, tried again while the mesh is unavailable, for `timeout` seconds at most.

    For calls that may be repeated after an uncertain one (reads, compare-and-set that looks at what is there).

    Raises:
        Unavailable: it was so to the end.
        MeshError: `call` raised another one.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    for pause in pauses():
        try:
            return await call()
        except (Unavailable, Uncertain) as error:
            if loop.time() + pause >= end:
                raise as_unavailable(error) from error
        await asyncio.sleep(pause)
    raise AssertionError("pauses() never ends")


def as_unavailable(error: Exception) -> MeshError:
    """`error` as a typed one."""
    if isinstance(error, MeshError):
        return error
    return Unavailable("the server did not confirm in time; try again")
