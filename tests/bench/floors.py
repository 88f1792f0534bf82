"""What the mesh is measured against, as small as nats-py allows: a bare request, and a queue that loses nothing.

The other side runs in a process of its own: `python floors.py URL REPLICAS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

BODY = b"hello"
STREAM = "FLOOR"
BATCH = 64
WAIT_S = 30.0


class Floors:
    """The caller's side."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self._js = nc.jetstream()
        self._inbox = nc.new_inbox()
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    async def start(self) -> None:
        """Listen for the queue's replies."""
        await self.nc.subscribe(f"{self._inbox}.*", cb=self._on_reply)

    async def bare(self) -> None:
        """NATS request-reply: nothing is stored."""
        await self.nc.request("floor.echo", BODY, timeout=WAIT_S)

    async def publish(self, body: bytes = BODY) -> None:
        """One JetStream publish, acknowledged when it is stored."""
        await self._js.publish("floor.stored", body, timeout=WAIT_S)

    async def queue(self) -> None:
        """JetStream publish, pull consumer, reply and ack: what most would build."""
        inbox = f"{self._inbox}.{next(self._numbers)}"
        reply = self._waiting[inbox] = asyncio.get_running_loop().create_future()
        await self._js.publish("floor.queue", BODY, headers={"Reply-To": inbox}, timeout=WAIT_S)
        await asyncio.wait_for(reply, WAIT_S)

    async def _on_reply(self, message: Msg) -> None:
        self._waiting.pop(message.subject).set_result(message.data)


async def _echo(message: Msg) -> None:
    await message.respond(message.data)


async def serve(url: str, replicas: int) -> None:
    """The other side, for ever."""
    nc = await nats.connect(url.split(","))
    js = nc.jetstream()
    await js.add_stream(StreamConfig(STREAM, subjects=["floor.queue", "floor.stored"], num_replicas=replicas))
    await nc.subscribe("floor.echo", cb=_echo)
    consumer = await js.pull_subscribe("floor.queue", durable="floor", stream=STREAM)
    await nc.flush()
    print("floors ready", flush=True)
    while True:
        with contextlib.suppress(TimeoutError):
            for message in await consumer.fetch(BATCH, timeout=WAIT_S):
                assert message.headers
                await nc.publish(message.headers["Reply-To"], message.data)
                await message.ack()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
