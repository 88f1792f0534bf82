"""Publishes with acknowledgement, reads and purges, against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from agentmesh.edge import jetstream as js
from agentmesh.edge.transport import Message
from agentmesh.errors import BadRequest, MailboxFull, MeshError, TooLarge, Unavailable
from agentmesh.subjects import Subjects
from support import Cluster, Faulty, Server, connected, cut_off, eventually, never_sent, nobody, replaced, reply_lost, run


async def _stream(t: Any, subjects: Subjects, **config: Any) -> tuple[str, str]:
    """A stream of its own: its name, and the head of its subjects."""
    name = subjects.root.upper()
    body = {"name": name, "subjects": [f"{subjects.root}.>"], "storage": "memory", "allow_direct": True, **config}
    await js.api(t, f"STREAM.CREATE.{name}", body)
    return name, subjects.root


# --- store --------------------------------------------------------------------------------------------------------
def test_store_acknowledges_with_the_sequence(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects)
            assert await js.store(t, f"{root}.a", b"1") == (1, False)
            assert await js.store(t, f"{root}.a", b"2", headers={"Mesh-Tag": "x"}, msg_id="id") == (2, False)
            assert await js.store(t, f"{root}.a", b"2", msg_id="id") == (2, True)
            last = await js.get_last(t, stream, f"{root}.a")
            assert last is not None
            assert (last.seq, last.data, last.headers["Mesh-Tag"]) == (2, b"2", "x")
            assert abs(last.time - time.time()) < 60

    run(main())


def test_compare_and_set(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects)
            first = await js.store(t, f"{root}.a", b"1", expected=0)
            await js.store(t, f"{root}.b", b"other")
            second = await js.store(t, f"{root}.a", b"2", expected=first.seq)
            for wrong in (0, first.seq, second.seq + 1):
                with pytest.raises(js.WrongLastSequence) as caught:
                    await js.store(t, f"{root}.a", b"3", expected=wrong)
                assert caught.value.last == second.seq
            with pytest.raises(js.WrongLastSequence) as caught:
                await js.store(t, f"{root}.c", b"3", expected=1)
            assert caught.value.last == 0
            assert (await js.stream_state(t, stream)).last_seq == 3

    run(main())


def test_of_many_writers_with_one_expectation_one_wins(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as a, connected(server.url) as b:
            _, root = await _stream(a, subjects)
            results = await asyncio.gather(
                *(js.store(t, f"{root}.a", b"x", expected=0) for t in (a, b) * 10), return_exceptions=True
            )
            assert sum(isinstance(result, js.Stored) for result in results) == 1
            assert sum(isinstance(result, js.WrongLastSequence) for result in results) == 19

    run(main())


@pytest.mark.case(208)
def test_a_full_subject_refuses_and_purging_frees_room(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(
                t, subjects, discard="new", discard_new_per_subject=True, max_msgs_per_subject=2, max_msgs=-1
            )
            for _ in range(2):
                await js.store(t, f"{root}.a", b"x")
            with pytest.raises(MailboxFull):
                await js.store(t, f"{root}.a", b"x")
            await js.store(t, f"{root}.b", b"another subject has room")
            assert await js.purge(t, stream, f"{root}.a", below=2) == 1
            assert await js.purge(t, stream, f"{root}.a", below=2) == 0
            assert (await js.store(t, f"{root}.a", b"x")).seq == 4

    run(main())


def test_purge_below_the_first_sequence_removes_nothing(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects)
            await js.store(t, f"{root}.a")
            assert await js.purge(t, stream, f"{root}.a", below=0) == 0
            assert await js.purge(t, stream, f"{root}.a", below=1) == 0
            assert await js.purge(t, stream, f"{root}.a") == 1

    run(main())


@pytest.mark.case(244)
def test_too_large_is_told_by_the_client_and_by_the_stream(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            _, root = await _stream(t, subjects, max_msg_size=100)
            for size in (101, t.max_payload + 1):
                with pytest.raises(TooLarge):
                    await js.store(t, f"{root}.a", b"x" * size)
            with pytest.raises(TooLarge):
                await js.store(t, f"{root}.a", b"", headers={"A": "x" * 70_000})
            await js.store(t, f"{root}.a", b"x" * 50)

    run(main())


def test_other_refusals_are_bad_requests(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            _, root = await _stream(t, subjects)
            with pytest.raises(BadRequest):  # the stream allows no TTL
                await js.store(t, f"{root}.a", b"x", ttl_s=5)
            with pytest.raises(BadRequest):  # nor rollups
                await js.store(t, f"{root}.a", b"x", rollup=True)

    run(main())


def test_ttl_and_rollup(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects, allow_msg_ttl=True, allow_rollup_hdrs=True)
            for body in (b"1", b"2"):
                await js.store(t, f"{root}.a", body)
            await js.store(t, f"{root}.b", b"stays")
            await js.store(t, f"{root}.a", b"all", rollup=True)
            page = await js.read(t, stream, f"{root}.>", from_seq=1)
            assert [message.data for message in page.messages] == [b"stays", b"all"]
            await js.store(t, f"{root}.c", b"short", ttl_s=1)

            async def gone() -> bool:
                return await js.get_last(t, stream, f"{root}.c") is None

            await eventually(gone, what="the expiry")

    run(main())


def test_no_stream_is_unavailable(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(Unavailable):
                await js.store(t, subjects.inbox("nobody"), b"x")
            with pytest.raises(Unavailable):
                await js.get_last_direct(t, "NONE", "a")
            with pytest.raises(Unavailable):
                await js.get_last(t, "NONE", "a")
            with pytest.raises(Unavailable):
                await js.read(t, "NONE", "a", from_seq=1)
            with pytest.raises(js.ApiError) as caught:
                await js.stream_state(t, "NONE")
            assert caught.value.err_code == 10059

    run(main())


def test_what_is_known_of_a_publish_that_went_wrong(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            stream, root = await _stream(t, subjects)
            for fault in (reply_lost, cut_off, never_sent, replaced(b"no json"), replaced(b"{}")):
                t.inject(f"{root}.a", fault)
                with pytest.raises(js.Uncertain):
                    await js.store(t, f"{root}.a", b"x")
            t.inject(f"{root}.a", nobody)
            with pytest.raises(Unavailable):
                await js.store(t, f"{root}.a", b"x")
            assert (await js.stream_state(t, stream)).messages == 2

    run(main())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400, "err_code": 10164, "description": "wrong last sequence"}, js.WrongLastSequence),
        ({"code": 400, "err_code": 10158, "description": "in process"}, js.Uncertain),
        ({"code": 503, "err_code": 10077, "description": "maximum messages per subject exceeded"}, MailboxFull),
        ({"code": 503, "err_code": 10077, "description": "no space left on device"}, Unavailable),
        ({"code": 500, "err_code": 10047, "description": "insufficient storage resources available"}, Unavailable),
        ({"code": 429, "err_code": 10167, "description": "too many requests"}, Unavailable),
        ({"code": 503, "err_code": 10008, "description": "temporarily unavailable"}, Unavailable),
        ({"code": 400, "err_code": 10054, "description": "message size exceeds maximum allowed"}, TooLarge),
        ({"code": 400, "err_code": 10165, "description": "invalid per-message TTL"}, BadRequest),
    ],
)
def test_errors_have_their_meaning(server: Server, subjects: Subjects, error: dict[str, Any], kind: type[Exception]) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            t.inject("any", replaced(json.dumps({"error": error}).encode()))
            with pytest.raises(kind) as caught:
                await js.store(t, "any", b"x")
            if isinstance(caught.value, js.WrongLastSequence):
                assert caught.value.last is None
            elif isinstance(caught.value, MeshError):
                assert caught.value.details["err_code"] == error["err_code"]

    run(main())


def test_without_a_connection_nothing_is_sent(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(fresh_server.url) as t:
            stream, root = await _stream(t, subjects)
            fresh_server.kill()
            await eventually(lambda: not t.connected, what="the disconnect")
            with pytest.raises(Unavailable):
                await js.store(t, f"{root}.a", b"x")
            reads: list[Callable[[], Any]] = [
                lambda: js.get_last(t, stream, "a"),
                lambda: js.get_last_direct(t, stream, "a"),
                lambda: js.get_last_many(t, stream, ["a"]),
                lambda: js.read(t, stream, "a", from_seq=1),
                lambda: js.purge(t, stream, "a", below=5),
            ]
            for read in reads:
                with pytest.raises(Unavailable):
                    await read()

    run(main())


# --- reading ------------------------------------------------------------------------------------------------------
def test_reading_pages_in_order(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects)
            for n in range(10):
                await js.store(t, f"{root}.{n % 2}.x", str(n).encode(), headers={"N": str(n)})
            page = await js.read(t, stream, f"{root}.*.x", from_seq=1, batch=4)
            assert [m.seq for m in page.messages] == [1, 2, 3, 4]
            assert page.pending == 6
            assert page.messages[3].headers["N"] == "3"
            page = await js.read(t, stream, f"{root}.1.x", from_seq=5, batch=4)
            assert [(m.seq, m.subject) for m in page.messages] == [(s, f"{root}.1.x") for s in (6, 8, 10)]
            assert page.pending == 0
            assert await js.read(t, stream, f"{root}.*.x", from_seq=11) == ([], 0)
            assert await js.read(t, stream, f"{root}.none", from_seq=1) == ([], 0)
            everything = await js.read_all(t, stream, f"{root}.>")
            assert [m.seq for m in everything] == list(range(1, 11))

    run(main())


def test_a_page_is_bounded_in_bytes_but_never_empty(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects)
            for _ in range(4):
                await js.store(t, f"{root}.a", b"x" * 1000)
            page = await js.read(t, stream, f"{root}.a", from_seq=1, max_bytes=10)
            assert (len(page.messages), page.pending) == (1, 3)
            page = await js.read(t, stream, f"{root}.a", from_seq=1, max_bytes=2500)
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
            stream, root = await _stream(t, subjects)
            for _ in range(4):
                await js.store(t, f"{root}.a")
            for lost in range(4):
                t.lost = lost
                with pytest.raises(Unavailable, match="lost on the way"):
                    await js.read(t, stream, f"{root}.a", from_seq=1)

    run(main())


def test_a_stranger_cannot_forge_what_the_server_says(server: Server, subjects: Subjects) -> None:
    """Whoever may publish chooses headers, and even the status line. Neither ends a read early nor changes a sequence."""

    async def main() -> None:
        async with connected(server.url) as t:
            live: list[Message] = []
            stream, root = await _stream(t, subjects, republish={"src": f"{subjects.root}.>", "dest": f"live.{subjects.root}.>"})
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
            page = await js.read(t, stream, f"{root}.a", from_seq=1)
            assert [(m.seq, m.subject, m.data) for m in page.messages] == [(n, f"{root}.a", b"hi") for n in (1, 2, 3)]
            assert [(m.headers["Nats-Sequence"], m.headers["Nats-Subject"]) for m in live] == [
                (str(n), f"{root}.a") for n in (1, 2, 3)
            ]
            assert [m.headers["Nats-Last-Sequence"] for m in live] == ["0", "1", "2"]
            last = await js.get_last_direct(t, stream, f"{root}.a")
            assert last is not None
            assert (last.seq, last.previous) == (3, 0)

    run(main())


def test_last_messages(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects)
            assert await js.get_last(t, stream, f"{root}.a") is None
            assert await js.get_last_direct(t, stream, f"{root}.a") is None
            assert await js.get_last_many(t, stream, [f"{root}.a"]) == ({}, 0)
            assert await js.get_last_many(t, stream, []) == ({}, 0)
            for n in range(6):
                await js.store(t, f"{root}.{'ab'[n % 2]}", str(n).encode())
            direct = await js.get_last_direct(t, stream, f"{root}.a")
            leader = await js.get_last(t, stream, f"{root}.a")
            assert direct is not None
            assert leader is not None
            assert direct[:3] == leader[:3] == (f"{root}.a", 5, b"4")
            assert abs(direct.time - leader.time) < 1e-3
            found, up_to = await js.get_last_many(t, stream, [f"{root}.a", f"{root}.b", f"{root}.c"])
            assert {subject: m.data for subject, m in found.items()} == {f"{root}.a": b"4", f"{root}.b": b"5"}
            assert up_to == 6
            assert await js.get_next(t, stream, f"{root}.>", 7) is None
            beyond = await js.get_next(t, stream, f"{root}.a", 2)
            assert beyond is not None
            assert beyond.seq == 3

    run(main())


def test_last_of_thousands_of_subjects(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            stream, root = await _stream(t, subjects)
            agents = [f"a{n}" for n in range(2500)]
            for start in range(0, 2500, 250):
                await asyncio.gather(*(js.store(t, f"{root}.inbox.{a}") for a in agents[start : start + 250]))
            t.requests.clear()
            found, up_to = await js.get_last_many(t, stream, [f"{root}.inbox.{a}" for a in agents])
            assert (len(found), up_to, len(t.requests)) == (2500, 2500, 3)
            found, _ = await js.get_last_many(t, stream, [f"{root}.*.{a}" for a in agents])
            assert len(found) == 2500
            # Patterns that match more than they are taken for: the server says so, and the request is cut in two.
            found, _ = await js.get_last_many(t, stream, [f"{root}.inbox.{a}" for a in agents[:600]] + [f"{root}.none.*"])
            assert len(found) == 600
            with pytest.raises(BadRequest):
                await js.get_last_many(t, stream, [f"{root}.>"])

    run(main())


# --- schedules ----------------------------------------------------------------------------------------------------
@pytest.mark.case(232)
def test_a_schedule_fires_once_is_replaced_and_can_be_purged(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects, allow_msg_schedules=True, allow_rollup_hdrs=True)
            due = f"{root}.due.a"
            soon = time.time() + 0.2
            first = await js.schedule(t, f"{root}.timer.a.1", due, soon, b"old", headers={"Mesh-Origin": "1.1.0"}, expected=0)
            with pytest.raises(js.WrongLastSequence):
                await js.schedule(t, f"{root}.timer.a.1", due, soon, b"x", expected=0)
            await js.schedule(t, f"{root}.timer.a.1", due, soon, b"new", headers={"Mesh-Origin": "1.2.0"}, expected=first.seq)
            await js.schedule(t, f"{root}.timer.a.2", due, soon, b"cancelled")
            assert await js.purge(t, stream, f"{root}.timer.a.2") == 1

            async def fired() -> bool:
                return await js.get_last(t, stream, due) is not None

            await eventually(fired, what="the timer")
            assert time.time() >= soon
            page = await js.read(t, stream, due, from_seq=1)
            assert [m.data for m in page.messages] == [b"new"]
            assert page.messages[0].headers["Mesh-Origin"] == "1.2.0"
            assert page.messages[0].headers["Nats-Scheduler"] == f"{root}.timer.a.1"
            assert await js.get_last(t, stream, f"{root}.timer.a.1") is None

    run(main())


@pytest.mark.case(231)
@pytest.mark.parametrize("far", [dt.datetime(2261, 12, 31, tzinfo=dt.UTC), dt.datetime(3000, 1, 1, tzinfo=dt.UTC)])
def test_a_schedule_in_centuries_is_not_due_now(server: Server, subjects: Subjects, far: dt.datetime) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await _stream(t, subjects, allow_msg_schedules=True, allow_rollup_hdrs=True)
            await js.schedule(t, f"{root}.timer.a.1", f"{root}.due.a", far.timestamp(), b"far")
            await js.schedule(t, f"{root}.timer.b.1", f"{root}.due.b", time.time() + 1, b"soon")

            async def fired() -> bool:
                return await js.get_last(t, stream, f"{root}.due.b") is not None

            await eventually(fired, what="the timer that was set later")
            assert await js.get_last(t, stream, f"{root}.due.a") is None
            assert await js.get_last(t, stream, f"{root}.timer.a.1") is not None

    run(main())


# --- three servers ------------------------------------------------------------------------------------------------
async def _patiently[T](step: Callable[[], Awaitable[T]]) -> T:
    """The result of `step`, tried until the cluster can give it: it elects leaders when it likes, and makes a new stream known
    to its servers only after it has acknowledged the creation."""
    result: list[T] = []

    async def tried() -> bool:
        with contextlib.suppress(Unavailable, js.Uncertain):
            result.append(await step())
        return bool(result)

    await eventually(tried, timeout=25, what="an answer of the cluster")
    return result[0]


def test_three_replicas_and_the_death_of_a_leader(subjects: Subjects) -> None:
    with Cluster() as cluster:

        async def main() -> None:
            async with connected(cluster.url) as t:
                stream, root = await _patiently(partial(_stream, t, subjects, num_replicas=3, storage="file"))
                stored: dict[int, bytes] = {}
                for n in range(50):
                    body = str(n).encode()
                    seq = (await _patiently(partial(js.store, t, f"{root}.a", body, timeout=2))).seq
                    stored[seq] = body
                    newest = await _patiently(partial(js.get_last, t, stream, f"{root}.a"))
                    assert newest is not None
                    assert (newest.seq, newest.data) == (seq, body), "what is acknowledged is read"
                leader = cluster.stream_leader(stream)
                await asyncio.to_thread(leader.kill)
                seq = (await _patiently(partial(js.store, t, f"{root}.a", b"again", timeout=1))).seq
                assert seq > max(stored)
                messages = await _patiently(partial(js.read_all, t, stream, f"{root}.a"))
                assert stored.items() <= {message.seq: message.data for message in messages}.items()

        run(main(), timeout=100)
