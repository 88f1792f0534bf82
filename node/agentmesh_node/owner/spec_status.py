"""Shows an agent's status in its spec: in order, until the registry has it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

import msgspec

from agentmesh import wire
from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.registry import decode_spec
from agentmesh.edge.retry import UPKEEP_RETRY
from agentmesh.edge.tasks import Background
from agentmesh.subjects import spec_key
from agentmesh.wire import AgentStatus, ErrorBody
from agentmesh_node.services import Services

log = logging.getLogger("agentmesh.node")

_FROM: dict[AgentStatus, tuple[AgentStatus, ...]] = {
    "running": ("wanted", "failed"),
    "failed": ("wanted", "running"),
    "stopping": ("wanted", "running", "failed"),
    "stopped": ("stopping",),
    "wanted": (),
}
"""From which status an owner may go to which: a `stopping` spec is never made to run again."""
KEEP_STOPPED_S = 7 * 24 * 3600


class StatusWriter:
    """Writes the status of one life of one agent, by compare-and-set."""

    def __init__(self, services: Services, agent: str, incarnation: str) -> None:
        self._s = services
        self._agent = agent
        self._incarnation = incarnation
        self._wanted: deque[tuple[AgentStatus, ErrorBody | None]] = deque()
        self._writing = Background(f"status {agent}")

    def set(self, status: AgentStatus, reason: ErrorBody | None) -> None:
        """Show `status`, after what was set before."""
        self._wanted.append((status, reason))
        if not self._writing.running:
            self._writing.begin(self._write_all())

    def again(self, status: AgentStatus, reason: ErrorBody | None) -> None:
        """Show `status` once more, since somebody else has written another one.

        Also while it is being written: that may have been found done, by a read from before.
        """
        if len(self._wanted) < 2:
            self.set(status, reason)

    @property
    def busy(self) -> bool:
        """Whether something that was set is not in the registry yet."""
        return self._writing.running

    async def settled(self) -> None:
        """Return when all that was set is in the registry."""
        await self._writing.wait()

    async def close(self) -> None:
        """Give up what is not written."""
        await self._writing.close()

    async def _write_all(self) -> None:
        pauses, stale = iter(UPKEEP_RETRY), False
        while self._wanted:
            status, reason = self._wanted[0]
            try:
                await self._write(status, reason, look=stale)
            except EDGE_ERRORS as error:
                log.debug("status not written: %s", error, extra={"agent": self._agent, "status": status})
                await asyncio.sleep(next(pauses))
                stale = True
                continue
            self._wanted.popleft()
            pauses, stale = iter(UPKEEP_RETRY), False

    async def _write(self, status: AgentStatus, reason: ErrorBody | None, *, look: bool) -> None:
        """Write over what the live copy shows; after a failure (`look`) over what the leader has."""
        key = spec_key(self._agent)
        entry = None if look else self._s.specs.get(key)
        if entry is None or decode_spec(entry).status == status:
            entry = await self._s.registry.get(key)
        if entry is None:
            return
        spec = decode_spec(entry)
        if spec.incarnation != self._incarnation or spec.status not in _FROM[status]:
            newer = await self._s.registry.get(key)
            if newer is None or newer.revision == entry.revision:
                return
            raise WrongLastSequence(newer.revision)
        kept = reason if reason is not None or status != "stopped" else spec.reason
        # A reason that says why it waited for a node is over once it runs.
        new = msgspec.structs.replace(spec, status=status, reason=kept, since=wire.format_time(self._s.now()))
        ttl = KEEP_STOPPED_S if status == "stopped" else None
        await self._s.registry.update(key, wire.encode(new), entry.revision, ttl_s=ttl)
