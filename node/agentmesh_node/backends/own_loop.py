"""Turns whose model and tools run in a process of their own, in which no call can be held up: where they may go on elsewhere.

Such a process asks its model again as soon as the tools of an answer have ended. By then the mesh has a step with all of it, and
the turn can be handed on there (docs/design/047-a-turn-moves.md): what is broken off is the model call that has just begun.
"""

from __future__ import annotations

import asyncio

import msgspec

from agentmesh.backend import Turn
from agentmesh.steps import UNMOVED


class OwnLoop:
    """The one open call of such a turn: from its start, or from one step behind which it can go on, to the next."""

    def __init__(self, turn: Turn) -> None:
        self._calls = turn.calls
        self._open = False
        self._going_on = asyncio.Event()
        self.inside = msgspec.structs.replace(turn, calls=UNMOVED)
        """The turn for what runs inside, such as the agent's own tools: while one of them waits the process waits for it."""

    async def begin(self) -> None:
        """The process is about to be started. Never returns once the turn is to go on elsewhere."""
        await self._calls.begin()
        self._open = True
        self._going_on.set()

    async def settled(self) -> None:
        """A step has the newest answer of the model and the results of all its tools. Never returns once the turn is to go on
        elsewhere."""
        self._going_on.clear()
        self.end()
        await self.begin()

    async def goes_on(self) -> None:
        """Returns once it is known that the turn goes on here: what the process asks for before is asked for elsewhere again."""
        await self._going_on.wait()

    def end(self) -> None:
        """The process is gone, or was never started. Idempotent."""
        if self._open:
            self._open = False
            self._calls.end()
