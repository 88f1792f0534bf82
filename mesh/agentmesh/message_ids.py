"""Which message of an agent's lanes repeats which, by its `Nats-Msg-Id` (docs/architecture.md#repeated-ids).

The server drops a repetition within the duplicate window, but a server that was killed may have forgotten the id
(docs/nats.md#what-a-killed-server-forgets): then both copies are stored and acknowledged. So the owner of the agent compares the
ids itself: of mail that waits, runs or was consumed and is still stored. Ids of purged mail are in the ledger (`Ledger.seen`).
Values only, no I/O.
"""

from __future__ import annotations

from collections import defaultdict

from msgspec import structs

from agentmesh.errors import BadRequest
from agentmesh.subjects import LANES
from agentmesh.wire import Mail, parse_time

MAX_IDS = 16_384
"""Ids that are known of one agent in lanes of one kind; the oldest go first."""


class MessageIds:
    """The ids of one agent's mail, each with its first message. Mail must come in the order of its lane."""

    __slots__ = ("_first", "_remember_s")

    def __init__(self, remember_s: float) -> None:
        """`remember_s`: for how long a second message with an id repeats the first, by the server's times."""
        self._remember_s = remember_s
        self._first: defaultdict[str, dict[str, tuple[int, str | None]]] = defaultdict(dict)
        """By kind of lane and id: sequence and stored time of the first message."""

    def note(self, lane: str, seq: int, msg_id: str, stored: str | None) -> None:
        """Note the id of a message that is consumed."""
        self._repeated(LANES[lane].kind, seq, msg_id, stored)

    def marked(self, mail: tuple[Mail, ...]) -> tuple[Mail, ...]:
        """`mail`, in which each message that repeats another names it. Its ids are noted.

        Mail of other agents is known by its origin, for longer than any id, and passes as it is.
        """
        marked: list[Mail] | None = None
        for index, item in enumerate(mail):
            if item.msg_id is None or item.origin is not None:
                continue
            first = self._repeated(LANES[item.lane].kind, item.seq, item.msg_id, item.stored)
            if first is not None:
                marked = marked or list(mail)
                marked[index] = structs.replace(item, repeats=str(first))
        return mail if marked is None else tuple(marked)

    def _repeated(self, kind: str, seq: int, msg_id: str, stored: str | None) -> int | None:
        """The sequence of the message that this one repeats; None, and it is noted, if it is the first."""
        first = self._first[kind]
        known = first.get(msg_id)
        if known is not None:
            if known[0] >= seq:
                return None
            if self._in_time(known[1], stored):
                return known[0]
            del first[msg_id]  # it goes to the end: they are in the order in which they came
        first[msg_id] = seq, stored
        if len(first) > MAX_IDS:
            del first[next(iter(first))]
        return None

    def _in_time(self, first: str | None, second: str | None) -> bool:
        if first is None or second is None:
            return True
        try:
            return parse_time(second) <= parse_time(first) + self._remember_s
        except BadRequest:
            return True  # not the server's words
