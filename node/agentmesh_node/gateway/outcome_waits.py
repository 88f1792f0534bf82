"""Waits for stored outcomes, for callers whose address the owner does not know: of repetitions, and second addresses of asks."""

from __future__ import annotations

import asyncio
import contextlib

from agentmesh.edge.results import StoredOutcome, is_answer, read_outcome
from agentmesh.edge.transport import Transport
from agentmesh.errors import Unavailable
from agentmesh.subjects import Subjects

LOOK_S = 5.0
"""Time between two reads of the stored results while an outcome is waited for: its copy may be missed."""


class OutcomeWaits:
    """All such waits of a process."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._t = transport
        self._subjects = subjects
        self._woken: set[asyncio.Queue[None]] = set()
        self._closed = False

    def close(self) -> None:
        """End all waits: what they wait for is stored, so the caller asks again, and another process answers."""
        self._closed = True
        for woken in self._woken:
            woken.put_nowait(None)

    async def is_there(self, agent: str, ref: str, msg_id: str) -> bool:
        """Whether the outcome of the message with this `Nats-Msg-Id` is stored.

        Raises:
            Unavailable: it cannot be read now.
        """
        stored = await read_outcome(self._t, self._subjects, agent, ref)
        return stored is not None and await is_answer(self._t, self._subjects, stored, msg_id)

    async def outcome(self, agent: str, ref: str, msg_id: str, wait_s: float) -> StoredOutcome | None:
        """The stored outcome of a request, as soon as it is there; None if this process closes first.

        Raises:
            Disconnected: the connection was lost.
            Unavailable: it cannot be read now, or does not come within `wait_s` seconds.
        """
        woken: asyncio.Queue[None] = asyncio.Queue()
        self._woken.add(woken)
        end = asyncio.get_running_loop().time() + wait_s
        subscription = await self._t.subscribe(self._subjects.done(agent, ref), lambda _: woken.put_nowait(None))
        try:
            while asyncio.get_running_loop().time() < end and not self._closed:
                stored = await read_outcome(self._t, self._subjects, agent, ref)
                if stored is not None and await is_answer(self._t, self._subjects, stored, msg_id):
                    return stored
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.get(), LOOK_S)
        finally:
            self._woken.discard(woken)
            await subscription.unsubscribe()
        if self._closed:
            return None
        raise Unavailable(f"this repeats the prompt {ref}, which has no outcome that is kept; poll it, or ask again later")
