"""Looks after the waits of a running turn: one whose agent cannot get to the question ends, and the model is told why.

An agent that works is waited for until the wait's own time-out. One that has failed, one that is halted, and one that no node
runs for longer than a takeover can take, give no answer in that time, and nobody would know why.

A name that no agent has ends its wait when the question is refused. Not so after a takeover: the former owner may have sent the
question, so it is refused only after the streams' duplicate window. The wait ends sooner, with the same error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import msgspec

from agentmesh import wire
from agentmesh.control_values import ControlRequest
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout
from agentmesh.errors import BadRequest, StoreLost, UnreadableRecord
from agentmesh.records import Wait
from agentmesh.turn.step_values import WaitLost
from agentmesh.turn.wait_cycles import open_waits
from agentmesh.wire import ErrorBody
from agentmesh_node.owner.effect_handlers import no_agent, spec_of
from agentmesh_node.owner.loop import OwnerLoop
from agentmesh_node.services import Services
from agentmesh_node.store_loss import has_ended

log = logging.getLogger("agentmesh.node")

LOOK_PAUSES = ExponentialBackoff(0.5, 5.0)
"""How long a wait lasts before its agent is looked at (most are over by then), and the longest pause between two looks."""
ANSWER_S = 2.0
"""How long the agent's owner has to answer a look. Silence proves nothing: it may hang, and be replaced."""
ELECTION_S = 5.0
"""With a node's lease, the least time in which a takeover is to be expected."""


class _Found(msgspec.Struct, frozen=True):
    """What the owner of an agent says of a question; an older build says less."""

    open: bool = False
    waits: bool = False
    halted: bool = False
    failed: ErrorBody | None = None


class WaitWatch:
    """Looks after the waits of one agent."""

    def __init__(
        self, loop: OwnerLoop, services: Services, *, waiting: Callable[[], bool], for_halted: Callable[[str], bool]
    ) -> None:
        """
        Args:
            waiting: returns whether the running turn waits for an agent.
            for_halted: returns whether the wait of that name lasts while its agent is halted.
        """
        self._loop = loop
        self._s = services
        self._waiting = waiting
        self._for_halted = for_halted
        settings = services.settings
        self._patience_s = max(settings.wait_patience_s, settings.lease_ttl_s + ELECTION_S)
        self._since: dict[str, float] = {}
        """Since when the agent of a wait, by the request's origin, is seen to be unable."""
        self._pauses: Iterator[float]
        self._next: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """The running turn begins to wait for an agent."""
        self._pauses = iter(LOOK_PAUSES)
        if self._next is None:
            self._next = self._loop.later(LOOK_PAUSES.first_s, self._look)

    def _look(self) -> None:
        self._next = None
        core = self._loop.core
        if core is None or not self._waiting():
            self._since.clear()
            return
        for name, wait in open_waits(core).items():
            self._s.spawn(self._ask(name, wait))
        self._next = self._loop.later(next(self._pauses), self._look)

    async def _ask(self, name: str, wait: Wait) -> None:
        """Ask the agent's owner how it stands with the question."""
        request = ControlRequest(op="open", sender=self._loop.name, origin=wait.origin)
        try:
            reply = await self._s.transport.request(self._s.subjects.control(wait.agent), wire.encode(request), timeout=ANSWER_S)
            found = msgspec.json.decode(reply.data, type=_Found)
        except NoResponders:
            await self._without_owner(name, wait)
            return
        except (RequestTimeout, Disconnected, msgspec.DecodeError):
            self._since.pop(wait.origin, None)
            return
        if found.open and found.failed is not None:
            self._end(name, wait, ErrorBody(code="failed", message=f"{wait.agent} has failed: {found.failed.message}"))
        elif found.open and found.waits and found.halted and not self._for_halted(name):
            lasts = self._unable_for(wait)
            if lasts >= self._patience_s:
                self._end(name, wait, _withdrawn(f"{wait.agent} is halted", "halted", lasts))
        else:
            self._since.pop(wait.origin, None)

    async def _without_owner(self, name: str, wait: Wait) -> None:
        lasts = self._unable_for(wait)
        if lasts < self._patience_s:
            return
        try:
            exists = await self._exists(wait.agent)
        except EDGE_ERRORS as error:
            log.debug("whether an agent exists cannot be told now: %s", error, extra={"agent": wait.agent})
            return
        lost = _withdrawn(f"no node runs {wait.agent}", "wanted", lasts)
        self._end(name, wait, lost if exists else no_agent(wait.agent))

    async def _exists(self, agent: str) -> bool:
        try:
            spec = await spec_of(self._s.specs, self._s.registry, agent)
            if spec is not None:
                return spec.status != "stopped"
            return not await has_ended(self._s.registry, self._s.journal, agent, None)
        except (BadRequest, StoreLost, UnreadableRecord):
            return True  # there is a spec, or a journal, although it cannot be read

    def _unable_for(self, wait: Wait) -> float:
        """For how many seconds the agent has been seen to be unable."""
        now = self._s.monotonic()
        return now - self._since.setdefault(wait.origin, now)

    def _end(self, name: str, wait: Wait, error: ErrorBody) -> None:
        self._since.pop(wait.origin, None)
        self._loop.feed(WaitLost(name, wait.origin, error))


def _withdrawn(why: str, state: str, lasts: float) -> ErrorBody:
    message = f"{why}, for {lasts:.0f} s now: the question was withdrawn"
    return ErrorBody(code="unavailable", message=message, details={"state": state})
