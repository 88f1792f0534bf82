"""The wires: what is cut carries nothing and ends nothing; what is healed carries on, or has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from chaos.cast import Wires
from support import eventually, run

pytestmark = pytest.mark.processes

MAIN = b'CONNECT {"name": "mesh-node-n1"}\r\n'
HEARTBEAT = b'CONNECT {"name":"mesh-heartbeat-n1"}\r\n'


class Peer:
    """A server that keeps what it hears, and a party's connection to it through wires."""

    def __init__(self) -> None:
        self.heard = b""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1024):
                self.heard += data
        writer.close()


@contextlib.asynccontextmanager
async def wired() -> AsyncIterator[
    tuple[Wires, Peer, Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]]
]:
    peer, wires = Peer(), Wires()
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    opened: list[asyncio.StreamWriter] = []
    try:
        await wires.start(["n1", "n2"], [server.sockets[0].getsockname()[1]])

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(wires.urls["n1"].rpartition(":")[2]))
            opened.append(writer)
            return reader, writer

        yield wires, peer, connect
    finally:
        for writer in (*opened, *peer.writers):
            writer.close()
        for writer in (*opened, *peer.writers):
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        server.close()
        await wires.close()


def test_what_is_cut_arrives_late_or_never() -> None:
    async def main() -> None:
        async with wired() as (wires, peer, connect):
            reader, writer = await connect()
            writer.write(MAIN)
            await eventually(lambda: peer.heard == MAIN)
            await wires.cut("n1", "out", "all")
            writer.write(b"held up")
            peer.writers[0].write(b"still heard")
            assert await reader.readexactly(11) == b"still heard"
            assert peer.heard == MAIN
            await wires.heal("n1", late=True)
            await eventually(lambda: peer.heard == MAIN + b"held up")
            await wires.cut("n1", "both", "all")
            writer.write(b"never")
            await wires.heal("n1", late=False)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            assert peer.heard == MAIN + b"held up"

    run(main())


@pytest.mark.parametrize(("part", "cut", "other"), [("heartbeat", HEARTBEAT, MAIN), ("main", MAIN, HEARTBEAT)])
def test_a_part_is_cut_and_the_other_goes_on(part: str, cut: bytes, other: bytes) -> None:
    async def main() -> None:
        async with wired() as (wires, peer, connect):
            (_, held), (free, sender) = await connect(), await connect()
            held.write(cut)
            sender.write(other)
            await eventually(lambda: len(peer.heard) == len(cut + other))
            await wires.cut("n1", "both", part)
            held.write(b"<held>")
            sender.write(b"<free>")
            await eventually(lambda: b"<free>" in peer.heard)
            for writer in peer.writers:
                writer.write(b"answer")
            assert await free.readexactly(6) == b"answer"
            assert b"<held>" not in peer.heard
            await wires.heal("n1", late=True)
            await eventually(lambda: b"<held>" in peer.heard)

    run(main())


def test_who_connects_while_cut_off_hears_nothing_and_is_not_refused() -> None:
    async def main() -> None:
        async with wired() as (wires, peer, connect):
            await wires.cut("n2", "both", "all")
            await wires.cut("n1", "both", "all")
            _, writer = await connect()
            writer.write(MAIN)
            await wires.heal("n2", late=True)  # another's: not mine
            assert not peer.writers
            await wires.heal("n1", late=True)
            await eventually(lambda: peer.heard == MAIN)

    run(main())
