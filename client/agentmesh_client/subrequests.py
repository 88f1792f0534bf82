"""Ending a request together with what was asked on its behalf, and seeing that all of it has ended (case 350)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from agentmesh.control_values import ControlRequest
from agentmesh.errors import BadRequest, InfrastructureError, NotFound
from agentmesh_client.control import Control
from agentmesh_client.results import Subrequest

LOOK_S = 0.2
"""Pause between two questions to an agent."""
ANSWER_S = 2.0
"""Wait for one answer."""


class _Open(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to `open`."""

    open: bool = False
    ref: str | None = None
    asked: tuple[Subrequest, ...] = ()


class Endings:
    """Follows withdrawn requests to their ends."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def asked_by(self, agent: str, *, timeout: float) -> tuple[Subrequest, ...]:
        """What an agent has asked of others on behalf of requests that are open; nothing if nobody can tell: it has no owner now,
        or one of an older build.

        Raises:
            NotFound: there is no such agent.
        """
        try:
            return (await self._control.ask(agent, ControlRequest(op="open"), _Open, timeout=timeout, repeat=True)).asked
        except (InfrastructureError, BadRequest):
            return ()

    async def follow(self, sender: str, asked: Sequence[Subrequest], wait_s: float) -> tuple[Subrequest, ...]:
        """Whether the requests that `sender` has withdrawn have ended, once all have, or after so many seconds; with 0 nobody is
        asked."""
        if not wait_s:
            return tuple(asked)
        return tuple(await asyncio.gather(*(self._follow(sender, one, wait_s) for one in asked)))

    async def _follow(self, sender: str, one: Subrequest, wait_s: float) -> Subrequest:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        ref: str | None = None
        request = ControlRequest(op="open", sender=sender, origin=one.origin)
        while True:
            try:
                left = max(min(ANSWER_S, end - loop.time()), 0.05)
                found = await self._control.ask(one.agent, request, _Open, timeout=left, repeat=True)
            except NotFound:
                return msgspec.structs.replace(one, ref=ref, ended=True)
            except (InfrastructureError, BadRequest):
                pass  # a takeover; or an owner of an older build, which cannot tell
            else:
                ref = found.ref or ref
                if not found.open:
                    return msgspec.structs.replace(one, ref=ref, ended=True)
            if loop.time() + LOOK_S >= end:
                return msgspec.structs.replace(one, ref=ref)
            await asyncio.sleep(LOOK_S)
