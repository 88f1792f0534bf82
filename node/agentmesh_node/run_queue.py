"""Work of a node's agents, queued so that the same stage of many turns runs together.

A turn goes through many stages, from its mail to its record. If agents were served one after the other, the code of each stage
would be pushed out of the processor's caches before the next turn needs it. So if one read brings mail for several agents, each
stage is done for all of them before the next stage begins. If only one agent has work, nothing waits.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class Reads(Protocol):
    """The part of a `Transport` that reports reads."""

    @property
    def reading(self) -> bool:
        """Whether messages of one read are being delivered now."""

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` at the end of each read. Returns its remover."""


class RunQueue:
    """Pieces of work, done in the order in which they are put: work that a piece puts comes after the pieces that wait."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._due = False
        self._context = contextvars.copy_context()
        """A context of its own: callbacks must not see the trace, the baggage or other variables of the turn that queued the
        first piece."""
        self._forget_reads = reads.on_read(self._run)

    def close(self) -> None:
        """No longer work at the end of reads."""
        self._forget_reads()

    def put(self, work: Callable[[Any], None], subject: Any) -> None:
        """Call `work(subject)` after the pieces that wait: at the end of the current read, or in the next loop iteration."""
        self._pieces.append((work, subject))
        if not self._due:
            self._due = True
            if not self._reads.reading:
                self._loop.call_soon(self._run, context=self._context)

    def _run(self) -> None:
        pieces = self._pieces
        try:
            while pieces:
                work, subject = pieces.popleft()
                work(subject)
        finally:
            self._due = bool(pieces)
            if pieces:  # a piece has raised: the others are done all the same
                self._loop.call_soon(self._run, context=self._context)
