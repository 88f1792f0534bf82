"""Looks after the waits of a running turn: one whose agent cannot get to the question ends, and the model is told why.

An agent that works is waited for until the wait's own time-out. One that has failed, one that is halted, and one that no node
runs for longer than a takeover can take, give no answer in that time, and nobody would know why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec

from agentmesh import wire
from agentmesh.control_values import ControlRequest
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout
from agentmesh.records import Wait
from agentmesh.turn.step_values import WaitLost
from agentmesh.turn.wait_cycles import open_waits
from agentmesh.wire import ErrorBody
from agentmesh_node.owner.loop import OwnerLoop
from agentmesh_node.services import Services

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
            why = ErrorBody(code="unavailable", message=f"no node runs {wait.agent}", details={"state": "wanted"})
            self._unable(name, wait, why)
            return
        except (RequestTimeout, Disconnected, msgspec.DecodeError):
            self._since.pop(wait.origin, None)
            return
        if found.open and found.failed is not None:
            self._end(name, wait, ErrorBody(code="failed", message=f"{wait.agent} has failed: {found.failed.message}"))
        elif found.open and found.waits and found.halted and not self._for_halted(name):
            self._unable(
                name, wait, ErrorBody(code="unavailable", message=f"{wait.agent} is halted", details={"state": "halted"})
            )
        else:
            self._since.pop(wait.origin, None)

    def _unable(self, name: str, wait: Wait, why: ErrorBody) -> None:
        now = self._s.monotonic()
        lasts = now - self._since.setdefault(wait.origin, now)
        if lasts >= self._patience_s:
            message = f"{why.message}, for {lasts:.0f} s now: the question was withdrawn"
            self._end(name, wait, ErrorBody(code=why.code, message=message, details=why.details))

    def _end(self, name: str, wait: Wait, error: ErrorBody) -> None:
        self._since.pop(wait.origin, None)
        self._loop.feed(WaitLost(name, wait.origin, error))
