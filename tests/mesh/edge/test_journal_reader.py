"""What in a journal is not the mesh's is passed over and counts for the fence only; what is the mesh's and cannot be read is
never passed over (docs/architecture.md#foreign-messages)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from agentmesh.edge import journal_reader
from agentmesh.edge.blobs import BLOB, Blobs
from agentmesh.edge.journal import Journal
from agentmesh.edge.journal_reader import RECORD, JournalReader
from agentmesh.edge.manage import delete
from agentmesh.edge.publish import store
from agentmesh.edge.read import TIME_STAMP, get_last
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Transport
from agentmesh.errors import Fenced, StoreLost, UnreadableRecord
from agentmesh.subjects import Subjects
from support import Faulty, Server, connected, record, reply_lost, run

AGENT = "team-a.coder"
FOREIGN = [b"", b"hello", b'{"prompt":"missing field kind"}', b"[" * 5000, b"\xff\xfe", b'{"v":9,"kind":"turn"}']


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(journal_reader, "LOSS_PROOF_S", 0.05)
    yield


class Stranger:
    """Somebody who publishes to a journal."""

    def __init__(self, t: Transport, subjects: Subjects) -> None:
        self._t = t
        self._subject = subjects.journal(AGENT)

    async def writes(self, body: bytes = b"hello", *, rollup: bool = False, headers: dict[str, str] | None = None) -> int:
        return (await store(self._t, self._subject, body, headers=headers or {}, rollup=rollup)).seq


def test_foreign_messages_are_passed_over_and_counted(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            told: list[tuple[str, int, int]] = []
            journal = Journal(t, subjects, on_foreign=lambda *found: told.append(found))
            stranger = Stranger(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            for body in FOREIGN:
                newest = await stranger.writes(body)
            # A record of an early program, which bore no header, is known by its form.
            early = await stranger.writes(record("r2"))
            fence = await stranger.writes()
            found = await journal.read(AGENT)
            assert [(seq, one.id) for seq, one in found.records] == [(first, "r1"), (early, "r2")]
            assert (found.last, found.fence, found.foreign, found.wiped) == (early, fence, len(FOREIGN) + 1, False)
            assert told == [(AGENT, len(FOREIGN) + 1, fence)]
            assert newest < early < fence
            last = await journal.last(AGENT)
            assert last is not None and (last[0], last[1].id) == (early, "r2")

    run(main())


def test_many_foreign_messages_are_read_page_by_page(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            stranger = Stranger(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            await asyncio.gather(*(stranger.writes() for _ in range(1000)))
            second = await journal.append(AGENT, record("r2"), record_id="r2", expected=first)
            assert second == first + 1001
            found = await journal.read(AGENT)
            assert ([one.id for _, one in found.records], found.foreign) == (["r1", "r2"], 1000)

    run(main())


# --- appends --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rollup", [False, True])
def test_an_append_follows_foreign_messages(server: Server, subjects: Subjects, rollup: bool) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal, stranger = Journal(t, subjects), Stranger(t, subjects)
            await stranger.writes()
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            for body in FOREIGN:
                await stranger.writes(body)
            second = await journal.append(AGENT, record("r2"), record_id="r2", expected=first, rollup=rollup)
            found = await journal.read(AGENT)
            assert [seq for seq, _ in found.records] == ([second] if rollup else [first, second])
            assert found.foreign == (0 if rollup else len(FOREIGN) + 1)

    run(main())


def test_an_own_record_is_found_before_foreign_messages(server: Server, subjects: Subjects) -> None:
    class Meanwhile(Faulty):
        """The acknowledgement is lost, and a stranger writes before the verdict is asked for."""

        async def request(self, subject: str, data: bytes = b"", **options):  # type: ignore[no-untyped-def]
            if "STREAM.MSG.GET" in subject and self.waiting:
                self.waiting = False
                await Stranger(self, subjects).writes()
            return await super().request(subject, data, **options)

        waiting = False

    async def main() -> None:
        async with connected(server.url) as inner:
            t = Meanwhile(inner)
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            t.inject(subjects.journal(AGENT), reply_lost)
            t.waiting = True
            assert await journal.append(AGENT, record("r2"), record_id="r2", expected=first) == first + 1
            assert [one.id for _, one in (await journal.read(AGENT)).records] == ["r1", "r2"]

    run(main())


def test_another_owners_record_behind_foreign_messages_fences(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            mine, other, stranger = Journal(t, subjects), Journal(t, subjects), Stranger(t, subjects)
            first = await mine.append(AGENT, record("r1"), record_id="r1", expected=0)
            await stranger.writes()
            await mine.check(AGENT, first)
            await other.append(AGENT, record("r2"), record_id="r2", expected=first)
            fence = await stranger.writes()
            with pytest.raises(Fenced):
                await mine.append(AGENT, record("r3"), record_id="r3", expected=first)
            with pytest.raises(Fenced):
                await mine.check(AGENT, first)
            assert (await mine.read(AGENT)).fence == fence

    run(main())


def test_an_operator_may_remove_foreign_messages(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal, stranger = Journal(t, subjects), Stranger(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            fence = await stranger.writes()
            await delete(t, subjects.stream("journal"), fence)
            second = await journal.append(AGENT, record("r2"), record_id="r2", expected=first, fence=fence)
            assert [seq for seq, _ in (await journal.read(AGENT)).records] == [first, second]

    run(main())


# --- a journal that was rolled up -----------------------------------------------------------------------------------
def test_a_journal_that_a_foreign_message_has_rolled_up_is_lost_and_not_empty(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal, stranger = Journal(t, subjects), Stranger(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            fence = await stranger.writes(rollup=True)
            found = await journal.read(AGENT)
            assert (found.records, found.wiped, found.fence) == ([], True, fence)
            with pytest.raises(StoreLost) as caught:
                await journal.append(AGENT, record("r2"), record_id="r2", expected=first)
            assert caught.value.details == {"expected": first, "last": fence}
            with pytest.raises(StoreLost):
                await journal.check(AGENT, first)
            assert (await journal.read(AGENT)).records == [], "nothing was written"

    run(main())


def test_a_roll_up_of_everything_leaves_nothing(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            await store(t, subjects.journal("other"), b"x", headers={"Nats-Rollup": "all"})
            assert (await journal.read(AGENT)).records == []
            with pytest.raises(StoreLost):
                await journal.append(AGENT, record("r2"), record_id="r2", expected=first)
            with pytest.raises(StoreLost):
                await journal.check(AGENT, first)

    run(main())


def test_the_first_record_of_a_journal_is_not_written_behind_a_roll_up_that_came_meanwhile(
    server: Server, subjects: Subjects
) -> None:
    """It may have rolled up another owner's first record. A writer that has seen it (`fence`) may write."""

    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal, stranger = Journal(t, subjects), Stranger(t, subjects)
            fence = await stranger.writes(rollup=True)
            with pytest.raises(Fenced):
                await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0, fence=fence)
            assert first == fence + 1

    run(main())


# --- what is the mesh's own -----------------------------------------------------------------------------------------
WHOLE = record("r2")
UNREADABLE = {
    "a newer version": WHOLE.replace(b'{"v":1', b'{"v":99'),
    "a newer kind": WHOLE.replace(b'"kind":"turn"', b'"kind":"dream"'),
    "a newer effect": WHOLE[:-1] + b',"effects":[{"t":"sing"}]}',
    "a body that is cut": WHOLE[: len(WHOLE) // 2],
    "no body": b"",
    "no JSON": b"\xff",
    "another form": b'{"v":1,"blob":"x"}',
    "too deep": b"[" * 5000,
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_record_of_the_mesh_that_cannot_be_read_is_never_passed_over(server: Server, subjects: Subjects, body: bytes) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            first = await journal.append(AGENT, record("r1"), record_id="r1", expected=0)
            second = await Stranger(t, subjects).writes(body, headers={RECORD: "r2"})
            with pytest.raises(UnreadableRecord) as caught:
                await journal.read(AGENT)
            assert caught.value.details["record"] == second
            assert body != UNREADABLE["a newer version"] or caught.value.details["version"] == 99
            assert str(second) in caught.value.message and AGENT in caught.value.message
            with pytest.raises(UnreadableRecord):
                await journal.last(AGENT)
            with pytest.raises(Fenced):
                await journal.append(AGENT, record("r3"), record_id="r3", expected=first)

    run(main())


def test_a_record_is_read_once_its_blob_is_back(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            ids = iter(["name", "chunks", "name", "again"])
            journal = Journal(t, subjects, blobs=Blobs(t, subjects, new_id=lambda: next(ids)))
            large = record("r1", t.max_payload)
            seq = await journal.append(AGENT, large, record_id="r1", expected=0)
            blobs = Blobs(t, subjects, new_id=lambda: next(ids))
            await blobs.delete("name")
            with pytest.raises(UnreadableRecord, match="blob"):
                await journal.read(AGENT)
            assert await blobs.put(large) == "name"
            assert [(at, one.id) for at, one in (await JournalReader(t, subjects).read(AGENT)).records] == [(seq, "r1")]

    run(main())


def test_a_stranger_cannot_name_a_blob(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            journal = Journal(t, subjects)
            await Stranger(t, subjects).writes(msgspec.json.encode({"v": 1, "blob": "x"}), headers={BLOB: "x"})
            assert (await journal.read(AGENT)).foreign == 1
            raw = await get_last(t, subjects.stream("journal"), subjects.journal(AGENT))
            assert raw is not None and raw.headers == {BLOB: "x", TIME_STAMP: raw.headers[TIME_STAMP]}

    run(main())
