"""Brings an idle agent to rest, and from rest to sleep; also brings an agent to rest that is handed over.

Before an idle agent sleeps its owner writes a `rest` record: there is nothing to do (docs/architecture.md#rest). So a new owner
can leave it asleep without loading it. The record is written after some idle time, not after each turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmesh.turn.values import Phase, Rest, Retire
from agentmesh_node.owner.loop import OwnerLoop
from agentmesh_node.owner.mail_purge import MailPurger
from agentmesh_node.services import Services

SETTLE_S = 1.0
"""How long the effects of an agent that is handed over may take before they are left to the next owner."""


class IdleTracker:
    """Decides when one agent rests and sleeps."""

    def __init__(
        self,
        loop: OwnerLoop,
        services: Services,
        purger: MailPurger,
        *,
        may_rest: Callable[[], bool],
        may_sleep: Callable[[], bool],
        on_sleep: Callable[[], None],
    ) -> None:
        """
        Args:
            may_rest: whether the owner has done what no record asks it to do.
            may_sleep: whether nothing is left to do for which an agent at rest must stay loaded.
            on_sleep: called when the agent has been at rest for long enough.
        """
        self._loop = loop
        self._s = services
        self._purger = purger
        self._may_rest = may_rest
        self._may_sleep = may_sleep
        self._on_sleep = on_sleep
        self._active_at = services.monotonic()
        self._asleep_at: asyncio.TimerHandle | None = None
        """Timer while the agent is at rest: after long enough it sleeps, and only its subscription is kept."""

    def arm(self) -> None:
        """Check after a while whether the agent can rest."""
        self._loop.later(self._s.rest_s(), self._check)

    def on_input(self) -> None:
        """Note an input: if the agent was at rest, check again soon whether it can rest."""
        self._active_at = self._s.monotonic()
        if self._asleep_at is not None:
            self._loop.call_off(self._asleep_at)
            self._asleep_at = None
            self.arm()

    def _check(self) -> None:
        """Write the `rest` record if the agent has been idle for a while; later, let it sleep."""
        loop, core = self._loop, self._loop.core
        self._asleep_at = None
        quiet = self._s.monotonic() - self._active_at
        self._purger.quiet(quiet)
        if core is None or core.phase is not Phase.IDLE or not loop.idle or quiet < self._s.rest_s():
            self.arm()
        elif core.record != "rest":
            self._rest()
            self.arm()
        elif quiet < self._s.patience() or not self._may_sleep():
            self._asleep_at = loop.later(max(self._s.rest_s(), self._next(quiet) - quiet), self._check)
        else:
            self._on_sleep()

    def _next(self, quiet: float) -> float:
        """Idle time, in seconds, at which to check again: then it may sleep, or mail is old enough to be purged."""
        window = self._s.duplicate_window_s
        if not self._purger.lingering:
            return self._s.patience()
        return min(self._s.patience(), window + 1.0 if quiet <= window else quiet)

    async def retire(self) -> None:
        """Begin nothing more, and return when the running turn is over, or is handed on between two calls. The caller
        bounds the wait.

        Effects under way get a moment, for their callers' sake. If nothing is left to do, that is recorded, and the next owner
        can leave the agent asleep.
        """
        self._loop.feed(Retire())
        await self._idle()
        if self._handed_on:
            return  # nothing may follow the record of that
        patience = self._s.monotonic() + SETTLE_S
        while self._effects_open() and self._s.monotonic() < patience:
            await self._loop.pause()
        self._rest()
        await self._idle()

    def _rest(self) -> None:
        """Have the `rest` record written, once no lane is crowded: a sleeping agent cannot notice that its lane is full. Nor
        before the owners before this one are told of: the next owner lets an agent sleep whose newest record is that."""
        if self._purger.at_ease and self._may_rest():
            self._loop.feed(Rest())

    async def _idle(self) -> None:
        while not self._loop.idle and not self._loop.closed and not self._handed_on:
            await self._loop.pause()

    @property
    def _handed_on(self) -> bool:
        return self._loop.core is not None and self._loop.core.phase is Phase.HANDED_ON

    def _effects_open(self) -> bool:
        core = self._loop.core
        return core is not None and not self._loop.closed and len(core.done) < len(core.ledger.effects)
