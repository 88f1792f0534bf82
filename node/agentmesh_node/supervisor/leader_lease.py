"""The leader's lease: registry key `supervisor` (docs/architecture.md#supervisors).

One supervisor at a time holds the key, by compare-and-set, with a TTL that it renews. A standby takes over when the key is free,
so in any case when the TTL ends; and by compare-and-set on its revision when the leader has no subscription any more (*no
responders* throughout the grace: a killed leader is replaced in half a second). Two supervisors that both believe they lead do no
harm: all their writes are compare-and-set, and an owner commits only behind the fence. The lease saves work; no safety depends on
it.

It runs beside the loop that plans and places (`lease_and_pings`), so that a long plan does not cost the lead. A leader that
cannot act must not keep the lease either: `at_work()` says whether that loop still turns and reaches a server; if not, the lease
is given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.registry import Entry, Registry
from agentmesh.edge.tasks import wait_for
from agentmesh.errors import NotPermitted
from agentmesh.formats import RECORD_VERSION
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY
from agentmesh.wire import encode, format_time
from agentmesh_node.supervisor.failure_detector import FailureDetector, PingState

log = logging.getLogger("agentmesh.supervisor")

_RETRY_S = 0.1
_LOOK_S = 0.5


class LeaderLease:
    """Holds the lease or waits for it, while `run` runs.

    `on_change(leads, reason)` is called when this process begins or ceases to lead. `may_claim()` says whether its view of the
    registry can be trusted now, `at_work()` whether it can act at all. The failure detector pings the present leader; the
    caller runs it. `leads`, `leader` and `term` may be read from any thread.
    """

    def __init__(
        self,
        registry: Registry,
        detector: FailureDetector,
        *,
        supervisor_id: str,
        ttl_s: int,
        may_claim: Callable[[], bool],
        at_work: Callable[[], bool],
        on_change: Callable[[bool, str], None],
        ambient: Ambient = SYSTEM,
    ) -> None:
        self._registry = registry
        self._detector = detector
        self._id = supervisor_id
        self._ttl = ttl_s
        self._may_claim = may_claim
        self._at_work = at_work
        self._on_change = on_change
        self._wall_clock = ambient.now
        self._monotonic = ambient.monotonic
        self.term = 0
        """How often this process has begun to lead."""
        self._leading = False
        self._since = ""
        self._revision = 0
        self._renewed_at = 0.0
        self._seen: tuple[SupervisorLease, int] | None = None
        self._foreign = 0
        """Revision of a value of foreign form, which is no lease and can be replaced; 0: there is none."""
        self._seen_at = 0.0
        self._wake = asyncio.Event()
        self._forbidden = False
        """The server forbids to take or renew the lease, and the log says so."""

    @property
    def leads(self) -> bool:
        """Whether this process leads: it has the lease, and renewed it within its TTL by its own clock."""
        return self._leading and self._monotonic() < self._renewed_at + self._ttl

    @property
    def leader(self) -> str | None:
        """Id of the supervisor that holds the lease, as last seen."""
        return None if self._seen is None else self._seen[0].id

    def observe(self, entry: Entry | None) -> None:
        """Note the key's newest state (None: it does not exist)."""
        if entry is not None and entry.revision < self._revision:
            return
        lease = _decode(entry)
        self._foreign = entry.revision if entry is not None and entry.value is not None and lease is None else 0
        self._seen = None if lease is None or entry is None else (lease, entry.revision)
        self._seen_at = self._monotonic()
        if self._leading:
            if lease is None:
                self._lose("the lease is gone")
            elif not self._is_mine(lease):
                self._lose(f"{lease.id} leads")
            elif entry is not None:
                self._revision = entry.revision
        other = {lease.id} if lease is not None and lease.id != self._id else set()
        self._detector.watch(other)
        self._wake.set()

    def wake(self) -> None:
        """Check again now: something has changed (the leader is silent, the view is fresh again)."""
        self._wake.set()

    async def run(self) -> None:
        """Try to get the lease, and hold it, until cancelled."""
        while True:
            try:
                pause = await self._step()
            except EDGE_ERRORS as error:
                level = logging.WARNING if isinstance(error, NotPermitted) and not self._forbidden else logging.DEBUG
                self._forbidden = isinstance(error, NotPermitted)
                log.log(level, "lease_retry", extra={"reason": str(error) if self._forbidden else repr(error)})
                pause = _RETRY_S
            if self._leading and not self.leads:
                self._lose("it could not renew its lease in time")
            await wait_for(self._wake, pause)

    async def resign(self, reason: str = "it is shutting down") -> None:
        """Give the lease back, so that another supervisor leads at once. Best effort: otherwise it expires."""
        if not self._leading:
            return
        self._lose(reason)
        try:
            async with asyncio.timeout(1.0):
                await self._registry.delete(SUPERVISOR_KEY, self._revision)
        except EDGE_ERRORS as error:
            log.debug("resign_failed", extra={"reason": repr(error)})

    # --- inside ---------------------------------------------------------------------------------------------------
    async def _step(self) -> float:
        """Do what is due; return how long to wait, in seconds, before checking again."""
        now = self._monotonic()
        if not self._at_work():
            await self.resign("it cannot act: its loop or its connection hangs")
            return _RETRY_S
        if self._leading:
            due = self._renewed_at + self._ttl / 3
            if now < due:
                return due - now
            await self._renew()
            return self._ttl / 3 if self.leads else _RETRY_S
        if not self._may_claim():
            return _RETRY_S
        reason = self._vacancy(now)
        if reason is None:
            if self._seen is not None and now - self._seen_at > self._ttl + _LOOK_S:
                await self._look()  # its expiry may have been missed: ask the server
            return _LOOK_S
        await self._claim(reason)
        return _RETRY_S if not self._leading else self._ttl / 3

    def _vacancy(self, now: float) -> str | None:
        """Why the lease may be taken, or None."""
        if self._seen is None:
            return "nobody leads"
        lease, _ = self._seen
        if self._is_mine(lease):
            return "the lease is its own"
        if lease.id == self._id:
            # A predecessor under this id, most likely killed: a living twin would have renewed by now.
            return "an earlier process of this id led" if now - self._seen_at > self._ttl / 2 else None
        return f"{lease.id} has no subscription any more" if self._detector.ping_state(lease.id) is PingState.DEAD else None

    def _is_mine(self, lease: SupervisorLease) -> bool:
        return lease.id == self._id and lease.since == self._since

    async def _claim(self, reason: str) -> None:
        started = self._monotonic()
        self._since = format_time(self._wall_clock())
        value = encode(SupervisorLease(id=self._id, since=self._since, reads=RECORD_VERSION))
        try:
            async with asyncio.timeout(self._ttl / 3):
                over = self._foreign if self._seen is None else self._seen[1]
                if not over:
                    self._revision = await self._registry.create(SUPERVISOR_KEY, value, ttl_s=self._ttl)
                else:
                    self._revision = await self._registry.update(SUPERVISOR_KEY, value, over, ttl_s=self._ttl)
        except WrongLastSequence:
            await self._look()
            return
        self._renewed_at = started
        self.term += 1
        self._leading = True
        self._on_change(True, reason)

    async def _renew(self) -> None:
        started = self._monotonic()
        value = encode(SupervisorLease(id=self._id, since=self._since, reads=RECORD_VERSION))
        try:
            async with asyncio.timeout(self._ttl / 3):
                self._revision = await self._registry.update(SUPERVISOR_KEY, value, self._revision, ttl_s=self._ttl)
        except WrongLastSequence:
            # Another's write, or our own renewal of unknown fate: `observe` decides by the key's value.
            await self._look()
            return
        self._renewed_at = started

    async def _look(self) -> None:
        async with asyncio.timeout(self._ttl / 3):
            self.observe(await self._registry.get(SUPERVISOR_KEY))

    def _lose(self, reason: str) -> None:
        self._leading = False
        self._on_change(False, reason)


def _decode(entry: Entry | None) -> SupervisorLease | None:
    if entry is None or entry.value is None:
        return None
    try:
        return msgspec.json.decode(entry.value, type=SupervisorLease)
    except (msgspec.DecodeError, RecursionError):
        return None  # of foreign form: it has no TTL, and nobody holds it
