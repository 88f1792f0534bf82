"""What a lost acknowledgement may mean on three replicas, and what it never means
(docs/architecture.md#is-the-newest-record-mine)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest

from agentmesh.edge.failures import Uncertain, WrongLastSequence
from agentmesh.edge.journal import Journal
from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.publish import store
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Headers, Message, Transport
from agentmesh.errors import Fenced
from agentmesh.subjects import Subjects
from support import Cluster, Fault, Faulty, connected, cut_off, record, reply_lost, run

BOUND_S = 110


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


class Meanwhile(Faulty):
    """A faulty transport that lets something happen before it looks at the newest record."""

    def __init__(self, inner: Transport, look: str) -> None:
        super().__init__(inner)
        self._look = look
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        if subject == self._look and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return await super().request(subject, data, headers=headers, timeout=timeout)


@pytest.mark.parametrize("fault", [reply_lost, cut_off], ids=["time-out", "connection lost"])
def test_a_committed_record_whose_acknowledgement_was_lost_is_mine(cluster: Cluster, subjects: Subjects, fault: Fault) -> None:
    async def main() -> None:
        async with connected(cluster.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects, replicas=3)
            journal = Journal(t, subjects)
            first = await journal.append("a", record("r1"), record_id="r1", expected=0)
            t.inject(subjects.journal("a"), fault)
            second = await journal.append("a", record("r2"), record_id="r2", expected=first)
            assert [(seq, found.id) for seq, found in (await journal.read("a")).records] == [(first, "r1"), (second, "r2")]

    run(main(), BOUND_S)


def test_a_committed_record_behind_which_another_has_appended_is_no_proof_of_ownership(
    cluster: Cluster, subjects: Subjects
) -> None:
    async def main() -> None:
        async with connected(cluster.url) as inner, connected(cluster.url) as other:
            t = Meanwhile(inner, f"$JS.API.STREAM.MSG.GET.{subjects.stream('journal')}")
            await ensure(t, subjects, replicas=3)
            mine, theirs = Journal(t, subjects), Journal(other, subjects)
            first = await mine.append("a", record("r1"), record_id="r1", expected=0)
            t.inject(subjects.journal("a"), reply_lost)
            t.meanwhile = lambda: theirs.append("a", record("r3"), record_id="r3", expected=first + 1)
            with pytest.raises(Fenced):
                await mine.append("a", record("r2"), record_id="r2", expected=first)
            assert [found.id for _, found in (await theirs.read("a")).records] == ["r1", "r2", "r3"]

    run(main(), BOUND_S)


def test_a_committed_record_that_is_sent_again_changes_nothing(cluster: Cluster, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(cluster.url) as t:
            await ensure(t, subjects, replicas=3)
            journal = Journal(t, subjects)
            first = await journal.append("a", record("r1"), record_id="r1", expected=0)
            second = await journal.append("a", record("r2"), record_id="r2", expected=first)
            for record_id, expected in (("r1", 0), ("r2", first)):
                # Whatever the verdict on the copy is called, it must not be taken for a new record.
                try:
                    stored = await store(t, subjects.journal("a"), b"again", headers={RECORD: record_id}, expected=expected)
                except (WrongLastSequence, Uncertain):
                    continue
                assert stored.duplicate
            assert [seq for seq, _ in (await journal.read("a")).records] == [first, second]

    run(main(), BOUND_S)
