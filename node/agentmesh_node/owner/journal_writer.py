"""Appends an owner's records, each after the newest one that it knows (docs/architecture.md#the-fence)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from agentmesh.edge.journal import Settling
from agentmesh.formats import FIRST
from agentmesh.ledger import open_count, record_of
from agentmesh.records import Ledger, Record, encode_record, version_of
from agentmesh.turn.values import Append, Committed, Core
from agentmesh_node.owner.reader_label import require_readers
from agentmesh_node.owner.spec_status import KEEP_STOPPED_S
from agentmesh_node.services import Services
from agentmesh_node.telemetry.instruments import Tally

STALL_S = 1.0
"""After a longer stall an owner checks its fence before it performs effects (case 204)."""

type Ending = Callable[[], Awaitable[Committed]]
"""Goes on with an append that has failed once; returns and raises as `JournalWriter.append`."""


class JournalWriter:
    """Writes one owner's journal. One record is in flight at a time."""

    __slots__ = ("_agent", "_began", "_kind", "_required", "_s", "_written", "committed", "version")

    def __init__(self, services: Services, agent: str, committed: int, *, kind: str = "", written: Tally | None = None) -> None:
        """
        Args:
            kind: the agent's.
            written: counts the bytes of committed records.
        """
        self._s = services
        self._written = written if written is not None else Tally({})
        self._agent = agent
        self._kind = kind
        self.committed = committed
        """The sequence of the newest record that this owner knows to be stored."""
        self.version = FIRST
        """The version that a reader of the journal must know: all further records bear it."""
        self._required = FIRST
        """The version that the agent's spec asks of a node, as far as this owner knows."""
        self._began = 0.0
        """When the newest record was sent, or the fence was last checked."""

    def begin(self, fence: int, version: int, required: int) -> None:
        """Go on behind the record `fence` of a journal of that version; the agent's spec asks a node for `required`."""
        self.committed, self.version, self._required = fence, version, required

    @property
    def stalled(self) -> bool:
        """Whether so much time has passed since the newest record that another owner may have taken over."""
        return self._s.monotonic() - self._began > STALL_S

    async def check_fence(self) -> None:
        """Return if the newest record is still this owner's.

        Raises:
            Fenced: it is another owner's: nothing of this owner may take effect.
            StoreLost, Unavailable: as `Journal.check`.
        """
        await self._s.journal.check(self._agent, self.committed)
        self._began = self._s.monotonic()

    def append_soon(self, command: Append, core: Core, appended: Callable[[Committed | Ending], None]) -> bool:
        """`append` without a task that waits: `appended` is called once, in the loop callback in which the acknowledgement
        arrives, with the result of `append`, or with a function to await instead.

        Returns: False if this record needs more than a publish, or cannot be sent at once: use `append`. Nothing was sent then.
        """
        if command.kind == "tombstone":
            return False
        s = self._s
        record = self._record(command, core)
        if self.version > self._required:
            return False
        body, before = encode_record(record, self.version), core.ledger
        self._began = s.monotonic()

        def answered(result: int | Settling) -> None:
            if isinstance(result, int):
                appended(self._stands(result, before, record, len(body)))
            else:
                appended(partial(self._settle, result, before, record, len(body)))

        return s.journal.append_soon(
            self._agent, body, answered, record_id=record.id, expected=self.committed, rollup=command.snapshot is not None
        )

    async def _settle(self, settling: Settling, before: Ledger, record: Record, size: int) -> Committed:
        return self._stands(await settling(), before, record, size)

    def _stands(self, seq: int, before: Ledger, record: Record, size: int) -> Committed:
        """The record that changed `before` is committed, at `seq`."""
        self.committed = seq
        self._written.value += size
        traces = self._s.traces
        if traces.traced and (traces.telling or traces.begun or record.attempt is not None):  # of most there is nothing to tell
            traces.committed(self._agent, self._kind, before, record, seq)
        return Committed(seq, record.id, record.at, size)

    async def append(self, command: Append, core: Core) -> Committed:
        """Append the record that the turn machine wants, in the name of the owner that `core.ledger` names.

        Raises:
            Fenced, StoreLost, Unavailable: as `Journal.append`. Nothing of the record may take effect.
        """
        record = self._record(command, core)
        if self.version > self._required:
            await require_readers(self._s, self._agent, record.incarnation, self.version)
            self._required = self.version
        body, before = encode_record(record, self.version), core.ledger
        self._began = self._s.monotonic()
        seq = await self._s.journal.append(
            self._agent,
            body,
            record_id=record.id,
            expected=self.committed,
            rollup=command.snapshot is not None,
            ttl_s=KEEP_STOPPED_S if command.kind == "tombstone" else None,
        )
        return self._stands(seq, before, record, len(body))

    def _record(self, command: Append, core: Core) -> Record:
        record = record_of(
            core.ledger,
            command.kind,
            id=self._s.token(),
            at=self._s.now(),
            change=command.change,
            effects=command.effects,
            done=command.done,
            turn=command.turn,
            attempt=command.attempt,
            handled=command.handled,
            snapshot=command.snapshot,
            trace=command.trace,
            positions=core.work.positions if command.kind == "rest" else None,
            open=open_count(core.work) if command.kind == "rest" else None,
            v=self.version,
        )
        self.version = version_of(record)
        return record
