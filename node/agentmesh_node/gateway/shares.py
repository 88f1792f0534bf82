"""How much of a gateway one caller may use at a time: a flood of one waits for itself, and others do not wait behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentmesh.errors import MailboxFull
from agentmesh_node.gateway.requesters import Requester

AT_ONCE = 8
"""Requests of one caller that are served at the same time; the others wait, in the order in which they came."""
MOST = 1000
"""Most requests of one caller that a process keeps, those that wait among them."""


class _Share:
    """What one caller uses."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(AT_ONCE)
        self.requests = 0


class Shares:
    """The shares of all callers that have requests in progress."""

    def __init__(self) -> None:
        self._of: dict[Requester, _Share] = {}

    @asynccontextmanager
    async def place(self, requester: Requester) -> AsyncIterator[None]:
        """Serve a request inside: it begins when the caller has a place.

        Raises:
            MailboxFull: it has too many requests in progress.
        """
        share = self._of.setdefault(requester, _Share())
        if share.requests >= MOST:
            raise MailboxFull(f"{MOST} requests of this caller are in progress here: send again when some are answered")
        share.requests += 1
        try:
            async with share.places:
                yield
        finally:
            share.requests -= 1
            if not share.requests:
                del self._of[requester]
