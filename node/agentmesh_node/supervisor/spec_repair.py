"""Puts back specs and the epoch where a message that is not the mesh's has replaced them, and no owner does
(docs/architecture.md#foreign-messages).

The owner of an agent puts its spec back at once. Where there is none (its node died, or it never had one), the leader writes the
last spec that it has seen; a leader that has seen none takes it from the journal, whose snapshots keep it. A leader that has seen
no epoch takes the highest that a journal ends with: nobody has acted under a higher one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec import structs

from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.journal_reader import JournalReader
from agentmesh.edge.registry import Registry, decode_epoch
from agentmesh.errors import BadRequest, StoreLost, UnreadableRecord
from agentmesh.ledger import fold
from agentmesh.ownership import restored_spec
from agentmesh.registry_values import Spec
from agentmesh.subjects import EPOCH_KEY, spec_key
from agentmesh.wire import encode, format_time
from agentmesh_node.supervisor.registry_index import RegistryIndex

log = logging.getLogger("agentmesh.supervisor")

PERIOD_S = 1.0
"""How often it is looked. What an owner has not put back between two looks, the leader does."""


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
        period_s: float = PERIOD_S,
    ) -> None:
        """`now`: seconds since the epoch of clocks."""
        self._registry = registry
        self._journals = journals
        self._index = index
        self._may_act = may_act
        self._now = now
        self._period_s = period_s
        self.hopeless: dict[str, int] = {}
        """Revisions of specs, and of the epoch, that there is nothing to restore from: each is reported once."""
        self._epoch: int | None = None
        """The last epoch that could be read."""

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        before: dict[str, int] = {}
        while True:
            await self._look_at_epoch()
            await asyncio.sleep(self._period_s)
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

    async def _look_at_epoch(self) -> None:
        """Keep the epoch, and put it back. Without it no node can start, and a lower one would make nodes yield for ever."""
        try:
            entry = await self._registry.get(EPOCH_KEY)
            if entry is None:
                return
            try:
                self._epoch = decode_epoch(entry)
            except BadRequest as error:
                if not self._may_act():
                    return
                epoch = self._epoch or await self._epoch_of_journals()
                if not epoch:
                    if self.hopeless.get(EPOCH_KEY) != entry.revision:
                        log.error("epoch_unreadable", extra={"reason": error.message})
                    self.hopeless[EPOCH_KEY] = entry.revision
                    return
                await self._registry.update(EPOCH_KEY, encode(epoch), entry.revision)
                log.warning("the epoch was not the mesh's any more, and is put back", extra={"epoch": epoch})
        except EDGE_ERRORS as error:
            log.debug("the epoch cannot be looked at now: %s", error)

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
