"""All that a stream ever stores, recorded while it runs.

Streams forget: consumed mail is purged, and a journal's snapshot drops the records before it. So each stored message is heard as
the server republishes it, over a connection to each server, and what was not heard (a republished copy can be lost) is read from
the stream, at once where a later sequence shows the gap and otherwise every second. Every stored message has a sequence, so what
was missed shows; the streams' own last sequence at the end proves that nothing is missing behind the last message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.manage import stream_state
from agentmesh.edge.read import StoredMessage, read, read_all
from agentmesh.edge.transport import Message
from agentmesh.errors import MeshError
from agentmesh.wire import parse_time

_GAP_S = 0.05
_TAIL_S = 1.0
_READ_S = 2.0
_log = logging.getLogger("chaos.tape")


class Tape:
    """One stream's messages by sequence."""

    def __init__(self, stream: str, filter: str, ears: Sequence[NatsTransport], clock: Callable[[], float]) -> None:
        self.stream = stream
        self.messages: dict[int, StoredMessage] = {}
        self.heard_at: dict[int, float] = {}
        """When each was first seen, by `clock`."""
        self.contradictions: list[str] = []
        """Sequences under which two different messages were seen: the store has broken its word."""
        self._filter = filter
        self._ears = ears
        self._clock = clock
        self._whole = 0
        """Everything up to this sequence is here, or known to be gone."""
        self._newest = 0

    async def listen(self, republished: str) -> None:
        """Hear what is stored from now on."""
        for ear in self._ears:
            await ear.subscribe(republished, self._hear)
            await ear.flush()

    def _hear(self, message: Message) -> None:
        headers = message.headers
        if headers.get("Nats-Stream") != self.stream:
            return  # another's, on a subject that both use
        time, previous = parse_time(headers["Nats-Time-Stamp"]), int(headers.get("Nats-Last-Sequence", 0))
        self._keep(StoredMessage(headers["Nats-Subject"], int(headers["Nats-Sequence"]), message.data, headers, time, previous))

    def _keep(self, message: StoredMessage) -> None:
        known = self.messages.setdefault(message.seq, message)
        if known is message:
            self.heard_at[message.seq] = self._clock()
            self._newest = max(self._newest, message.seq)
        elif (known.subject, known.data) != (message.subject, message.data):
            self.contradictions.append(f"{self.stream} {message.seq} was {known.data[:200]!r}, and is {message.data[:200]!r}")

    def _advance(self) -> None:
        while self._whole + 1 in self.messages:
            self._whole += 1

    async def follow(self) -> None:
        """Fill gaps, for ever."""
        turn, idle = 0, 0.0
        while True:
            await asyncio.sleep(_GAP_S)
            idle += _GAP_S
            self._advance()
            if self._whole == self._newest and idle < _TAIL_S:
                continue
            idle = 0.0
            ear = self._ears[turn % len(self._ears)]
            try:
                await self._read(ear)
            except MeshError as error:
                turn += 1  # that server is down, or knows no leader
                _log.debug("%s: %s", self.stream, error)

    async def _read(self, ear: NatsTransport) -> None:
        page = await read(ear, self.stream, self._filter, from_seq=self._whole + 1, timeout=_READ_S)
        for message in page.messages:
            self._keep(message)
        if page.messages:
            self._whole = max(self._whole, page.messages[-1].seq)

    async def finish(self) -> list[int]:
        """Read what is still missing, and compare all that the stream holds. Returns the sequences that were stored and never
        seen: dropped before they could be read."""
        error: MeshError | None = None
        for ear in self._ears:
            try:
                state = await stream_state(ear, self.stream, timeout=_READ_S)
                for message in await read_all(ear, self.stream, self._filter, timeout=_READ_S):
                    self._keep(message)
            except MeshError as refusal:
                error = refusal
                continue
            if state.last_seq < self._newest:
                self.contradictions.append(f"{self.stream} had {self._newest} messages, and ends at {state.last_seq}")
            return [seq for seq in range(1, state.last_seq + 1) if seq not in self.messages]
        assert error is not None
        raise error

    def in_order(self) -> list[StoredMessage]:
        """Everything that was seen, in the order of the stream."""
        return [self.messages[seq] for seq in sorted(self.messages)]
