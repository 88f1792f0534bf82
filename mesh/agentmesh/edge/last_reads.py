"""Reads of last messages for callers, who may be confined to some subjects.

The requests for such reads name the stream in their subject, and what is read in their body, which no permission sees. A user who
may not send them reads each message by a direct get whose own subject ends in what is read
(`$JS.API.DIRECT.GET.<stream>.<subject>`): a permission can confine that to an agent. It may be a few milliseconds stale, so it is
not the first choice, and no node or supervisor reads so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentmesh.edge.read import StoredMessage, get_last, get_last_direct, get_last_many, get_last_named
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotPermitted

AT_ONCE = 32
"""Messages that are read at the same time one by one."""


class LastReads:
    """Reads of one connection. What it may not do is tried once for each stream, until `forget`."""

    def __init__(self, transport: Transport) -> None:
        self._t = transport
        self._refused: set[tuple[str, str]] = set()

    def forget(self) -> None:
        """Another connection may be permitted more."""
        self._refused.clear()

    async def newest(self, stream: str, subject: str, *, direct: bool = False, timeout: float = 5.0) -> StoredMessage | None:
        """The last message on `subject`: from the leader, or with `direct` from any replica.

        Raises:
            NotPermitted: this user may not read that subject.
            Unavailable: as `agentmesh.edge.read.get_last`.
        """
        way = ("direct" if direct else "leader", stream)
        if way not in self._refused:
            try:
                return await (get_last_direct if direct else get_last)(self._t, stream, subject, timeout=timeout)
            except NotPermitted:
                self._refused.add(way)
        return await get_last_named(self._t, stream, subject, timeout=timeout)

    async def newest_of(self, stream: str, subjects: Sequence[str], *, timeout: float = 5.0) -> dict[str, StoredMessage]:
        """The last message on each of `subjects`, from any replica; one without a message is absent.

        Raises:
            As `newest`.
        """
        if ("many", stream) not in self._refused:
            try:
                return (await get_last_many(self._t, stream, subjects, timeout=timeout))[0]
            except NotPermitted:
                self._refused.add(("many", stream))
        found: dict[str, StoredMessage] = {}
        for start in range(0, len(subjects), AT_ONCE):
            some = subjects[start : start + AT_ONCE]
            read = await asyncio.gather(*(get_last_named(self._t, stream, subject, timeout=timeout) for subject in some))
            found.update((message.subject, message) for message in read if message is not None)
        return found
