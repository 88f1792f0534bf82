"""Publishing to a stream, with its acknowledgement: against a real server, and against one that answers wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from agentmesh.edge.failures import ApiError, Uncertain, WrongLastSequence
from agentmesh.edge.manage import purge, stream_state
from agentmesh.edge.publish import Stored, schedule, store, store_soon
from agentmesh.edge.read import get_last, get_last_direct, get_last_many, read, read_all
from agentmesh.edge.streams import ensure
from agentmesh.errors import BadRequest, MailboxFull, MeshError, TooLarge, Unavailable
from agentmesh.subjects import Subjects
from mesh.edge.streams_made import make_stream
from support import Cluster, Faulty, Server, connected, cut_off, eventually, never_sent, nobody, replaced, reply_lost, run


def test_store_acknowledges_with_the_sequence(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            assert await store(t, f"{root}.a", b"1") == (1, False)
            assert await store(t, f"{root}.a", b"2", headers={"Mesh-Tag": "x"}, msg_id="id") == (2, False)
            assert await store(t, f"{root}.a", b"2", msg_id="id") == (2, True)
            last = await get_last(t, stream, f"{root}.a")
            assert last is not None
            assert (last.seq, last.data, last.headers["Mesh-Tag"]) == (2, b"2", "x")
            assert abs(last.time - time.time()) < 60

    run(main())


def test_compare_and_set(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            first = await store(t, f"{root}.a", b"1", expected=0)
            await store(t, f"{root}.b", b"other")
            second = await store(t, f"{root}.a", b"2", expected=first.seq)
            for wrong in (0, first.seq, second.seq + 1):
                with pytest.raises(WrongLastSequence) as caught:
                    await store(t, f"{root}.a", b"3", expected=wrong)
                assert caught.value.last == second.seq
            with pytest.raises(WrongLastSequence) as caught:
                await store(t, f"{root}.c", b"3", expected=1)
            assert caught.value.last == 0
            assert (await stream_state(t, stream)).last_seq == 3

    run(main())


def test_of_many_writers_with_one_expectation_one_wins(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as a, connected(server.url) as b:
            _, root = await make_stream(a, subjects)
            results = await asyncio.gather(
                *(store(t, f"{root}.a", b"x", expected=0) for t in (a, b) * 10), return_exceptions=True
            )
            assert sum(isinstance(result, Stored) for result in results) == 1
            assert sum(isinstance(result, WrongLastSequence) for result in results) == 19

    run(main())


@pytest.mark.case(208)
def test_a_full_subject_refuses_and_purging_frees_room(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(
                t, subjects, discard="new", discard_new_per_subject=True, max_msgs_per_subject=2, max_msgs=-1
            )
            for _ in range(2):
                await store(t, f"{root}.a", b"x")
            with pytest.raises(MailboxFull):
                await store(t, f"{root}.a", b"x")
            await store(t, f"{root}.b", b"another subject has room")
            assert await purge(t, stream, f"{root}.a", below=2) == 1
            assert await purge(t, stream, f"{root}.a", below=2) == 0
            assert (await store(t, f"{root}.a", b"x")).seq == 4

    run(main())


@pytest.mark.case(244)
def test_too_large_is_told_by_the_client_and_by_themake_stream(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            _, root = await make_stream(t, subjects, max_msg_size=100)
            for size in (101, t.max_payload + 1):
                with pytest.raises(TooLarge):
                    await store(t, f"{root}.a", b"x" * size)
            with pytest.raises(TooLarge):
                await store(t, f"{root}.a", b"", headers={"A": "x" * 70_000})
            await store(t, f"{root}.a", b"x" * 50)

    run(main())


def test_other_refusals_are_bad_requests(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            _, root = await make_stream(t, subjects)
            with pytest.raises(BadRequest):  # the stream allows no TTL
                await store(t, f"{root}.a", b"x", ttl_s=5)
            with pytest.raises(BadRequest):  # nor rollups
                await store(t, f"{root}.a", b"x", rollup=True)

    run(main())


def test_ttl_and_rollup(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects, allow_msg_ttl=True, allow_rollup_hdrs=True)
            for body in (b"1", b"2"):
                await store(t, f"{root}.a", body)
            await store(t, f"{root}.b", b"stays")
            await store(t, f"{root}.a", b"all", rollup=True)
            page = await read(t, stream, f"{root}.>", from_seq=1)
            assert [message.data for message in page.messages] == [b"stays", b"all"]
            await store(t, f"{root}.c", b"short", ttl_s=1)

            async def gone() -> bool:
                return await get_last(t, stream, f"{root}.c") is None

            await eventually(gone, what="the expiry")

    run(main())


def test_no_stream_is_unavailable(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            with pytest.raises(Unavailable):
                await store(t, subjects.inbox("nobody"), b"x")
            with pytest.raises(Unavailable):
                await get_last_direct(t, "NONE", "a")
            with pytest.raises(Unavailable):
                await get_last(t, "NONE", "a")
            with pytest.raises(Unavailable):
                await read(t, "NONE", "a", from_seq=1)
            with pytest.raises(ApiError) as caught:
                await stream_state(t, "NONE")
            assert caught.value.err_code == 10059

    run(main())


def test_what_is_known_of_a_publish_that_went_wrong(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            stream, root = await make_stream(t, subjects)
            for fault in (reply_lost, cut_off, never_sent, replaced(b"no json"), replaced(b"{}")):
                t.inject(f"{root}.a", fault)
                with pytest.raises(Uncertain):
                    await store(t, f"{root}.a", b"x")
            t.inject(f"{root}.a", nobody)
            with pytest.raises(Unavailable):
                await store(t, f"{root}.a", b"x")
            assert (await stream_state(t, stream)).messages == 2

    run(main())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400, "err_code": 10164, "description": "wrong last sequence"}, WrongLastSequence),
        ({"code": 400, "err_code": 10158, "description": "in process"}, Uncertain),
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
                await store(t, "any", b"x")
            if isinstance(caught.value, WrongLastSequence):
                assert caught.value.last is None
            elif isinstance(caught.value, MeshError):
                assert caught.value.details["err_code"] == error["err_code"]

    run(main())


def test_without_a_connection_nothing_is_sent(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(fresh_server.url) as t:
            stream, root = await make_stream(t, subjects)
            fresh_server.kill()
            await eventually(lambda: not t.connected, what="the disconnect")
            with pytest.raises(Unavailable):
                await store(t, f"{root}.a", b"x")
            reads: list[Callable[[], Any]] = [
                lambda: get_last(t, stream, "a"),
                lambda: get_last_direct(t, stream, "a"),
                lambda: get_last_many(t, stream, ["a"]),
                lambda: read(t, stream, "a", from_seq=1),
                lambda: purge(t, stream, "a", below=5),
            ]
            for attempt in reads:
                with pytest.raises(Unavailable):
                    await attempt()

    run(main())


@pytest.mark.case(232)
def test_a_schedule_fires_once_is_replaced_and_can_be_purged(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects, allow_msg_schedules=True, allow_rollup_hdrs=True)
            due = f"{root}.due.a"
            soon = time.time() + 0.2
            first = await schedule(t, f"{root}.timer.a.1", due, soon, b"old", headers={"Mesh-Origin": "1.1.0"}, expected=0)
            with pytest.raises(WrongLastSequence):
                await schedule(t, f"{root}.timer.a.1", due, soon, b"x", expected=0)
            await schedule(t, f"{root}.timer.a.1", due, soon, b"new", headers={"Mesh-Origin": "1.2.0"}, expected=first.seq)
            await schedule(t, f"{root}.timer.a.2", due, soon, b"cancelled")
            assert await purge(t, stream, f"{root}.timer.a.2") == 1

            async def fired() -> bool:
                return await get_last(t, stream, due) is not None

            await eventually(fired, what="the timer")
            assert time.time() >= soon
            page = await read(t, stream, due, from_seq=1)
            assert [m.data for m in page.messages] == [b"new"]
            assert page.messages[0].headers["Mesh-Origin"] == "1.2.0"
            assert page.messages[0].headers["Nats-Scheduler"] == f"{root}.timer.a.1"
            assert await get_last(t, stream, f"{root}.timer.a.1") is None

    run(main())


@pytest.mark.case(231)
@pytest.mark.parametrize("far", [dt.datetime(2261, 12, 31, tzinfo=dt.UTC), dt.datetime(3000, 1, 1, tzinfo=dt.UTC)])
def test_a_schedule_in_centuries_is_not_due_now(server: Server, subjects: Subjects, far: dt.datetime) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects, allow_msg_schedules=True, allow_rollup_hdrs=True)
            await schedule(t, f"{root}.timer.a.1", f"{root}.due.a", far.timestamp(), b"far")
            await schedule(t, f"{root}.timer.b.1", f"{root}.due.b", time.time() + 1, b"soon")

            async def fired() -> bool:
                return await get_last(t, stream, f"{root}.due.b") is not None

            await eventually(fired, what="the timer that was set later")
            assert await get_last(t, stream, f"{root}.due.a") is None
            assert await get_last(t, stream, f"{root}.timer.a.1") is not None

    run(main())


async def _patiently[T](step: Callable[[], Awaitable[T]]) -> T:
    """The result of `step`, tried until the cluster can give it: it elects leaders when it likes, and makes a new stream known
    to its servers only after it has acknowledged the creation."""
    result: list[T] = []

    async def tried() -> bool:
        with contextlib.suppress(Unavailable, Uncertain):
            result.append(await step())
        return bool(result)

    await eventually(tried, timeout=25, what="an answer of the cluster")
    return result[0]


@pytest.mark.processes
def test_three_replicas_and_the_death_of_a_leader(subjects: Subjects) -> None:
    with Cluster() as cluster:

        async def main() -> None:
            async with connected(cluster.url) as t:
                stream, root = await _patiently(partial(make_stream, t, subjects, num_replicas=3, storage="file"))
                stored: dict[int, bytes] = {}
                for n in range(50):
                    body = str(n).encode()
                    seq = (await _patiently(partial(store, t, f"{root}.a", body, timeout=2))).seq
                    stored[seq] = body
                    newest = await _patiently(partial(get_last, t, stream, f"{root}.a"))
                    assert newest is not None
                    assert (newest.seq, newest.data) == (seq, body), "what is acknowledged is read"
                leader = cluster.stream_leader(stream)
                await asyncio.to_thread(leader.kill)
                seq = (await _patiently(partial(store, t, f"{root}.a", b"again", timeout=1))).seq
                assert seq > max(stored)
                messages = await _patiently(partial(read_all, t, stream, f"{root}.a"))
                assert stored.items() <= {message.seq: message.data for message in messages}.items()

        run(main(), timeout=100)


@pytest.mark.case(318)
@pytest.mark.parametrize("lane", ["inbox", "notify", "peer-inbox"])
def test_mail_that_is_too_large_says_the_number_that_counts(server: Server, subjects: Subjects, lane: str) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            subject, headers = subjects.lane(lane, "coder"), {"Mesh-Reply-To": "_INBOX.größe"}
            numbers = set()
            for size in (t.max_payload - 65_536, t.max_payload, t.max_payload + 1):  # refused by the stream, or before it is sent
                with pytest.raises(TooLarge) as caught:
                    await store(t, subject, b"x" * size, headers=headers, msg_id="a")
                numbers.add(caught.value.details["limit"])
                overhead = caught.value.details["size"] - size
            answers: asyncio.Queue[Stored | Exception] = asyncio.Queue()
            assert store_soon(t, subject, b"x" * (t.max_payload - 65_536), answers.put_nowait, headers=headers, msg_id="a")
            refused = await answers.get()
            assert isinstance(refused, TooLarge) and numbers == {refused.details["limit"]}
            with pytest.raises(TooLarge, match=str(refused.details["limit"])):
                store_soon(t, subject, b"x" * t.max_payload, answers.put_nowait, headers=headers, msg_id="a")
            most = refused.details["limit"] - overhead
            with pytest.raises(TooLarge):
                await store(t, subject, b"x" * (most + 1), headers=headers, msg_id="a")
            assert (await store(t, subject, b"x" * most, headers=headers, msg_id="a")).seq == 1

    run(main())
