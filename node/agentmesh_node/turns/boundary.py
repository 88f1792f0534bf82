"""`Turn.calls`: finds the moment at which a running turn can be handed to another node (docs/design/047-a-turn-moves.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec


class Boundary(msgspec.Struct):
    """Counts the open calls of one run of a turn. Once the turn is to leave no call begins any more; when none is open, and the
    turn can only go on with one, `reached` is called with `turn`: all that was done is durable, and nothing is under way.

    Each run has one, and most turns tell of no call: it is a struct because that is made quickly.
    """

    reached: Callable[[int], None]
    turn: int = 0
    leaving: bool = False
    """The turn goes on elsewhere, as soon as it can."""
    closed: bool = False
    """The run is over."""
    told: bool = False
    """Whether this run tells of its calls."""
    _open: int = 0
    _resting: int = 0
    _held: int = 0
    """Calls that are not begun here any more."""

    @property
    def open(self) -> int:
        """How many calls are under way."""
        return self._open

    async def begin(self) -> None:
        """See `agentmesh.steps.Calls.begin`."""
        self.told = True
        if self.leaving:
            await self._hold()
        self._open += 1

    def end(self) -> None:
        """See `agentmesh.steps.Calls.end`."""
        self._open -= 1
        self._look()

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """See `agentmesh.steps.Calls.resting`."""
        if not self._open:  # its backend does not tell of its calls
            yield
            return
        self._open -= 1
        self._resting += 1
        self._look()
        try:
            yield
        finally:
            self._resting -= 1
            self._open += 1
        if self.leaving and not self.closed:
            self._open -= 1
            try:
                await self._hold()
            finally:
                self._open += 1

    async def _hold(self) -> None:
        """Wait for the end of this run: it is killed."""
        self._held += 1
        self._look()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._held -= 1

    def leave(self) -> None:
        """The turn goes on elsewhere, as soon as it can."""
        self.leaving = True
        self._look()

    def _look(self) -> None:
        if self.leaving and not self.closed and self._open == 0 and (self._held or self._resting):
            self.reached(self.turn)
