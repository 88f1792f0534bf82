"""Reading journals: which of their messages are the mesh's, and which are a stranger's (docs/architecture.md#foreign-messages).

Every record bears the header `Mesh-Record`; one without it is known by its form. Any other message is foreign: it is passed over
and reported, and its sequence counts for the fence only, since the server counts it. What bears the header and cannot be read is
the mesh's own, and is never passed over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from agentmesh.edge.blobs import BLOB, Blobs, Damaged
from agentmesh.edge.publish import EXPECTED_SEQ, ROLLUP
from agentmesh.edge.read import StoredMessage, get_last, get_next, read_by_leader, read_pages
from agentmesh.edge.transport import Transport
from agentmesh.errors import Fenced, NotFound, StoreLost, UnreadableRecord
from agentmesh.records import Record, record_in
from agentmesh.subjects import Subjects

log = logging.getLogger("agentmesh.edge")

RECORD = "Mesh-Record"
"""Header: the record's random id."""
LOSS_PROOF_S = 1.0
"""The loss of a record must be seen twice, this far apart, before it is believed: a server that has just become the leader may
lag behind itself."""
_READS = 3
"""How often a journal is read whose messages are rolled up meanwhile."""

type OnForeign = Callable[[str, int, int], None]
"""Hears of foreign messages in a journal: of which agent, how many, and the sequence of the newest."""


class Contents(NamedTuple):
    """A journal, whole."""

    records: list[tuple[int, Record]]
    """The records with their sequences, the oldest first."""
    fence: int
    """Sequence of the newest message, foreign ones included: what the next append follows. 0: there is none."""
    foreign: int
    """How many messages are foreign."""
    wiped: bool
    """There is no record, and a foreign message that has rolled up whatever there was."""

    @property
    def last(self) -> int:
        """Sequence of the newest record; 0: there is none."""
        return self.records[-1][0] if self.records else 0


class Behind(NamedTuple):
    """What lies in a journal behind a record that is known."""

    own: dict[str, int]
    """The mesh's own messages: sequences by record id."""
    fence: int
    """Sequence of the newest message; that of the known record if nothing lies behind it."""
    rolled_up: bool
    """A foreign message has rolled up what was there before it."""


def is_marked(message: StoredMessage) -> bool:
    """Whether the message bears the header of the mesh's records."""
    return RECORD in message.headers


def is_foreign(message: StoredMessage) -> bool:
    """Whether the message is not the mesh's: it neither bears the header nor has the form of a record."""
    return not is_marked(message) and record_in(message.data, marked=False) is None


class JournalReader:
    """The journals of one mesh, as one process reads them."""

    def __init__(
        self, transport: Transport, subjects: Subjects, *, blobs: Blobs | None = None, on_foreign: OnForeign | None = None
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._stream = subjects.stream("journal")
        self._blobs = blobs or Blobs(transport, subjects)
        self._on_foreign = on_foreign or _note
        self._blob_names: dict[str, set[str]] = {}
        """Blobs that an agent's journal is known to name; a rollup makes them garbage."""

    # --- all of it --------------------------------------------------------------------------------------------------
    async def read(self, agent: str) -> Contents:
        """All records in order, proven complete.

        Raises:
            UnreadableRecord: one of them cannot be read: this program is too old for it, or it is damaged.
            Unavailable: the store cannot be read now.
        """
        for attempt in range(_READS):
            own, fence, foreign, rolled_up = await self._scan(agent)
            if rolled_up and own and not await self.stands(agent, own[-1].seq):
                continue  # a foreign message has rolled up the journal during the read
            try:
                records = [(message.seq, await self._record(agent, message)) for message in own]
            except UnreadableRecord:
                if attempt == _READS - 1:
                    raise
                continue  # a rollup meanwhile has perhaps made the record and its blob garbage
            if foreign:
                self._on_foreign(agent, foreign, fence)
            return Contents(records, fence, foreign, rolled_up and not records)
        raise StoreLost(f"foreign messages roll up the journal of {agent} again and again; keep strangers from writing there")

    async def last(self, agent: str) -> tuple[int, Record] | None:
        """The newest record with its sequence, as the leader has it; None if there is none.

        Raises: as `read`.
        """
        message = await get_last(self._t, self._stream, self._subjects.journal(agent))
        if message is None:
            return None
        if is_foreign(message):
            contents = await self.read(agent)
            return contents.records[-1] if contents.records else None
        try:
            return message.seq, await self._record(agent, message)
        except UnreadableRecord:
            contents = await self.read(agent)  # its blob may be garbage since a rollup; if not, that raises the same
            return contents.records[-1] if contents.records else None

    async def _scan(self, agent: str) -> tuple[list[StoredMessage], int, int, bool]:
        """The mesh's own messages; the newest sequence; how many are foreign; whether one of those has rolled up others."""
        own: list[StoredMessage] = []
        fence, foreign, rolled_up = 0, 0, False
        async for page in self._pages(agent, 1):
            for message in page:
                fence = message.seq
                if is_foreign(message):
                    foreign += 1
                    rolled_up = rolled_up or ROLLUP in message.headers
                elif ROLLUP in message.headers:
                    own, foreign, rolled_up = [message], 0, False  # what came before may be back (docs/nats.md)
                else:
                    own.append(message)
        return own, fence, foreign, rolled_up

    async def _pages(self, agent: str, from_seq: int) -> AsyncIterator[list[StoredMessage]]:
        """The messages at or behind `from_seq`. Each record names the message that it follows, so what a listing of a replica
        lacks shows, and is read from the leader."""
        subject = self._subjects.journal(agent)
        before = from_seq - 1
        async for page in read_pages(self._t, self._stream, subject, from_seq=from_seq):
            whole: list[StoredMessage] = []
            for message in page:
                expected = message.headers.get(EXPECTED_SEQ, "")
                if expected.isdigit() and int(expected) > before and ROLLUP not in message.headers:
                    missing = read_by_leader(self._t, self._stream, subject, from_seq=before + 1)
                    whole += [found async for found in _until(missing, message.seq)]
                whole.append(message)
                before = message.seq
            yield whole

    # --- what an owner asks -----------------------------------------------------------------------------------------
    async def behind(self, agent: str, known: int) -> Behind:
        """What lies behind the record `known` (0: behind nothing).

        Raises:
            Unavailable: the store cannot be read now.
        """
        own: dict[str, int] = {}
        fence, foreign, rolled_up = known, 0, False
        async for page in self._pages(agent, known + 1):
            for message in page:
                fence = message.seq
                if is_foreign(message):
                    foreign += 1
                    rolled_up = rolled_up or ROLLUP in message.headers
                else:
                    own[message.headers.get(RECORD, f"unmarked {message.seq}")] = message.seq
        if foreign:
            self._on_foreign(agent, foreign, fence)
        return Behind(own, fence, rolled_up)

    async def check(self, agent: str, known: int) -> None:
        """Find out whether the record `known` is the newest of the journal.

        Raises:
            Fenced: another owner has appended since.
            StoreLost: that record is gone, and no other one follows.
            Unavailable: it cannot be told now.
        """
        newest = await get_last(self._t, self._stream, self._subjects.journal(agent))
        if newest is None or newest.seq < known:
            await asyncio.sleep(LOSS_PROOF_S)
            newest = await get_last(self._t, self._stream, self._subjects.journal(agent))
        if newest is not None and newest.seq == known:
            return
        if newest is not None and newest.seq > known:
            if is_marked(newest) or (await self.behind(agent, known)).own:
                raise Fenced(f"{agent}: another owner has appended since record {known}")
            if await self.stands(agent, known):
                return
        raise lost(agent, known, newest.seq if newest is not None else 0)

    async def stands(self, agent: str, seq: int) -> bool:
        """Whether message `seq` is in the journal, as the leader has it."""
        found = await get_next(self._t, self._stream, self._subjects.journal(agent), seq)
        return found is not None and found.seq == seq

    # --- bodies -----------------------------------------------------------------------------------------------------
    async def _record(self, agent: str, message: StoredMessage) -> Record:
        try:
            record = record_in(await self._body(agent, message), marked=True)
        except (NotFound, Damaged) as error:
            raise UnreadableRecord(
                f"record {message.seq} of the journal of {agent} is in a blob that cannot be read ({error.message}); restore the "
                f"bucket {self._subjects.blobs} from its backup",
                details={"record": message.seq},
            ) from None
        except UnreadableRecord as error:
            text = f"record {message.seq} of the journal of {agent} {error.message}"
            raise UnreadableRecord(text, details={**error.details, "record": message.seq}) from None
        assert record is not None
        return record

    async def _body(self, agent: str, message: StoredMessage) -> bytes:
        name = message.headers.get(BLOB) if is_marked(message) else None
        if name is None:
            return message.data
        self._blob_names.setdefault(agent, set()).add(name)
        return await self._blobs.get(name)


async def _until(messages: AsyncIterator[StoredMessage], seq: int) -> AsyncIterator[StoredMessage]:
    """Those of `messages` before `seq`."""
    async for message in messages:
        if message.seq >= seq:
            return
        yield message


def lost(agent: str, known: int, last: int) -> StoreLost:
    """The error for a journal that has lost the record `known`, and whose newest message is `last` (0: it is empty)."""
    if last > known:
        return StoreLost(
            f"the journal of {agent} was rolled up by a message that is not the mesh's (sequence {last}): record {known} was "
            "acknowledged and is gone; restore the store from its backup",
            details={"expected": known, "last": last},
        )
    return StoreLost(
        f"the journal of {agent}: record {known} was acknowledged, the store's newest is {last}; "
        "restore the store from its backup",
        details={"expected": known, "last": last},
    )


def _note(agent: str, count: int, newest: int) -> None:
    log.warning("%d messages in the journal of %s are not the mesh's and are passed over (the newest: %d)", count, agent, newest)
