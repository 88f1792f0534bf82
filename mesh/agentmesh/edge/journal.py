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

from agentmesh.edge import journal_reader
from agentmesh.edge.blobs import BLOB
from agentmesh.edge.failures import EDGE_ERRORS, PASSING_ERRORS, Uncertain, WrongLastSequence
from agentmesh.edge.journal_reader import RECORD, JournalReader, is_marked, lost
from agentmesh.edge.publish import Stored, store, store_soon
from agentmesh.edge.read import StoredMessage, get_last
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.transport import Transport
from agentmesh.errors import Fenced, NotPermitted, Unavailable, WrongDomain
from agentmesh.wire import HEADER_ROOM

log = logging.getLogger("agentmesh.edge")

_FIRST_ACK_S = 5.0
"""Wait for the first acknowledgement."""
_ACK_S = 2.0
"""Wait for one acknowledgement: it is lost when the stream's leader dies; the next leader can be asked what became of it."""
_LOOK_S = 1.0
"""Wait for one answer of the leader: while there is no leader, nobody answers at all."""
PATIENCE_S = 30.0
"""How long a failed append is tried again, unless its caller says otherwise."""
_RETRY = ExponentialBackoff(0.05, 0.5)
"""The pauses between its tries."""

_MENDABLE = (*PASSING_ERRORS, NotPermitted)
"""What ends by itself, or by an operator's hand: an owner holds its record until then."""
_UNDECIDED = (*_MENDABLE, WrongLastSequence, WrongDomain)
"""After these the newest record tells what became of an append: a compare-and-set may have lost against its own first try."""

type Settling = Callable[[], Awaitable[int]]
"""Finds out what became of an append, and gets it done."""


class Journal(JournalReader):
    """The journals of one mesh, as one process writes and reads them."""

    async def append(
        self,
        agent: str,
        body: bytes,
        *,
        record_id: str,
        expected: int,
        fence: int | None = None,
        rollup: bool = False,
        ttl_s: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> int:
        """Append one record behind the record `expected` (0: the journal has none) and return its sequence.

        While the fate of the append is unknown, nothing else is tried: the newest record is read from the leader, and that
        decides. Foreign messages behind `expected` change nothing: the append follows them. A body above the server's limit goes
        to the blobs, by reference.

        Args:
            record_id: random, new for each record.
            fence: the sequence of the newest message, where foreign ones are known to lie behind `expected`.
            rollup: the record replaces all older ones.
            ttl_s: seconds after which the server drops the record (a tombstone's).
            patience_s: seconds to go on while the store cannot be reached.

        Raises:
            Fenced: another record is the newest: this owner must discard what it holds. Its own record may have been
                committed before that one.
            StoreLost: the newest record is older than `expected`: the store has lost data. Write nothing.
            Unavailable: `patience_s` is over. `details["fate"]` says `"unknown"`, or `"not_stored"` if nothing was sent.
        """
        headers = {RECORD: record_id}
        deadline = asyncio.get_running_loop().time() + patience_s
        if len(body) > self._t.max_payload - HEADER_ROOM:
            body = await self._put_blob(agent, body, headers, deadline)
        attempt = self._attempt(agent, body, headers, expected, deadline, fence=fence, rollup=rollup, ttl_s=ttl_s)
        try:
            seq = await attempt.publish()
        except _UNDECIDED as trouble:
            seq = await attempt.settle(trouble)
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
        patience_s: float = PATIENCE_S,
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
                appended(partial(self._attempt(agent, body, headers, expected, deadline, rollup=rollup).settle, result))

        return store_soon(self._t, subject, body, stored, headers=headers, expected=expected, rollup=rollup)

    def _attempt(
        self,
        agent: str,
        body: bytes,
        headers: dict[str, str],
        known: int,
        deadline: float,
        *,
        fence: int | None = None,
        rollup: bool,
        ttl_s: int | None = None,
    ) -> _Append:
        return _Append(
            transport=self._t,
            reader=self,
            agent=agent,
            subject=self._subjects.journal(agent),
            stream=self._stream,
            body=body,
            headers=headers,
            known=known,
            fence=known if fence is None else fence,
            rollup=rollup,
            ttl_s=ttl_s,
            deadline=deadline,
        )

    # --- blobs ------------------------------------------------------------------------------------------------
    async def _put_blob(self, agent: str, body: bytes, headers: dict[str, str], deadline: float) -> bytes:
        for pause in _RETRY:
            try:
                name = await self._blobs.put(body)
                break
            except _MENDABLE as error:
                # Chunks of a failed try stay behind as garbage; no record names them.
                await _pause_or_give_up(pause, deadline, error, fate="not_stored")
        headers[BLOB] = name
        self._blob_names.setdefault(agent, set()).add(name)
        return msgspec.json.encode({"v": 1, "blob": name})

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
    reader: JournalReader
    agent: str
    subject: str
    stream: str
    body: bytes
    headers: dict[str, str]
    known: int
    """The record that it follows."""
    fence: int
    """The newest message, as far as is known: the record, or a foreign message behind it."""
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
            if isinstance(trouble, Uncertain | WrongDomain):
                self.sent = True
            # Before the verdict is asked for: the server may still be storing the record.
            fence = self.fence
            seq = await self._verdict(trouble)
            if seq is not None:
                return seq
            if isinstance(trouble, WrongDomain):  # it is in another mesh's journal, and must not be sent there again
                raise Unavailable(f"the journal cannot be written: {trouble.message}", details={"fate": "unknown"})
            # Foreign messages are got ahead of at once, or a stream of them would never let one through.
            await self._pause(next(pauses) if self.fence == fence else 0.0, trouble)
            try:
                return await self.publish(max(0.1, min(_ACK_S, self.deadline - asyncio.get_running_loop().time())))
            except _UNDECIDED as error:
                trouble = error

    async def publish(self, timeout: float = _FIRST_ACK_S) -> int:
        """Try once."""
        stored = await store(
            self.transport,
            self.subject,
            self.body,
            headers=self.headers,
            expected=self.fence,
            rollup=self.rollup,
            ttl_s=self.ttl_s,
            timeout=timeout,
        )
        return stored.seq

    async def _verdict(self, trouble: Exception) -> int | None:
        """The record's sequence if it is stored; None if it is not, and nothing but foreign messages is behind the known one."""
        newest = await self._newest(trouble)
        last = newest.seq if newest is not None else 0
        if newest is not None and newest.headers.get(RECORD) == self.headers[RECORD]:
            return newest.seq
        if last < self.known:
            raise lost(self.agent, self.known, last)
        if newest is not None and last > self.known:
            return await self._behind(newest)
        self.fence = self.known
        return None

    async def _behind(self, newest: StoredMessage) -> int | None:
        """The verdict where something lies behind the known record: this one, another owner's, or what is foreign."""
        if is_marked(newest):
            raise self._fenced(newest.seq)
        behind = await self.reader.behind(self.agent, self.known)
        if self.headers[RECORD] in behind.own:
            return behind.own[self.headers[RECORD]]
        if behind.own:
            raise self._fenced(max(behind.own.values()))
        if self.known and not await self.reader.stands(self.agent, self.known):
            raise lost(self.agent, self.known, behind.fence)
        if not self.known and behind.rolled_up and behind.fence > self.fence:
            raise self._fenced(behind.fence)  # it has perhaps rolled up another owner's first record: look again
        self.fence = behind.fence
        return None

    def _fenced(self, last: int) -> Fenced:
        return Fenced(
            f"the journal of {self.agent}: another owner has appended record {last}; discard and activate again",
            details={"expected": self.known, "last": last},
        )

    async def _newest(self, trouble: Exception) -> StoredMessage | None:
        """The newest message from the leader, waiting for one. A loss is believed when it is seen twice."""
        pauses, lost_before = iter(_RETRY), False
        while True:
            try:
                message = await get_last(self.transport, self.stream, self.subject, timeout=_LOOK_S)
            except (Unavailable, NotPermitted) as error:
                await self._pause(next(pauses), error)
                continue
            if (message.seq if message is not None else 0) >= self.known or lost_before:
                return message
            lost_before = True
            await asyncio.sleep(journal_reader.LOSS_PROOF_S)

    async def _pause(self, wait: float, trouble: Exception) -> None:
        await _pause_or_give_up(wait, self.deadline, trouble, fate="unknown" if self.sent else "not_stored")


async def _pause_or_give_up(wait: float, deadline: float, trouble: Exception, *, fate: str) -> None:
    if asyncio.get_running_loop().time() + wait > deadline:
        raise Unavailable(f"the journal cannot be written now: {trouble}", details={"fate": fate}) from None
    await asyncio.sleep(wait)
