"""Work of a node's agents, queued so that the same stage of many turns runs together, and so that no tenant waits for another's.

A turn goes through many stages, from its mail to its record. If agents were served one after the other, the code of each stage
would be pushed out of the processor's caches before the next turn needs it. So if one read brings mail for several agents, each
stage is done for all of them before the next stage begins. If only one agent has work, nothing waits.

The agents of one prefix share a place: of all prefixes that have work each gets one piece done in turn. And where agents of
several prefixes are loaded, the queue lets the loop read after some pieces of each: what comes for another prefix waits for those
alone, however many there are.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from agentmesh import names

SLICE = 32
"""Pieces of each prefix that are done before the loop reads again, where agents of several are loaded: those of some four turns.
With fewer, each stage is done for so few agents at a time that every turn costs more."""


class Reads(Protocol):
    """The part of a `Transport` that reports reads."""

    @property
    def reading(self) -> bool:
        """Whether messages of one read are being delivered now."""

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` at the end of each read. Returns its remover."""


class RunQueue:
    """The work of all agents of a node, by the prefixes of their names."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._loop = asyncio.get_running_loop()
        self._shares: dict[str, RunShare] = {}
        """Those of the agents that are loaded, by prefix."""
        self._line: deque[RunShare] = deque()
        """Those that have work, the next one first."""
        self._due = False
        """Whether the queue will be worked off: at the end of the current read, or in the next iteration of the loop."""
        self._called = False
        """Whether it will be in the next iteration."""
        self._cut = False
        """Whether a slice has ended before all was done."""
        self._context = contextvars.copy_context()
        """A context of its own: callbacks must not see the trace, the baggage or other variables of the turn that queued the
        first piece."""
        self._forget_reads = reads.on_read(self._on_read)

    def close(self) -> None:
        """No longer work at the end of reads."""
        self._forget_reads()

    def share(self, agent: str) -> RunShare:
        """Where the work of `agent` is put until it is left (`RunShare.leave`): its place is that of all agents of its prefix."""
        prefix = names.prefix_of(agent)
        share = self._shares.get(prefix)
        if share is None:
            share = self._shares[prefix] = RunShare(self, prefix)
        share.agents += 1
        return share

    def drop(self, prefix: str) -> None:
        """No agent of this prefix is loaded any more."""
        del self._shares[prefix]

    def join(self, share: RunShare) -> None:
        """`share` has work again."""
        self._line.append(share)
        if not self._due:
            self._due = True
            if not self._reads.reading:
                self._call()

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._loop.call_soon(self._run_called, context=self._context)

    def _on_read(self) -> None:
        if not self._cut:  # else it goes on as soon as all sockets are read
            self._run()

    def _run_called(self) -> None:
        self._called = False
        self._run()

    def _run(self) -> None:
        line = self._line
        try:
            while line and len(self._shares) < 2:  # nobody waits for another tenant
                pieces = line[0].pieces
                for _ in range(len(pieces)):
                    work, subject = pieces.popleft()
                    work(subject)
                if not pieces:
                    line.popleft().waits = False
            if line:
                self._do_in_turn(SLICE * len(line))
        finally:
            if line and not line[0].pieces:  # its last piece has raised
                line.popleft().waits = False
            self._due = self._cut = bool(line)
            if line:  # the loop reads meanwhile; or a piece has raised, and the others are done all the same
                self._call()

    def _do_in_turn(self, most: int) -> None:
        """Do at most so many pieces, of each share in turn."""
        line = self._line
        while line and most:
            most -= 1
            share = line[0]
            work, subject = share.pieces.popleft()
            if not share.pieces:
                line.popleft()
                share.waits = False
            elif len(line) > 1:
                line.rotate(-1)
            work(subject)


class RunShare:
    """The work of one prefix's agents, done in the order in which it is put: what a piece puts comes after those that wait."""

    __slots__ = ("_prefix", "_queue", "agents", "pieces", "waits")

    def __init__(self, queue: RunQueue, prefix: str) -> None:
        self._queue = queue
        self._prefix = prefix
        self.agents = 0
        """How many put their work here."""
        self.pieces: deque[tuple[Callable[[Any], None], Any]] = deque()
        self.waits = False
        """Whether it stands in the queue's line."""

    def put(self, work: Callable[[Any], None], subject: Any) -> None:
        """Call `work(subject)` after the pieces that wait: at the end of the current read, or in one of the loop's next
        iterations."""
        self.pieces.append((work, subject))
        if not self.waits:
            self.waits = True
            self._queue.join(self)

    def leave(self) -> None:
        """One of its agents puts nothing more. What it has put is done all the same."""
        self.agents -= 1
        if not self.agents:
            self._queue.drop(self._prefix)
