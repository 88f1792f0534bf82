"""Finds agents that were given to a node which cannot read their journals (docs/compatibility.md#which-nodes-get-an-agent).

The spec of such an agent says which version of records a node must read, but an older build that starts a stopped name anew does
not know that. The agent then waits on an older node. The leader sees that it does not begin, looks at its newest record, and puts
the label back; the planner moves it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Set

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.journal import Journal
from agentmesh.errors import UnreadableRecord
from agentmesh.formats import FIRST

log = logging.getLogger("agentmesh.supervisor")

PERIOD_S = 1.0
"""How often it is looked; an agent that has not begun between two looks is checked."""
MOST = 64
"""Journals that are looked at in one round."""


class JournalCheck:
    """Looks for such agents while `run` runs and `may_look()` holds. `suspects()` are the agents that begin or end on older
    nodes; `require(agent, version)` puts the label into a spec."""

    def __init__(
        self,
        journal: Journal,
        suspects: Callable[[], Set[str]],
        require: Callable[[str, int], Awaitable[None]],
        may_look: Callable[[], bool],
        *,
        period_s: float = PERIOD_S,
    ) -> None:
        self._journal = journal
        self._suspects = suspects
        self._require = require
        self._may_look = may_look
        self._period_s = period_s

    async def run(self) -> None:
        """Look, round after round, until cancelled."""
        before: Set[str] = frozenset()
        while True:
            now = frozenset(self._suspects()) if self._may_look() else frozenset()
            for agent in sorted(now & before)[:MOST]:
                try:
                    await self._check(agent)
                except EDGE_ERRORS as error:
                    log.debug("a journal cannot be looked at now: %s", error, extra={"agent": agent})
            before = now
            await asyncio.sleep(self._period_s)

    async def _check(self, agent: str) -> None:
        try:
            newest = await self._journal.last(agent)
            version = FIRST if newest is None else newest[1].v
        except UnreadableRecord as error:  # it may be of a version that this build does not read
            version = error.details.get("version", FIRST)
        if version > FIRST:
            log.info("an older node has an agent that it cannot read", extra={"agent": agent, "version": version})
            await self._require(agent, version)
