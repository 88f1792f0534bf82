"""The peer: FastStream's echo over JetStream, as its documentation writes it.

The subscriber runs in a process of its own: `python peer.py URL`. Needs the extra `bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

BODY = "hello"
STREAM = "PEER"
WAIT_S = 30.0


def installed() -> bool:
    """Whether FastStream with its NATS part is here."""
    return importlib.util.find_spec("faststream") is not None


@contextlib.asynccontextmanager
async def caller(url: str) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """One request to the echo, kept in JetStream on its way."""
    from faststream.nats import NatsBroker

    async with NatsBroker(url, logger=None) as broker:

        async def ask() -> None:
            reply = await broker.request(BODY, "peer.echo", stream=STREAM, timeout=WAIT_S)
            assert reply.body.decode() == BODY

        yield ask


async def serve(url: str) -> None:
    """The subscriber, for ever."""
    from faststream.nats import NatsBroker

    async def echo(body: str) -> str:
        return body

    broker = NatsBroker(url, logger=None)
    # Called and not written as a decorator, so that types hold without the extra too.
    broker.subscriber("peer.echo", stream=STREAM, durable="echo")(echo)
    await broker.start()
    print("peer ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1]))
