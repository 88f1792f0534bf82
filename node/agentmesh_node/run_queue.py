"""Work of a node's agents, taken in rounds.

A turn goes through many stages, from its mail to its record, and each is a piece of code that another has pushed out of the
processor's caches by the time the next turn comes to it. So agents whose mail has come in one read are not served one after the
other: each stage is done for all of them before the next one begins. Where one agent alone has something to do, nothing waits.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class Reads(Protocol):
    """What tells when messages are read: a `Transport`."""

    @property
    def reading(self) -> bool:
        """Whether messages of one read are being delivered now."""

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` at the end of each read. Returns what ends that."""


class RunQueue:
    """Pieces of work in the order in which they were put: what a piece puts comes behind those that wait."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._due = False
        self._context = contextvars.copy_context()
        """Whose turn it was that put the first piece is nothing that the others' code may see: trace, baggage, a user's own."""
        self._forget_reads = reads.on_read(self._do)

    def close(self) -> None:
        """Do nothing more at the end of reads."""
        self._forget_reads()

    def put(self, work: Callable[[Any], None], subject: Any) -> None:
        """Call `work(subject)` in its turn: at the end of the read that brought it, or soon."""
        self._pieces.append((work, subject))
        if not self._due:
            self._due = True
            if not self._reads.reading:
                self._loop.call_soon(self._do, context=self._context)

    def _do(self) -> None:
        pieces = self._pieces
        try:
            while pieces:
                work, subject = pieces.popleft()
                work(subject)
        finally:
            self._due = bool(pieces)
            if pieces:  # one has raised after all: the others must not suffer
                self._loop.call_soon(self._do, context=self._context)
