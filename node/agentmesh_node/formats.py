"""Which version of records may be written now: the least that any live process of the mesh reads (docs/compatibility.md).

Every node's lease says what it reads, and so does the leading supervisor's. A process that is just being started again has no
lease for a moment: an older one counts for some time after its lease has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from agentmesh.edge.registry import Entry, Registry, View, decode_node
from agentmesh.errors import BadRequest
from agentmesh.formats import RECORD_VERSION
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY

log = logging.getLogger("agentmesh.node")

ABSENT_S = 30.0
"""How long an older process counts although its lease is gone, in seconds."""


class Formats:
    """Follows the leases of the mesh's processes. `start`, then `close`."""

    def __init__(self, registry: Registry, monotonic: Callable[[], float]) -> None:
        self.writes = RECORD_VERSION
        """The newest version that all of them read."""
        self._monotonic = monotonic
        self._view = View(registry, ["nodes.*", SUPERVISOR_KEY], self._observe)
        self._reads: dict[str, int] = {}
        """Per key of a live lease: what its process reads."""
        self._absent: dict[str, tuple[int, float]] = {}
        """Per key of an older process: what it reads, and when its lease went."""
        self._timer: asyncio.TimerHandle | None = None

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

    def _observe(self, entry: Entry) -> None:
        reads = _reads(entry)
        if reads is not None and reads == self._reads.get(entry.key) and entry.key not in self._absent:
            return  # a renewal, as nearly always
        if reads is not None:
            self._reads[entry.key] = reads
            self._absent.pop(entry.key, None)
        elif (before := self._reads.pop(entry.key, RECORD_VERSION)) < RECORD_VERSION:
            self._absent[entry.key] = before, self._monotonic()
        self._judge()

    def _judge(self) -> None:
        """Find the least version anew, and look again when the next absent process counts no more."""
        now = self._monotonic()
        self._absent = {key: (reads, since) for key, (reads, since) in self._absent.items() if now < since + ABSENT_S}
        least = min((RECORD_VERSION, *self._reads.values(), *(reads for reads, _ in self._absent.values())))
        if least != self.writes:
            log.info("records are written in another version now", extra={"from": self.writes, "to": least})
            self.writes = least
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._absent:
            due = min(since for _, since in self._absent.values()) + ABSENT_S
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now) + 0.001, self._judge)


def _reads(entry: Entry) -> int | None:
    """What the process of a lease reads; None if it is gone, or is no lease."""
    if entry.value is None:
        return None
    try:
        if entry.key == SUPERVISOR_KEY:
            return msgspec.json.decode(entry.value, type=SupervisorLease).reads
        return decode_node(entry).reads
    except (BadRequest, msgspec.DecodeError):
        return None
