"""Reading what a stream holds, against a real server."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agentmesh.edge.publish import store
from agentmesh.edge.read import get_last, get_last_direct, get_last_many, get_next, read, read_all
from agentmesh.edge.transport import Message
from agentmesh.errors import BadRequest, Unavailable
from agentmesh.subjects import Subjects
from mesh.edge.streams_made import make_stream
from support import Faulty, Server, connected, eventually, run


def test_reading_pages_in_order(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            for n in range(10):
                await store(t, f"{root}.{n % 2}.x", str(n).encode(), headers={"N": str(n)})
            page = await read(t, stream, f"{root}.*.x", from_seq=1, batch=4)
            assert [m.seq for m in page.messages] == [1, 2, 3, 4]
            assert page.pending == 6
            assert page.messages[3].headers["N"] == "3"
            page = await read(t, stream, f"{root}.1.x", from_seq=5, batch=4)
            assert [(m.seq, m.subject) for m in page.messages] == [(s, f"{root}.1.x") for s in (6, 8, 10)]
            assert page.pending == 0
            assert await read(t, stream, f"{root}.*.x", from_seq=11) == ([], 0)
            assert await read(t, stream, f"{root}.none", from_seq=1) == ([], 0)
            everything = await read_all(t, stream, f"{root}.>")
            assert [m.seq for m in everything] == list(range(1, 11))

    run(main())


def test_reading_begins_at_a_time(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            for n in range(6):
                await store(t, f"{root}.{n % 2}.x", str(n).encode())
            times = [message.time for message in await read_all(t, stream, f"{root}.>")]
            page = await read(t, stream, f"{root}.*.x", from_seq=1, since=times[2], batch=3)
            assert page.messages[0].time >= times[2]
            assert [m.seq for m in page.messages] == [s for s in range(1, 7) if times[s - 1] >= times[2]][:3]
            assert await read(t, stream, f"{root}.*.x", from_seq=1, since=times[-1] + 3600) == ([], 0)

    run(main())


def test_a_page_is_bounded_in_bytes_but_never_empty(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            for _ in range(4):
                await store(t, f"{root}.a", b"x" * 1000)
            page = await read(t, stream, f"{root}.a", from_seq=1, max_bytes=10)
            assert (len(page.messages), page.pending) == (1, 3)
            page = await read(t, stream, f"{root}.a", from_seq=1, max_bytes=2500)
            assert (len(page.messages), page.pending) == (3, 1)  # the one that fills it is the last

    run(main())


def test_a_hole_in_a_page_is_noticed(server: Server, subjects: Subjects) -> None:
    class Lossy(Faulty):
        lost = 0

        async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
            messages = await super().request_many(subject, data, timeout=timeout)
            del messages[self.lost]
            return messages

    async def main() -> None:
        async with connected(server.url) as inner:
            t = Lossy(inner)
            stream, root = await make_stream(t, subjects)
            for _ in range(4):
                await store(t, f"{root}.a")
            for lost in range(4):
                t.lost = lost
                with pytest.raises(Unavailable, match="lost on the way"):
                    await read(t, stream, f"{root}.a", from_seq=1)

    run(main())


def test_a_stranger_cannot_forge_what_the_server_says(server: Server, subjects: Subjects) -> None:
    """Any publisher chooses headers, and even the status line. Neither ends a read early nor changes a sequence."""

    async def main() -> None:
        async with connected(server.url) as t:
            live: list[Message] = []
            stream, root = await make_stream(
                t, subjects, republish={"src": f"{subjects.root}.>", "dest": f"live.{subjects.root}.>"}
            )
            await t.subscribe(f"live.{root}.>", live.append)
            await t.flush()
            heads = (
                b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\n\r\n",
                b"NATS/1.0 503\r\n\r\n",
                b"NATS/1.0\r\nNats-Sequence: 99\r\nNats-Subject: forged\r\nNats-Last-Sequence: 98\r\n\r\n",
            )
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
                raw.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')
                for head in heads:
                    raw.sendall(b"HPUB %s.a %d %d\r\n%bhi\r\n" % (root.encode(), len(head), len(head) + 2, head))
                raw.sendall(b"PING\r\n")
                await eventually(lambda: len(live) == 3, what="the forged messages")
            page = await read(t, stream, f"{root}.a", from_seq=1)
            assert [(m.seq, m.subject, m.data) for m in page.messages] == [(n, f"{root}.a", b"hi") for n in (1, 2, 3)]
            assert [(m.headers["Nats-Sequence"], m.headers["Nats-Subject"]) for m in live] == [
                (str(n), f"{root}.a") for n in (1, 2, 3)
            ]
            assert [m.headers["Nats-Last-Sequence"] for m in live] == ["0", "1", "2"]
            last = await get_last_direct(t, stream, f"{root}.a")
            assert last is not None
            assert (last.seq, last.previous) == (3, 0)

    run(main())


def test_last_messages(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            assert await get_last(t, stream, f"{root}.a") is None
            assert await get_last_direct(t, stream, f"{root}.a") is None
            assert await get_last_many(t, stream, [f"{root}.a"]) == ({}, 0)
            assert await get_last_many(t, stream, []) == ({}, 0)
            for n in range(6):
                await store(t, f"{root}.{'ab'[n % 2]}", str(n).encode())
            direct = await get_last_direct(t, stream, f"{root}.a")
            leader = await get_last(t, stream, f"{root}.a")
            assert direct is not None
            assert leader is not None
            assert direct[:3] == leader[:3] == (f"{root}.a", 5, b"4")
            assert abs(direct.time - leader.time) < 1e-3
            found, up_to = await get_last_many(t, stream, [f"{root}.a", f"{root}.b", f"{root}.c"])
            assert {subject: m.data for subject, m in found.items()} == {f"{root}.a": b"4", f"{root}.b": b"5"}
            assert up_to == 6
            assert await get_next(t, stream, f"{root}.>", 7) is None
            beyond = await get_next(t, stream, f"{root}.a", 2)
            assert beyond is not None
            assert beyond.seq == 3

    run(main())


def test_last_of_thousands_of_subjects(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            stream, root = await make_stream(t, subjects)
            agents = [f"a{n}" for n in range(2500)]
            for start in range(0, 2500, 250):
                await asyncio.gather(*(store(t, f"{root}.inbox.{a}") for a in agents[start : start + 250]))
            t.requests.clear()
            found, up_to = await get_last_many(t, stream, [f"{root}.inbox.{a}" for a in agents])
            assert (len(found), up_to, len(t.requests)) == (2500, 2500, 3)
            found, _ = await get_last_many(t, stream, [f"{root}.*.{a}" for a in agents])
            assert len(found) == 2500
            # Patterns that match more than they are taken for: the server says so, and the request is cut in two.
            found, _ = await get_last_many(t, stream, [f"{root}.inbox.{a}" for a in agents[:600]] + [f"{root}.none.*"])
            assert len(found) == 600
            with pytest.raises(BadRequest):
                await get_last_many(t, stream, [f"{root}.>"])

    run(main())
