"""What every live process of the mesh understands: which version of records may be written now, the least that any of them reads
(docs/compatibility.md), and whether all owners take control requests that name their operation in the subject.

Every node's lease says what it knows, and so does the leading supervisor's. A process that is just being started again has no
lease for a moment: an older one counts for some time after its lease has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from agentmesh.edge.registry import Entry, Registry, View, decode_node
from agentmesh.errors import BadRequest
from agentmesh.formats import RECORD_VERSION
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY

log = logging.getLogger("agentmesh.node")

ABSENT_S = 30.0
"""How long an older process counts although its lease is gone, in seconds."""


class _Understood(NamedTuple):
    """What a process knows, by its lease."""

    reads: int = RECORD_VERSION
    by_operation: bool = True
    """Whether it takes control requests in both forms, or none at all."""


class Formats:
    """Follows the leases of the mesh's processes. `start`, then `close`."""

    def __init__(self, registry: Registry, monotonic: Callable[[], float]) -> None:
        self.writes = RECORD_VERSION
        """The newest version that all of them read."""
        self.by_operation = True
        """Whether all owners take control requests whose subject names the operation."""
        self._on_change: list[Callable[[], None]] = []
        self._monotonic = monotonic
        self._view = View(registry, ["nodes.*", SUPERVISOR_KEY], self._observe)
        self._known: dict[str, _Understood] = {}
        """Per key of a live lease."""
        self._absent: dict[str, tuple[_Understood, float]] = {}
        """Per key of an older process: what it knows, and when its lease went."""
        self._timer: asyncio.TimerHandle | None = None

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever what all of them understand has changed."""
        self._on_change.append(call)

    async def start(self) -> None:
        """Return when all leases are known.

        Raises:
            Unavailable: the registry cannot be read.
        """
        await self._view.start()

    async def close(self) -> None:
        """Follow them no more."""
        if self._timer is not None:
            self._timer.cancel()
        await self._view.close()

    @property
    def leases(self) -> list[Entry]:
        """The leases of all live nodes."""
        return [entry for key, entry in self._view.entries.items() if key != SUPERVISOR_KEY and entry.value is not None]

    def _observe(self, entry: Entry) -> None:
        known = _known_by(entry)
        if known is not None and known == self._known.get(entry.key) and entry.key not in self._absent:
            return  # a renewal, as nearly always
        if known is not None:
            self._known[entry.key] = known
            self._absent.pop(entry.key, None)
        elif (before := self._known.pop(entry.key, _Understood())) != _Understood():
            self._absent[entry.key] = before, self._monotonic()
        self._judge()

    def _judge(self) -> None:
        """Find what all understand anew, and look again when the next absent process counts no more."""
        now = self._monotonic()
        self._absent = {key: (known, since) for key, (known, since) in self._absent.items() if now < since + ABSENT_S}
        all_known = [*self._known.values(), *(known for known, _ in self._absent.values())]
        least = min((RECORD_VERSION, *(known.reads for known in all_known)))
        if least != self.writes:
            log.info("records are written in another version now", extra={"from": self.writes, "to": least})
        found = least, all(known.by_operation for known in all_known)
        if found != (self.writes, self.by_operation):
            self.writes, self.by_operation = found
            for call in self._on_change:
                call()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._absent:
            due = min(since for _, since in self._absent.values()) + ABSENT_S
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now) + 0.001, self._judge)


def _known_by(entry: Entry) -> _Understood | None:
    """What the process of a lease knows; None if it is gone, or is no lease."""
    if entry.value is None:
        return None
    try:
        if entry.key == SUPERVISOR_KEY:  # it owns no agents
            return _Understood(msgspec.json.decode(entry.value, type=SupervisorLease).reads)
        lease = decode_node(entry)
        return _Understood(lease.reads, lease.by_operation)
    except (BadRequest, msgspec.DecodeError):
        return None
