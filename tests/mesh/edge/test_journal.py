"""The journal: fenced appends, and the verdict when an acknowledgement is lost (docs/architecture.md#the-fence)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from agentmesh.edge import journal as journal_module
from agentmesh.edge import journal_reader
from agentmesh.edge.address import API
from agentmesh.edge.api import call_api
from agentmesh.edge.blobs import BLOB, Blobs
from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.journal import Journal, Settling
from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.manage import purge, stream_state
from agentmesh.edge.publish import store
from agentmesh.edge.read import get_last
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Headers, Message, RequestTimeout, Transport
from agentmesh.errors import BadRequest, Fenced, StoreLost, Unavailable, UnreadableRecord
from agentmesh.subjects import Subjects
from agentmesh.wire import HEADER_ROOM
from support import (
    Cluster,
    Fault,
    Faulty,
    Server,
    connected,
    cut_off,
    eventually,
    never_sent,
    nobody,
    record,
    replaced,
    reply_lost,
    run,
)

AGENT = "team-a.coder"
NO_VERDICT = replaced(b'{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"}}')


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(journal_reader, "LOSS_PROOF_S", 0.05)
    monkeypatch.setattr(journal_module, "_RETRY", ExponentialBackoff(0.01, 0.5))
    yield


async def read(journal: Journal) -> list[tuple[int, str]]:
    """The agent's records: sequences and ids."""
    return [(seq, found.id) for seq, found in (await journal.read(AGENT)).records]


async def newest(journal: Journal) -> tuple[int, str] | None:
    """The newest one."""
    found = await journal.last(AGENT)
    return None if found is None else (found[0], found[1].id)


async def _records(t: Transport, subjects: Subjects) -> int:
    return (await stream_state(t, subjects.stream("journal"))).messages


# --- plain --------------------------------------------------------------------------------------------------------
def test_append_read_last_and_rollup(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            assert await newest(journal) is None
            assert await read(journal) == []
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            await journal.append("other", record("r"), record_id="r", expected=0)
            second = await journal.append(AGENT, record("r2"), record_id="r2", expected=first)
            assert await read(journal) == [(first, "r1"), (second, "r2")]
            assert await newest(journal) == (second, "r2")
            third = await journal.append(AGENT, record("r3"), record_id="r3", expected=second, rollup=True)
            assert await read(journal) == [(third, "r3")]
            fourth = await journal.append(AGENT, record("r4"), record_id="r4", expected=third)
            assert [seq for seq, _ in await read(journal)] == [third, fourth]

    run(main())


def test_a_tombstone_lapses(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            await journal.append(AGENT, record("r1"), record_id="r1", expected=0, rollup=True, ttl_s=1)

            async def lapsed() -> bool:
                return await newest(journal) is None

            await eventually(lapsed, what="the end of the tombstone")
            assert await journal.append(AGENT, record("r2"), record_id="r2", expected=0) == 2

    run(main())


# --- the verdict --------------------------------------------------------------------------------------------------
def test_fenced_by_another(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as a, connected(server.url) as b:
            await ensure(a, subjects)
            mine, other = Journal(a, subjects), Journal(b, subjects)
            first = await mine.append(AGENT, record("r1"), record_id="r1", expected=0)
            second = await other.append(AGENT, record("r2"), record_id="r2", expected=first)
            with pytest.raises(Fenced) as caught:
                await mine.append(AGENT, record("r3"), record_id="r3", expected=first)
            assert caught.value.details == {"expected": first, "last": second}
            assert await _records(a, subjects) == 2

    run(main())


@pytest.mark.parametrize("fault", [reply_lost, cut_off])
@pytest.mark.parametrize("rollup", [False, True])
def test_own_record_committed_but_the_acknowledgement_lost(
    server: Server, subjects: Subjects, fault: Fault, rollup: bool
) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            t.inject(subjects.journal(AGENT), fault)
            t.requests.clear()
            second = await journal.append(AGENT, record("r2"), record_id="r2", expected=first, rollup=rollup)
            assert second == first + 1
            assert t.requests.count(subjects.journal(AGENT)) == 1  # read, not repeated
            assert await newest(journal) == (second, "r2")

    run(main())


async def _append_soon(journal: Journal, body: bytes, *, record_id: str, expected: int, rollup: bool = False) -> int:
    """`append_soon` to its end, as an owner does it."""
    told: asyncio.Future[int | Settling] = asyncio.get_running_loop().create_future()
    sent = journal.append_soon(AGENT, body, told.set_result, record_id=record_id, expected=expected, rollup=rollup)
    assert sent
    end = await told
    return end if isinstance(end, int) else await end()


@pytest.mark.parametrize(
    "faults", [[], [reply_lost], [cut_off], [never_sent], [nobody], [NO_VERDICT], [never_sent, nobody, NO_VERDICT, reply_lost]]
)
def test_an_append_without_a_task_ends_as_one_with(server: Server, subjects: Subjects, faults: list[Fault]) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await _append_soon(journal, record("r1"), record_id="r1", expected=0)
            t.inject(subjects.journal(AGENT), *faults)
            second = await _append_soon(journal, record("r2"), record_id="r2", expected=first)
            assert await read(journal) == [(first, "r1"), (second, "r2")]
            with pytest.raises(Fenced):
                await _append_soon(journal, record("r3"), record_id="r3", expected=first)
            third = await _append_soon(journal, record("r4"), record_id="r4", expected=second, rollup=True)
            assert await read(journal) == [(third, "r4")]

    run(main())


def test_a_record_that_takes_more_than_a_publish_is_not_appended_soon(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)

            def soon(body: bytes, expected: int, *, rollup: bool = False) -> bool:
                return journal.append_soon(AGENT, body, _never, record_id="r", expected=expected, rollup=rollup)

            large = record("r1", t.max_payload)
            assert not soon(large, 0)
            first = await journal.append(AGENT, large, record_id="r1", expected=0)
            assert not soon(record("r"), first, rollup=True)  # the blob of the first becomes garbage
            assert await newest(journal) == (first, "r1")

    run(main())


def test_a_record_that_the_server_refuses_for_good_is_not_tried_again(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            t.inject(subjects.journal(AGENT), replaced(b'{"error":{"code":400,"err_code":10025,"description":"no"}}'))
            with pytest.raises(BadRequest):
                await _append_soon(journal, record("r1"), record_id="r1", expected=0)
            assert await newest(journal) is None

    run(main())


@pytest.mark.parametrize(
    "reply",
    [b"\xff", b"[" * 5000, b'{"error":{"code":400,"err_code":10071,"description":"%b"}}' % (b"9" * 5000)],
    ids=["bytes", "nested", "number"],
)
def test_a_reply_that_makes_no_sense_is_one_of_unknown_fate(server: Server, subjects: Subjects, reply: bytes) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            t.inject(subjects.journal(AGENT), replaced(reply))
            seq = await _append_soon(journal, record("r1"), record_id="r1", expected=0)
            assert await newest(journal) == (seq, "r1")

    run(main())


def _never(end: object) -> None:
    raise AssertionError(f"told {end!r} of what was not sent")


@pytest.mark.parametrize("faults", [[never_sent], [nobody, nobody], [NO_VERDICT], [never_sent, nobody, NO_VERDICT, reply_lost]])
def test_unchanged_and_tried_again(server: Server, subjects: Subjects, faults: list[Fault]) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            t.inject(subjects.journal(AGENT), *faults)
            second = await journal.append(AGENT, record("r2"), record_id="r2", expected=first)
            assert await read(journal) == [(first, "r1"), (second, "r2")]

    run(main())


def test_a_late_copy_that_commits_between_verdict_and_retry_is_ours(server: Server, subjects: Subjects) -> None:
    class Late(Faulty):
        """The first copy of a publish arrives only when the second is sent."""

        held: bytes | None = None

        async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
            if subject == subjects.journal(AGENT):
                if self.held is None:
                    self.held = data
                    raise RequestTimeout
                await super().request(subject, self.held, headers=headers, timeout=timeout)
            return await super().request(subject, data, headers=headers, timeout=timeout)

    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(Late(t), subjects)
            assert await journal.append(AGENT, record("r1"), record_id="r1", expected=0) == 1
            assert await read(journal) == [(1, "r1")]

    run(main())


@pytest.mark.case(204)
def test_own_record_committed_but_another_is_newer(server: Server, subjects: Subjects) -> None:
    """The acknowledgement is lost, and before the verdict a new owner has appended: this owner is over."""

    async def main() -> None:
        async with connected(server.url) as inner, connected(server.url) as b:
            t = Faulty(inner)
            await ensure(t, subjects)
            mine, other = Journal(t, subjects), Journal(b, subjects)
            t.inject(subjects.journal(AGENT), reply_lost)
            t.inject(f"{API}.STREAM.MSG.GET.{subjects.stream('journal')}", nobody)  # gives the other time
            appending = asyncio.ensure_future(mine.append(AGENT, record("r1"), record_id="r1", expected=0))

            async def committed() -> bool:
                return await newest(other) is not None

            await eventually(committed, what="the record whose acknowledgement is lost")
            await other.append(AGENT, record("r2"), record_id="r2", expected=1)
            outcome = (await asyncio.gather(appending, return_exceptions=True))[0]
            # Either verdict came first; never anything else, and both records stand.
            assert outcome == 1 or isinstance(outcome, Fenced)
            with pytest.raises(Fenced):
                await mine.append(AGENT, record("r3"), record_id="r3", expected=1)
            assert await read(other) == [(1, "r1"), (2, "r2")]

    run(main())


def _elsewhere(subjects: Subjects) -> bytes:
    return b'{"stream":"%b","seq":7,"domain":"elsewhere"}' % subjects.stream("journal").encode()


@pytest.mark.case(475)
def test_a_record_that_another_mesh_has_acknowledged_first_is_committed_if_it_stands_here_too(
    server: Server, subjects: Subjects
) -> None:
    def first_answer(reply: Message | None) -> Message:
        return Message("", _elsewhere(subjects), {})

    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            faulty = Faulty(t)
            t.domain = ""
            journal = Journal(faulty, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            faulty.inject(subjects.journal(AGENT), first_answer)
            second = await journal.append(AGENT, record("r2"), record_id="r2", expected=first)
            assert await read(journal) == [(first, "r1"), (second, "r2")]
            assert faulty.requests.count(subjects.journal(AGENT)) == 2, "it is not sent again"

    run(main())


@pytest.mark.case(475)
def test_a_record_that_only_another_mesh_has_is_not_sent_again_and_cannot_come_behind_the_next_owners(
    server: Server, subjects: Subjects
) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            faulty = Faulty(t)
            t.domain = ""
            journal, subject = Journal(faulty, subjects), subjects.journal(AGENT)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            faulty.inject(subject, replaced(_elsewhere(subjects)))
            with pytest.raises(Unavailable) as caught:
                await journal.append(AGENT, record("r2"), record_id="r2", expected=first)
            assert caught.value.details["fate"] == "unknown", "it may be on its way here"
            assert faulty.requests.count(subject) == 2, "it is not sent again"
            next_owner = await Journal(t, subjects).append(AGENT, record("r3"), record_id="r3", expected=first)
            with pytest.raises(WrongLastSequence):
                await store(t, subject, record("r2"), headers={RECORD: "r2"}, expected=first)
            assert await read(journal) == [(first, "r1"), (next_owner, "r3")]

    run(main())


def test_store_lost_when_the_stream_was_purged(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            last = 0
            for n in range(3):
                last = await journal.append(AGENT, record(f"r{n}"), record_id=f"r{n}", expected=last)
            await call_api(t, f"STREAM.MSG.DELETE.{subjects.stream('journal')}", {"seq": last})
            with pytest.raises(StoreLost) as caught:
                await journal.append(AGENT, record("r"), record_id="r", expected=last)
            assert caught.value.details == {"expected": 3, "last": 2}
            await purge(t, subjects.stream("journal"), subjects.journal(AGENT))
            with pytest.raises(StoreLost) as caught:
                await journal.append(AGENT, record("r"), record_id="r", expected=last)
            assert caught.value.details == {"expected": 3, "last": 0}
            assert await _records(t, subjects) == 0

    run(main())


def test_a_loss_seen_only_once_is_not_believed(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            t.inject(subjects.journal(AGENT), never_sent)
            t.inject(
                f"{API}.STREAM.MSG.GET.{subjects.stream('journal')}",
                replaced(b'{"error":{"code":404,"err_code":10037,"description":"no message found"}}'),
            )
            assert await journal.append(AGENT, record("r2"), record_id="r2", expected=first) == first + 1

    run(main())


def test_patience_ends_and_says_what_is_known(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            t.inject(subjects.journal(AGENT), *[nobody] * 100)
            async with asyncio.timeout(15):  # half of the patience without a word
                with pytest.raises(Unavailable) as caught:
                    await journal.append(AGENT, record("r1"), record_id="r1", expected=0, patience_s=0.2)
            assert caught.value.details == {"fate": "not_stored"}

            reads = f"{API}.STREAM.MSG.GET.{subjects.stream('journal')}"
            t = Faulty(inner)
            t.inject(subjects.journal(AGENT), reply_lost)
            t.inject(reads, *[nobody] * 100)
            with pytest.raises(Unavailable) as caught:
                await Journal(t, subjects).append(AGENT, record("r1"), record_id="r1", expected=0, patience_s=0.2)
            assert caught.value.details == {"fate": "unknown"}
            assert await newest(Journal(inner, subjects)) == (1, "r1")

    run(main())


def test_an_append_waits_through_a_restart_of_the_server(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(fresh_server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            fresh_server.kill()
            appending = asyncio.ensure_future(journal.append(AGENT, record("r2"), record_id="r2", expected=first))
            await asyncio.to_thread(fresh_server.start)
            assert await appending == first + 1
            assert await read(journal) == [(first, "r1"), (first + 1, "r2")]

    run(main())


@pytest.mark.processes
def test_appends_survive_the_death_of_the_leader(subjects: Subjects) -> None:
    """One owner on three servers appends through a kill of its stream's leader: each record once, in order."""
    with Cluster() as cluster:

        async def main() -> None:
            async with connected(cluster.url) as t:
                await ensure(t, subjects)
                journal = Journal(t, subjects)
                last, ids = 0, []
                leader = cluster.stream_leader(subjects.stream("journal"))
                for n in range(60):
                    if n == 30:
                        await asyncio.to_thread(leader.kill)
                    ids.append(f"r{n}")
                    last = await journal.append(AGENT, record(ids[-1]), record_id=ids[-1], expected=last)
                records = await read(journal)
                assert [name for _, name in records] == ids
                assert records[-1][0] == last

        run(main(), timeout=60)


# --- what exceeds the payload limit -------------------------------------------------------------------------------
@pytest.mark.case(220)
def test_a_large_record_goes_to_the_blobs_and_a_rollup_removes_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            edge = t.max_payload - HEADER_ROOM
            first = await journal.append(AGENT, record("r1", t.max_payload + 1), record_id="r1", expected=0)
            second = await journal.append(AGENT, record("r2", edge), record_id="r2", expected=first)
            third = await journal.append(AGENT, record("r3", edge + 1), record_id="r3", expected=second)
            # Another process reads them, and takes the agent over.
            heir = Journal(t, subjects)
            assert await read(heir) == [(first, "r1"), (second, "r2"), (third, "r3")]
            assert await newest(heir) == (third, "r3")
            raw = await get_last(t, subjects.stream("journal"), subjects.journal(AGENT))
            assert raw is not None
            assert raw.data == b'{"v":1,"blob":"%b"}' % raw.headers[BLOB].encode()
            last = await heir.append(AGENT, record("r4", t.max_payload), record_id="r4", expected=third, rollup=True)
            assert await read(heir) == [(last, "r4")]
            await heir.append(AGENT, record("r5"), record_id="r5", expected=last, rollup=True)
            assert (await stream_state(t, subjects.blob_stream)).messages == 0

    run(main())


def test_a_record_whose_blob_is_gone_cannot_be_read_and_is_not_passed_over(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            await journal.append(AGENT, record("r1", t.max_payload), record_id="r1", expected=0)
            raw = await get_last(t, subjects.stream("journal"), subjects.journal(AGENT))
            assert raw is not None
            await Blobs(t, subjects).delete(raw.headers[BLOB])
            with pytest.raises(UnreadableRecord, match="blob"):
                await read(journal)
            with pytest.raises(UnreadableRecord, match="blob"):
                await newest(journal)

    run(main())


def test_a_large_record_waits_for_the_store_too(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            ids = (f"id{n}" for n in range(100))
            journal = Journal(t, subjects, blobs=Blobs(t, subjects, new_id=lambda: next(ids)))
            t.inject(subjects.blob_chunks("id1"), never_sent)
            large = record("r1", t.max_payload)
            assert await journal.append(AGENT, large, record_id="r1", expected=0) == 1
            assert await read(journal) == [(1, "r1")]
            for n in range(100):
                t.inject(subjects.blob_chunks(f"id{n}"), nobody)
            with pytest.raises(Unavailable) as caught:
                await journal.append(AGENT, large, record_id="r2", expected=1, patience_s=0.1)
            assert caught.value.details == {"fate": "not_stored"}

    run(main())
