"""Trying again through short outages: a stream that elects a leader, a server that restarts, an owner in takeover."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentmesh.edge.failures import PASSING_ERRORS
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.errors import MeshError, Unavailable

ABSENT_S = 2.0
"""How long a server must say that it has no such mesh before that is believed: a server that has just started still learns of
its streams."""


async def patiently[T](call: Callable[[], Awaitable[T]], timeout: float) -> T:
    """The result of `call`, tried again while the mesh is unavailable, for `timeout` seconds at most.

    For calls that may be repeated when the fate of one is unknown: reads, and compare-and-set that reads first.

    Raises:
        Unavailable: the mesh was unavailable to the end.
        MeshError: `call` raised another error.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    last: Exception = Unavailable(f"no NATS server has answered within {timeout:g} s; try again")
    try:
        # A server that answers no requests (it hangs, or is cut off) must not cost more time than the caller grants.
        async with asyncio.timeout(timeout) as patience:
            for pause in CALL_RETRY:
                try:
                    return await call()
                except PASSING_ERRORS as error:
                    last = error
                    if says_absent(error) and loop.time() + pause >= began + ABSENT_S:
                        break
                await asyncio.sleep(pause)
    except TimeoutError:
        if not patience.expired():
            raise
    raise as_unavailable(last) from last


def says_absent(error: Exception) -> bool:
    """Whether the server said that there is no such mesh."""
    return isinstance(error, Unavailable) and "missing" in error.details


def as_unavailable(error: Exception) -> MeshError:
    """`error` as one of the mesh's errors."""
    if isinstance(error, MeshError):
        return error
    return Unavailable("the server did not confirm in time; try again")
