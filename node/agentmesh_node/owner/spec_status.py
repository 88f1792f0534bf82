"""Writes an agent's status into its spec: in order, each until the registry has it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

import msgspec

from agentmesh import registry_values, wire
from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.registry import readable_spec
from agentmesh.edge.retry import UPKEEP_RETRY
from agentmesh.edge.tasks import Background
from agentmesh.registry_values import AgentStatus, Spec
from agentmesh.subjects import spec_key
from agentmesh.wire import ErrorBody
from agentmesh_node.services import Services

log = logging.getLogger("agentmesh.node")

_FROM: dict[AgentStatus, tuple[AgentStatus, ...]] = {
    "running": ("wanted", "failed"),
    "failed": ("wanted", "running"),
    "stopping": ("wanted", "running", "failed"),
    "stopped": ("stopping",),
    "wanted": (),
}
"""Status in the spec -> statuses that an owner may write over it: a `stopping` spec never runs again."""
KEEP_STOPPED_S = 7 * 24 * 3600


class StatusWriter:
    """Writes the status of one life of one agent, by compare-and-set."""

    def __init__(
        self,
        services: Services,
        agent: str,
        incarnation: str,
        good: Callable[[], Spec],
        configured: Callable[[Spec], Spec] = lambda spec: spec,
    ) -> None:
        """
        Args:
            good: the last spec of this life that could be read, for where the registry's is of foreign form.
            configured: a spec as it shows the configuration in force; the very spec if it does.
        """
        self._s = services
        self._agent = agent
        self._incarnation = incarnation
        self._good = good
        self._configured = configured
        self._wanted: deque[tuple[AgentStatus, ErrorBody | None]] = deque()
        self._writing = Background(f"status {agent}")

    def set(self, status: AgentStatus, reason: ErrorBody | None) -> None:
        """Write `status`, after those that were set before."""
        self._wanted.append((status, reason))
        if not self._writing.running:
            self._writing.begin(self._write_all())

    def again(self, status: AgentStatus, reason: ErrorBody | None) -> None:
        """Write `status` once more, because somebody else has written another one.

        Needed also while it is being written: that write may have been taken for done by an older read.
        """
        if len(self._wanted) < 2:
            self.set(status, reason)

    @property
    def busy(self) -> bool:
        """Whether a status that was set is not in the registry yet."""
        return self._writing.running

    async def settled(self) -> None:
        """Return when every status that was set is in the registry."""
        await self._writing.wait()

    async def close(self) -> None:
        """Stop, and drop what is not written."""
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
        """Write over the spec of the registry's copy; after a failure (`look`) over that of the leader."""
        key = spec_key(self._agent)
        entry = None if look else self._s.specs.get(key)
        seen = readable_spec(entry)
        if seen is None or (seen.status == status and self._configured(seen) is seen):
            entry = await self._s.registry.get(key)
            seen = readable_spec(entry)
        if entry is None:
            return
        if seen is None:
            log.warning("the spec was not the mesh's any more, and is put back", extra={"agent": self._agent})
        spec = self._good() if seen is None else seen
        configured = self._configured(spec) if spec.incarnation == self._incarnation else spec
        if seen is not None and spec.status == status and configured is not spec:
            await self._s.registry.update(key, registry_values.encode_spec(configured, entry.value), entry.revision)
            return
        if seen is not None and (spec.incarnation != self._incarnation or spec.status not in _FROM[status]):
            newer = await self._s.registry.get(key)
            if newer is None or newer.revision == entry.revision:
                return
            raise WrongLastSequence(newer.revision)
        kept = reason if reason is not None or status != "stopped" else spec.reason
        # The reason why it waited for a node no longer holds once it runs.
        new = msgspec.structs.replace(
            configured,
            status=status,
            reason=kept,
            since=wire.format_time(self._s.now()),
            ran=spec.ran or status in ("running", "failed"),
        )
        ttl = KEEP_STOPPED_S if status == "stopped" else None
        over = None if seen is None else entry.value
        await self._s.registry.update(key, registry_values.encode_spec(new, over), entry.revision, ttl_s=ttl)
