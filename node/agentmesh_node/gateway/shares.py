"""How much of a gateway a tenant may use at a time: a flood waits for itself, and others do not wait behind it.

A tenant is the prefix of the agents that are asked, and within it a caller. While agents of one prefix only are asked, each
caller has its places; as soon as others are asked too, all prefixes have equal parts of a few. So a flood is little at a time
where the others' requests go on: in the store, which all share. Each process does so for itself.

Agents that the mesh does not have are nobody's (`NOBODYS`), whatever they are called: requests for them have one part together,
and make no other part smaller.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from agentmesh.errors import MailboxFull
from agentmesh_node.gateway.requesters import Requester

AT_ONCE = 8
"""Requests of one caller that are served at the same time."""
TOGETHER = 4
"""Requests of all prefixes that are served at the same time while several are asked, in equal parts; of each at least one."""
MOST = 1000
"""Most requests of one caller that a process keeps, those that wait among them."""
NOBODYS = ""
"""The prefix of agents that do not exist."""
ASKED_S = 1.0
"""A prefix has its part for one to two times this long after a request."""


class _Prefix:
    """What is used of one prefix. Requests that have no place yet stand in lines, one of each caller."""

    def __init__(self, *, counted: bool) -> None:
        self.counted = counted
        """Whether it is a tenant's, which the parts are counted by."""
        self.served = 0
        self.kept = 0
        self.lines: dict[Requester, deque[asyncio.Future[None]]] = {}
        """Lines of callers that have places left: the one that is served next comes first."""
        self.held: dict[Requester, deque[asyncio.Future[None]]] = {}
        """Lines of callers that use all their places."""

    def line(self, requester: Requester) -> deque[asyncio.Future[None]] | None:
        return self.lines.get(requester) or self.held.get(requester)

    def drop(self, requester: Requester, place: asyncio.Future[None]) -> None:
        """Forget a request that waits no longer."""
        for lines in (self.lines, self.held):
            line = lines.get(requester)
            if line is not None and place in line:
                line.remove(place)
                if not line:
                    del lines[requester]


class _Caller:
    """What one caller uses."""

    def __init__(self) -> None:
        self.served = 0
        self.kept = 0
        self.held_in: dict[_Prefix, None] = {}
        """The prefixes in which its line is held, in that order."""


class Shares:
    """The shares of all tenants that have requests in progress."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        """`now` is a monotonic clock; by default that of the loop."""
        self._now = now or asyncio.get_running_loop().time
        self._callers: dict[Requester, _Caller] = {}
        self._prefixes: dict[str, _Prefix] = {}
        self._asked: set[str] = set()
        self._asked_before: set[str] = set()
        self._together = 0
        """How many prefixes are in one of both."""
        self._turned = 0.0

    @asynccontextmanager
    async def place(self, prefix: str, requester: Requester) -> AsyncIterator[None]:
        """Serve a request inside: it begins when its prefix and its caller have a place for it.

        Args:
            prefix: that of the agent which is asked; `NOBODYS` if the agent does not exist.

        Raises:
            MailboxFull: the caller has too many requests in progress.
        """
        caller = self._callers.setdefault(requester, _Caller())
        if caller.kept >= MOST:
            raise MailboxFull(f"{MOST} requests of this caller are in progress here: send again when some are answered")
        share = self._prefixes.get(prefix)
        if share is None:
            share = self._prefixes[prefix] = _Prefix(counted=prefix != NOBODYS)
        caller.kept += 1
        share.kept += 1
        if share.counted:
            self._note(prefix)
        try:
            if share.line(requester) is None and caller.served < AT_ONCE and share.served < self._part(share):
                self._take(share, caller)
            else:
                await self._wait(share, requester, caller)
            try:
                yield
            finally:
                self._leave(share, requester, caller)
        finally:
            caller.kept -= 1
            share.kept -= 1
            if not caller.kept:
                del self._callers[requester]
            if not share.kept:
                del self._prefixes[prefix]

    def _note(self, prefix: str) -> None:
        now = self._now()
        if now - self._turned >= ASKED_S:
            self._asked_before = self._asked if now - self._turned < 2 * ASKED_S else set()
            self._asked, self._turned = {prefix}, now
            self._together = len(self._asked | self._asked_before)
            self._serve(self._prefixes.values())  # there may be fewer than before, so their parts are larger
        elif prefix not in self._asked:
            self._asked.add(prefix)
            self._together += prefix not in self._asked_before

    def _part(self, share: _Prefix) -> float:
        """How many requests of a prefix are served at the same time."""
        asked = self._together + (not share.counted)
        return math.inf if asked <= 1 else max(1, TOGETHER // asked)

    @staticmethod
    def _take(share: _Prefix, caller: _Caller) -> None:
        share.served += 1
        caller.served += 1

    def _leave(self, share: _Prefix, requester: Requester, caller: _Caller) -> None:
        """A request has left its place: serve where that is what others wait for."""
        share.served -= 1
        caller.served -= 1
        held = list(caller.held_in)
        caller.held_in.clear()
        for prefix in held:
            prefix.lines[requester] = prefix.held.pop(requester)
        self._serve(sorted(dict.fromkeys((*held, share)), key=lambda one: one.served))

    async def _wait(self, share: _Prefix, requester: Requester, caller: _Caller) -> None:
        """Return with a place."""
        place = asyncio.get_running_loop().create_future()
        line = share.line(requester)
        if line is None:
            line = share.lines[requester] = deque()
        line.append(place)
        self._serve((share,))  # of a caller that uses all its places the line is held
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given the place, and is cancelled all the same
                self._leave(share, requester, caller)
            else:
                share.drop(requester, place)
                if requester not in share.held:
                    caller.held_in.pop(share, None)
            raise

    def _serve(self, shares: Iterable[_Prefix]) -> None:
        """Give the places that are free in `shares`: in each prefix to its callers in turn.

        Behind it no prefix has both a free place and a line that is not held, so only what a place was freed for is looked at."""
        for share in shares:
            part = self._part(share) if share.lines else 0
            while share.lines and share.served < part:
                requester = next(iter(share.lines))
                line, caller = share.lines.pop(requester), self._callers[requester]
                if caller.served >= AT_ONCE:
                    share.held[requester] = line
                    caller.held_in[share] = None
                    continue
                place = line.popleft()
                if line:
                    share.lines[requester] = line  # behind the other callers
                if not place.done():
                    self._take(share, caller)
                    place.set_result(None)
