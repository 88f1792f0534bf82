"""Trying again through short outages: a stream that elects a leader, a server that restarts, an owner in takeover."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from agentmesh.edge.failures import PASSING_ERRORS, ApiError
from agentmesh.edge.registry import Registry
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.errors import MeshError, NotFound, NotPermitted, StreamMissing, Unavailable
from agentmesh.subjects import EPOCH_KEY

ABSENT_S = 1.0
"""How long a server of a cluster must say that it has no such mesh before that is believed: one that has just started still
learns of its streams."""


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
                    if is_absent(error, loop.time() + pause - began):
                        break
                await asyncio.sleep(pause)
    except TimeoutError:
        if not patience.expired():
            raise
    raise as_unavailable(last) from last


async def or_absent[T](call: Callable[[], Awaitable[T]], registry: Registry) -> T:
    """The result of `call`. If nobody answers it, that may be because there is no such mesh, which then is the error: a read of a
    stream's replicas cannot tell the two apart, nor can a request to a process.

    Raises:
        StreamMissing: there is no such mesh.
        MeshError: as `call`.
    """
    try:
        return await call()
    except (Unavailable, NotFound, ApiError):
        with suppress(NotPermitted):
            await registry.get(EPOCH_KEY)
        raise


def is_absent(error: Exception, said_for_s: float) -> bool:
    """Whether the server says that there is no such mesh, and has said so for long enough to be believed. A lone server knows its
    streams once it takes connections."""
    return isinstance(error, StreamMissing) and (said_for_s >= ABSENT_S or not error.details.get("clustered", True))


def as_unavailable(error: Exception) -> MeshError:
    """`error` as one of the mesh's errors."""
    if isinstance(error, MeshError):
        return error
    return Unavailable("the server did not confirm in time; try again")
