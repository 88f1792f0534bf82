"""How much of a gateway a tenant may use at a time: a flood waits for itself, and others do not wait behind it.

A tenant is the prefix of the agents that are asked, and within it a caller. While agents of one prefix only are asked, each
caller has its places; as soon as others are asked too, all prefixes have equal parts of a few. So a flood is little at a time
where the others' requests go on: in the store, which all share. Each process does so for itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agentmesh.errors import MailboxFull
from agentmesh_node.gateway.requesters import Requester

AT_ONCE = 8
"""Requests of one caller that are served at the same time."""
TOGETHER = 4
"""Requests of all prefixes that are served at the same time while several are asked, in equal parts; of each at least one."""
MOST = 1000
"""Most requests of one caller that a process keeps, those that wait among them."""
ASKED_S = 1.0
"""A prefix has its part for one to two times this long after a request."""


class _Caller:
    """What one caller uses."""

    def __init__(self) -> None:
        self.served = 0
        self.kept = 0


class _Prefix:
    """What is used of one prefix."""

    def __init__(self) -> None:
        self.served = 0
        self.kept = 0
        self.waiting: dict[Requester, deque[asyncio.Future[None]]] = {}
        """Requests that have no place yet, by callers: the one that is served next comes first."""


class Shares:
    """The shares of all tenants that have requests in progress."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        """`now` is a monotonic clock; by default that of the loop."""
        self._now = now or asyncio.get_running_loop().time
        self._callers: dict[Requester, _Caller] = {}
        self._prefixes: dict[str, _Prefix] = {}
        self._asked: set[str] = set()
        self._asked_before: set[str] = set()
        self._turned = 0.0

    @asynccontextmanager
    async def place(self, prefix: str, requester: Requester) -> AsyncIterator[None]:
        """Serve a request inside: it begins when its prefix and its caller have a place for it.

        Raises:
            MailboxFull: the caller has too many requests in progress.
        """
        caller = self._callers.setdefault(requester, _Caller())
        if caller.kept >= MOST:
            raise MailboxFull(f"{MOST} requests of this caller are in progress here: send again when some are answered")
        share = self._prefixes.setdefault(prefix, _Prefix())
        caller.kept += 1
        share.kept += 1
        self._note(prefix)
        try:
            if requester in share.waiting or not self._has_place(share, caller):
                await self._wait(share, requester)
            else:
                self._take(share, caller)
            try:
                yield
            finally:
                share.served -= 1
                caller.served -= 1
        finally:
            caller.kept -= 1
            share.kept -= 1
            if not caller.kept:
                del self._callers[requester]
            if not share.kept:
                del self._prefixes[prefix]
            self._serve()

    def _note(self, prefix: str) -> None:
        now = self._now()
        if now - self._turned >= ASKED_S:
            self._asked_before = self._asked if now - self._turned < 2 * ASKED_S else set()
            self._asked, self._turned = {prefix}, now
            self._serve()  # there may be fewer than before
        self._asked.add(prefix)

    def _has_place(self, share: _Prefix, caller: _Caller) -> bool:
        if caller.served >= AT_ONCE:
            return False
        asked = len(self._asked | self._asked_before)
        return asked <= 1 or share.served < max(1, TOGETHER // asked)

    @staticmethod
    def _take(share: _Prefix, caller: _Caller) -> None:
        share.served += 1
        caller.served += 1

    async def _wait(self, share: _Prefix, requester: Requester) -> None:
        """Return with a place."""
        place = asyncio.get_running_loop().create_future()
        line = share.waiting.setdefault(requester, deque())
        line.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given the place, and is cancelled all the same
                share.served -= 1
                self._callers[requester].served -= 1
            elif place in line:
                line.remove(place)
                if not line and share.waiting.get(requester) is line:
                    del share.waiting[requester]
            raise

    def _serve(self) -> None:
        """Give the places that are free: in each prefix to its callers in turn."""
        for share in self._prefixes.values():
            while share.waiting:
                chosen = next((name for name in share.waiting if self._has_place(share, self._callers[name])), None)
                if chosen is None:
                    break
                line = share.waiting.pop(chosen)
                place = line.popleft()
                if line:
                    share.waiting[chosen] = line  # behind the other callers
                if not place.done():
                    self._take(share, self._callers[chosen])
                    place.set_result(None)
