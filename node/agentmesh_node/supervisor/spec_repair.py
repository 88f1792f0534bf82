"""Puts back specs and the epoch where a message that is not the mesh's has replaced or removed them, and no owner does
(docs/architecture.md#foreign-messages).

The owner of an agent puts its spec back at once. Where there is none (its node died, or it never had one), the leader writes the
last spec that it has seen; a leader that has seen none takes it from the journal, whose snapshots keep it. A leader that has seen
no epoch takes the highest that a journal ends with: nobody has acted under a higher one.

Whatever deletes a key leaves a marker in its place for an hour. A spec that is gone without one was removed together with all
other keys, by a message with `Nats-Rollup: all`, and is put back too, as the leader saw it last; the agents are placed anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec import structs

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.journal_reader import JournalReader
from agentmesh.edge.registry import DELETED_TTL_S, Registry, decode_epoch, readable_spec
from agentmesh.errors import BadRequest, StoreLost, UnreadableRecord
from agentmesh.ledger import fold
from agentmesh.ownership import restored_spec
from agentmesh.registry_values import Spec, encode_spec
from agentmesh.subjects import EPOCH_KEY, spec_key
from agentmesh.wire import encode, format_time
from agentmesh_node.supervisor.registry_index import RegistryIndex

log = logging.getLogger("agentmesh.supervisor")

PERIOD_S = 1.0
"""How often it is looked. What an owner has not put back between two looks, the leader does."""
AT_ONCE = 256
"""Specs that are put back at the same time, where all are gone."""


class SpecRepair:
    """Looks while `run` runs and `may_act()` holds."""

    def __init__(
        self,
        registry: Registry,
        journals: JournalReader,
        index: RegistryIndex,
        may_act: Callable[[], bool],
        now: Callable[[], float],
        *,
        sees: Callable[[], bool] = lambda: True,
        doubt: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = SYSTEM.monotonic,
        period_s: float = PERIOD_S,
    ) -> None:
        """
        Args:
            now: seconds since the epoch of clocks.
            sees: whether the index misses nothing.
            doubt: called when the registry may have been emptied: the index must be compared with it.
        """
        self._registry = registry
        self._journals = journals
        self._index = index
        self._may_act = may_act
        self._now = now
        self._sees = sees
        self._doubt = doubt
        self._monotonic = monotonic
        self._seen_at = monotonic()
        """When the index was known to miss nothing."""
        self._period_s = period_s
        self.hopeless: dict[str, int] = {}
        """Revisions of specs, and of the epoch, that there is nothing to restore from: each is reported once."""
        self._epoch: int | None = None
        """The last epoch that could be read; None, too, once somebody has deleted it."""
        self._epoch_revision = 0
        """Of that."""
        self._epoch_found = 0
        """The revision that its key had when it was looked at last; 0: it was gone."""

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        before: dict[str, int] = {}
        while True:
            await self._look_at_epoch()
            await asyncio.sleep(self._period_s)
            await self._look_at_dropped()
            now = self._index.foreign_specs() if self._may_act() else {}
            for agent, revision in sorted(now.items()):
                if before.get(agent) == revision != self.hopeless.get(agent):
                    await self._guarded(agent, revision)
            before = now

    async def _guarded(self, agent: str, revision: int) -> None:
        try:
            await self._put_back(agent, revision)
        except WrongLastSequence:
            log.debug("somebody else has written the spec", extra={"agent": agent})
        except EDGE_ERRORS as error:
            log.debug("a spec cannot be put back now: %s", error, extra={"agent": agent})

    async def _put_back(self, agent: str, revision: int) -> None:
        spec = self._index.specs.get(agent) or await self._from_journal(agent)
        if spec is None:
            self.hopeless[agent] = revision
            log.error("a spec is not the mesh's, and none is known: write it again, or delete the key", extra={"agent": agent})
            return
        await self._registry.update(spec_key(agent), encode(spec), revision)
        log.warning("a spec was not the mesh's any more, and is put back", extra={"agent": agent})

    async def _from_journal(self, agent: str) -> Spec | None:
        ledger, _ = fold((await self._journals.read(agent)).records)
        spec = restored_spec(ledger)
        return None if spec is None else structs.replace(spec, since=format_time(self._now()))

    # --- what is gone -------------------------------------------------------------------------------------------------
    async def _look_at_dropped(self) -> None:
        """Put back the specs that are gone without a marker."""
        sees, before, now = self._sees(), self._seen_at, self._monotonic()
        if sees:
            self._seen_at = now
        dropped = self._index.dropped
        if not dropped:
            return
        if now - before > DELETED_TTL_S / 2:
            dropped.clear()  # markers may have lapsed while nothing was seen
            return
        names = sorted(dropped)
        for start in range(0, len(names), AT_ONCE):
            await asyncio.gather(*map(self._find_out, names[start : start + AT_ONCE]))

    async def _find_out(self, agent: str) -> None:
        """Put the spec of `agent` back if nobody has deleted it. (In a bucket that ends before its revision it never was: the
        store was put back, or made anew.)"""
        gone = self._index.dropped.get(agent)
        if gone is None:
            return
        try:
            trace = await self._registry.get_trace(spec_key(agent))
            if trace is not None and trace.value is not None and readable_spec(trace) is None:
                return  # the index has not heard of it yet, and keeps the last good one then
            if trace is None and await self._registry.end() >= gone.revision:
                if not self._may_act():
                    return
                await self._registry.create(spec_key(agent), encode_spec(gone.spec, gone.unknown))
                log.error("a spec was gone that nobody had deleted, and is put back", extra={"agent": agent})
        except WrongLastSequence:
            return  # somebody else has written it: the next look finds out what
        except EDGE_ERRORS as error:
            log.debug("it cannot be told now why a spec is gone: %s", error, extra={"agent": agent})
            return
        self._index.dropped.pop(agent, None)

    # --- the epoch ----------------------------------------------------------------------------------------------------
    async def _look_at_epoch(self) -> None:
        """Keep the epoch, and put it back. Without it no node can start, and a lower one would make nodes yield for ever."""
        try:
            entry = await self._registry.get_trace(EPOCH_KEY)
            found = entry.revision if entry is not None else 0
            if self._epoch is not None and found != self._epoch_found:
                self._doubt()  # hardly anybody writes there: all keys may be gone, or all but this one
            self._epoch_found = found
            if entry is None:
                await self._put_epoch_back()
                return
            if entry.value is None:
                self._epoch = None  # somebody has deleted it, and may do so
                return
            try:
                self._epoch, self._epoch_revision = decode_epoch(entry), entry.revision
            except BadRequest as error:
                if not self._may_act():
                    return
                epoch = self._epoch or await self._epoch_of_journals()
                if not epoch:
                    if self.hopeless.get(EPOCH_KEY) != entry.revision:
                        log.error("epoch_unreadable", extra={"reason": error.message})
                    self.hopeless[EPOCH_KEY] = entry.revision
                    return
                self._epoch_found = self._epoch_revision = await self._registry.update(EPOCH_KEY, encode(epoch), found)
                self._epoch = epoch
                log.warning("the epoch was not the mesh's any more, and is put back", extra={"epoch": epoch})
        except EDGE_ERRORS as error:
            log.debug("the epoch cannot be looked at now: %s", error)

    async def _put_epoch_back(self) -> None:
        """Write the epoch that is gone without a marker."""
        if self._epoch is None or not self._may_act():
            return
        if await self._registry.end() < self._epoch_revision:
            self._epoch = None  # the store was put back, or made anew
            return
        self._epoch_found = self._epoch_revision = await self._registry.create(EPOCH_KEY, encode(self._epoch))
        log.error("the epoch was gone, and is put back", extra={"epoch": self._epoch})

    async def _epoch_of_journals(self) -> int:
        """The highest epoch that the journal of an agent ends with; 0 if no journal tells one."""
        highest = 0
        for agent in sorted({*self._index.specs, *self._index.foreign_specs()}):
            try:
                last = await self._journals.last(agent)
            except (UnreadableRecord, StoreLost) as error:
                log.debug("a journal tells no epoch: %s", error, extra={"agent": agent})
                continue
            highest = max(highest, last[1].epoch if last is not None else 0)
        return highest
