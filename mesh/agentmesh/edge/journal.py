"""The journal: an agent's append-only records, fenced (docs/architecture.md#the-fence).

Only a writer that has seen the newest record can append the next. Every record bears a random id, so that after a lost
acknowledgement its writer can tell its own record from another's (docs/architecture.md#is-the-newest-record-mine).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from agentmesh.edge.blobs import Blobs
from agentmesh.edge.failures import EDGE_ERRORS, PASSING_ERRORS, Uncertain, WrongLastSequence
from agentmesh.edge.publish import Stored, store, store_soon
from agentmesh.edge.read import StoredMessage, get_last, read_all
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.transport import Transport
from agentmesh.errors import Fenced, NotFound, StoreLost, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import HEADER_ROOM

log = logging.getLogger("agentmesh.edge")

RECORD = "Mesh-Record"
"""Header: the record's random id."""
BLOB = "Mesh-Blob"
"""Header: name of the blob that holds the body. The message itself then holds only that name."""

_ACK_S = 2.0
"""Wait for one acknowledgement: it is lost when the stream's leader dies; the next leader can be asked what became of it."""
_LOOK_S = 1.0
"""Wait for one answer of the leader: while there is no leader, nobody answers at all."""
_RETRY = ExponentialBackoff(0.05, 0.5)
_LOSS_PROOF_S = 1.0
"""The loss of a record must be seen twice, this far apart, before it is believed."""

_UNDECIDED = (*PASSING_ERRORS, WrongLastSequence)
"""After these the newest record tells what became of an append: a compare-and-set may have lost against its own first try."""

type Settling = Callable[[], Awaitable[int]]
"""Finds out what became of an append, and gets it done."""


class Journal:
    """The journals of one mesh, as one process writes and reads them."""

    def __init__(self, transport: Transport, subjects: Subjects, *, blobs: Blobs | None = None) -> None:
        self._t = transport
        self._subjects = subjects
        self._stream = subjects.stream("journal")
        self._blobs = blobs or Blobs(transport, subjects)
        self._blob_names: dict[str, set[str]] = {}
        """Blobs that an agent's journal is known to name; a rollup makes them garbage."""

    async def append(
        self,
        agent: str,
        body: bytes,
        *,
        record_id: str,
        expected: int,
        rollup: bool = False,
        ttl_s: int | None = None,
        patience_s: float = 30,
    ) -> int:
        """Append one record behind the record `expected` (0: the journal is empty) and return its sequence.

        While the fate of the append is unknown, nothing else is tried: the last record is read from the leader, and that decides.
        A body above the server's limit goes to the blobs, by reference.

        Args:
            record_id: random, new for each record.
            rollup: the record replaces all older ones.
            ttl_s: seconds after which the server drops the record (a tombstone's).
            patience_s: seconds to go on while the store cannot be reached.

        Raises:
            Fenced: another record is the newest: this owner must discard what it holds. Its own record may have been
                committed before that one.
            StoreLost: the newest record is older than `expected`: the store has lost data. Write nothing.
            Unavailable: `patience_s` is over. `details["fate"]` says `"unknown"`, or `"not_stored"` if nothing was sent.
        """
        subject = self._subjects.journal(agent)
        headers = {RECORD: record_id}
        deadline = asyncio.get_running_loop().time() + patience_s
        if len(body) > self._t.max_payload - HEADER_ROOM:
            body = await self._put_blob(agent, body, headers, deadline)
        try:
            stored = await store(self._t, subject, body, headers=headers, expected=expected, rollup=rollup, ttl_s=ttl_s)
            seq = stored.seq
        except _UNDECIDED as trouble:
            seq = await self._attempt(subject, body, headers, expected, deadline, rollup=rollup, ttl_s=ttl_s).settle(trouble)
        if rollup and agent in self._blob_names:
            await self._drop_blobs(agent, keep=headers.get(BLOB))
        return seq

    def append_soon(
        self,
        agent: str,
        body: bytes,
        appended: Callable[[int | Settling], None],
        *,
        record_id: str,
        expected: int,
        rollup: bool = False,
        patience_s: float = 30,
    ) -> bool:
        """`append` without a task that waits, for what most records are: small, and stored at once.

        `appended` gets the record's sequence, in the loop callback in which the acknowledgement arrives. If none arrives, or it
        is a refusal, it gets a function to await instead, which goes on as `append` does, and returns and raises the same.

        Returns: False if this record needs more than a publish, or cannot be sent at once: nothing was sent, so `append` it.
        """
        if len(body) > self._t.max_payload - HEADER_ROOM or (rollup and agent in self._blob_names):
            return False
        subject, headers = self._subjects.journal(agent), {RECORD: record_id}
        deadline = asyncio.get_running_loop().time() + patience_s

        def stored(result: Stored | Exception) -> None:
            if isinstance(result, Stored):
                appended(result.seq)
            else:
                appended(partial(self._attempt(subject, body, headers, expected, deadline, rollup=rollup).settle, result))

        return store_soon(self._t, subject, body, stored, headers=headers, expected=expected, rollup=rollup)

    def _attempt(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str],
        expected: int,
        deadline: float,
        *,
        rollup: bool,
        ttl_s: int | None = None,
    ) -> _Append:
        return _Append(
            transport=self._t,
            stream=self._stream,
            subject=subject,
            body=body,
            headers=headers,
            expected=expected,
            rollup=rollup,
            ttl_s=ttl_s,
            deadline=deadline,
        )

    async def read(self, agent: str) -> list[tuple[int, bytes]]:
        """All records in order, as (sequence, body), proven complete.

        Raises:
            Unavailable: the store cannot be read now.
            StoreLost: a record's blob is gone although the record is not.
        """
        for _ in range(3):
            messages = await read_all(self._t, self._stream, self._subjects.journal(agent))
            try:
                return [(message.seq, await self._body(agent, message)) for message in messages]
            except NotFound:
                continue  # a rollup meanwhile has made the record and its blob garbage
        raise StoreLost(f"a blob of the journal of {agent} is gone; restore the store from its backup")

    async def last(self, agent: str) -> tuple[int, bytes, str] | None:
        """The newest record as (sequence, body, record id), from the leader; None if there is none.

        Raises: as `read`.
        """
        for _ in range(3):
            message = await get_last(self._t, self._stream, self._subjects.journal(agent))
            if message is None:
                return None
            try:
                return message.seq, await self._body(agent, message), message.headers.get(RECORD, "")
            except NotFound:
                continue
        raise StoreLost(f"a blob of the journal of {agent} is gone; restore the store from its backup")

    # --- blobs ------------------------------------------------------------------------------------------------
    async def _put_blob(self, agent: str, body: bytes, headers: dict[str, str], deadline: float) -> bytes:
        for pause in _RETRY:
            try:
                name = await self._blobs.put(body)
                break
            except PASSING_ERRORS as error:
                # Chunks of a failed try stay behind as garbage; no record names them.
                await _pause_or_give_up(pause, deadline, error, fate="not_stored")
        headers[BLOB] = name
        self._blob_names.setdefault(agent, set()).add(name)
        return msgspec.json.encode({"v": 1, "blob": name})

    async def _body(self, agent: str, message: StoredMessage) -> bytes:
        name = message.headers.get(BLOB)
        if name is None:
            return message.data
        self._blob_names.setdefault(agent, set()).add(name)
        return await self._blobs.get(name)

    async def _drop_blobs(self, agent: str, *, keep: str | None) -> None:
        names = self._blob_names.pop(agent)
        if keep is not None:
            self._blob_names[agent] = {keep}
        for name in names - {keep}:
            try:
                await self._blobs.delete(name)
            except EDGE_ERRORS as error:
                log.warning("blob %s of %s is garbage and could not be removed: %s", name, agent, error)


@dataclass(kw_only=True)
class _Append:
    """One append until its fate is known."""

    transport: Transport
    stream: str
    subject: str
    body: bytes
    headers: dict[str, str]
    expected: int
    rollup: bool
    ttl_s: int | None
    deadline: float
    sent: bool = False
    """Whether a try whose fate is not known may have reached the server."""

    async def settle(self, trouble: Exception) -> int:
        """Find out what became of the first try, and try the same again until the store gives a verdict."""
        if not isinstance(trouble, _UNDECIDED):
            raise trouble  # refused for good
        pauses = iter(_RETRY)
        while True:
            if isinstance(trouble, Uncertain):
                self.sent = True
            # Before the verdict is asked for: the server may still be storing the record.
            seq = await self._verdict(trouble)
            if seq is not None:
                return seq
            await self._pause(next(pauses), trouble)
            try:
                return await self._publish()
            except _UNDECIDED as error:
                trouble = error

    async def _publish(self) -> int:
        left = self.deadline - asyncio.get_running_loop().time()
        stored = await store(
            self.transport,
            self.subject,
            self.body,
            headers=self.headers,
            expected=self.expected,
            rollup=self.rollup,
            ttl_s=self.ttl_s,
            timeout=max(0.1, min(_ACK_S, left)),
        )
        return stored.seq

    async def _verdict(self, trouble: Exception) -> int | None:
        """The record's sequence if the newest record is this one; None if nothing was appended yet."""
        newest = await self._newest(trouble)
        if newest is not None and newest.headers.get(RECORD) == self.headers[RECORD]:
            return newest.seq
        last = newest.seq if newest is not None else 0
        if last == self.expected:
            return None
        if last > self.expected:
            raise Fenced(
                f"{self.subject}: another owner has appended record {last}; discard and activate again",
                details={"expected": self.expected, "last": last},
            )
        raise StoreLost(
            f"{self.subject}: record {self.expected} was acknowledged, the store's newest is {last}; "
            "stop, and restore the store from its backup",
            details={"expected": self.expected, "last": last},
        )

    async def _newest(self, trouble: Exception) -> StoredMessage | None:
        """The newest record from the leader, waiting for one. A loss is believed when it is seen twice."""
        pauses, lost_before = iter(_RETRY), False
        while True:
            try:
                message = await get_last(self.transport, self.stream, self.subject, timeout=_LOOK_S)
            except Unavailable as error:
                await self._pause(next(pauses), error)
                continue
            if (message.seq if message is not None else 0) >= self.expected or lost_before:
                return message
            lost_before = True
            await asyncio.sleep(_LOSS_PROOF_S)

    async def _pause(self, wait: float, trouble: Exception) -> None:
        await _pause_or_give_up(wait, self.deadline, trouble, fate="unknown" if self.sent else "not_stored")


async def _pause_or_give_up(wait: float, deadline: float, trouble: Exception, *, fate: str) -> None:
    if asyncio.get_running_loop().time() + wait > deadline:
        raise Unavailable(f"the journal cannot be written now: {trouble}", details={"fate": fate}) from None
    await asyncio.sleep(wait)
