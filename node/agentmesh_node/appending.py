"""Appends an owner's records, each behind the newest that it knows (design 3, Fence)."""

from __future__ import annotations

from agentmesh.errors import Fenced
from agentmesh.ledger import record_of
from agentmesh.records import encode_record
from agentmesh.turn.values import Append, Committed, Core
from agentmesh_node.services import Services
from agentmesh_node.status import KEEP_STOPPED_S

STALL_S = 1.0
"""After a stall of more than this, an owner checks its fence before it performs effects (semantics, case 204)."""


class Appender:
    """Writes one owner's journal. One record is in flight at a time."""

    __slots__ = ("_agent", "_s", "committed")

    def __init__(self, services: Services, agent: str, committed: int) -> None:
        self._s = services
        self._agent = agent
        self.committed = committed
        """The sequence of the newest record that this owner knows to be stored."""

    async def append(self, command: Append, core: Core) -> Committed:
        """Append the record that the turn machine wants, in the name of the owner that `core.ledger` names.

        Raises:
            Fenced, StoreLost, Unavailable: as `Journal.append`. Nothing of the record may take effect.
        """
        s = self._s
        record = record_of(
            core.ledger,
            command.kind,
            id=s.token(),
            at=s.now(),
            change=command.change,
            effects=command.effects,
            done=command.done,
            turn=command.turn,
            snapshot=command.snapshot,
            trace=command.trace,
            positions=core.work.positions if command.kind == "rest" else None,
        )
        body = encode_record(record)
        began = s.monotonic()
        self.committed = await s.journal.append(
            self._agent,
            body,
            record_id=record.id,
            expected=self.committed,
            rollup=command.snapshot is not None,
            ttl_s=KEEP_STOPPED_S if command.kind == "tombstone" else None,
        )
        if s.monotonic() - began > STALL_S and command.effects:
            newest = await s.journal.last(self._agent)
            if newest is not None and newest[0] != self.committed:
                raise Fenced(f"{self._agent}: another owner has appended during a stall")
        return Committed(self.committed, record.id, record.at, len(body))
