"""Claude Code's transcripts in JetStream: a `SessionStore` of claude-agent-sdk (docs/design/008-claude-sessions.md).

One subject holds one transcript, as lines of JSON in the order in which they were appended. A message holds as many lines as fit;
a larger line takes several messages, and counts only once all of them are there. An append names the sequence that it follows:
so its fate can be told after a lost acknowledgement, and a transcript has only one writer.

A message without the header `Mesh-Record` is not the mesh's, and is passed over (docs/architecture.md#foreign-messages).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentmesh.edge.api import call_api
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.failures import Uncertain, WrongLastSequence
from agentmesh.edge.manage import count_up_to_now, purge
from agentmesh.edge.publish import store
from agentmesh.edge.read import StoredMessage, get_last, get_last_many, read_by_leader, read_counted
from agentmesh.edge.transport import Transport
from agentmesh.errors import Fenced, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import HEADER_ROOM

if TYPE_CHECKING:
    from claude_agent_sdk import SessionKey, SessionListSubkeysKey, SessionStoreEntry, SessionStoreListEntry

log = logging.getLogger("agentmesh.node")

RECORD = "Mesh-Record"
"""Header: the message's random id, by which its writer recognises it."""
PART = "Mesh-Part"
"""Header: `k/n`, the position of this message among those of one large line."""
MAIN = "main"
SUB = "sub/"
TRIES = 5
"""How often a message is sent whose acknowledgement was lost."""


class JetStreamSessionStore:
    """The transcripts of one agent.

    Args:
        project: store everything under this project. The SDK's own project key comes from the working directory, which differs
            from node to node.
        ambient: where random ids come from.
    """

    def __init__(
        self, transport: Transport, subjects: Subjects, agent: str, *, project: str | None = None, ambient: Ambient = SYSTEM
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._agent = agent
        self._project = project
        self._token = ambient.token
        self._stream = subjects.stream("session")
        self._last: dict[str, int] = {}
        """Sequence of the last message of each transcript that this store has appended to."""
        self._appending = asyncio.Lock()

    # --- for the SDK --------------------------------------------------------------------------------------------------
    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Append `entries`, in order; returns when they are stored.

        Raises:
            Fenced: somebody else appends to this transcript too.
            MailboxFull: the transcript is as long as the stream allows.
            Unavailable: the server cannot be reached now, or gives no verdict.
        """
        if not entries:
            return
        subject = self._subject(key)
        async with self._appending:
            for body, headers in _messages(entries, self._t.max_payload - HEADER_ROOM):
                await self._put(subject, body, headers)

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """The entries of a transcript, each once; None if there is no transcript.

        Raises:
            Unavailable: it cannot be read now.
        """
        subject = self._subject(key)
        wanted, end = await count_up_to_now(self._t, self._stream, subject)
        messages = await read_counted(self._t, self._stream, subject, wanted, end)
        own = [message for message in messages if RECORD in message.headers]
        if len(own) < len(messages):
            count = len(messages) - len(own)
            log.warning("%d messages are not the mesh's and are passed over", count, extra={"transcript": subject})
        return _entries(own) if own else None

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """The sessions of a project, with the time of their newest entry (milliseconds since 1970)."""
        subjects = await self._parts(self._subjects.session(self._agent, self._filed(project_key), part=MAIN))
        found, _ = await get_last_many(self._t, self._stream, subjects) if subjects else ({}, 0)
        return [
            {"session_id": self._subjects.parse_session(subject)[1], "mtime": int(last.time * 1000)}
            for subject, last in found.items()
        ]

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """The subpaths of a session: the transcripts of its subagents."""
        pattern = self._subjects.session(self._agent, self._filed(key["project_key"]), key["session_id"])
        parts = [self._subjects.parse_session(subject)[2] for subject in await self._parts(pattern)]
        return [part.removeprefix(SUB) for part in parts if part != MAIN]

    async def delete(self, key: SessionKey) -> None:
        """Remove a session with all its parts, or the one part that `key` names. It is no error if nothing is there.

        Raises:
            Unavailable: try again.
        """
        part = SUB + key["subpath"] if key.get("subpath") else "*"
        await self._purge(self._subjects.session(self._agent, self._filed(key["project_key"]), key["session_id"], part))

    # --- for the backend ---------------------------------------------------------------------------------------------
    async def sessions(self) -> set[tuple[str, str]]:
        """Project and id of every session of the agent, whatever its project."""
        subjects = await self._parts(self._subjects.session(self._agent))
        return {self._subjects.parse_session(subject)[:2] for subject in subjects}

    async def remove(self, project: str, session: str = "*") -> None:
        """Remove a session with all its parts, or every session of a project.

        Raises:
            Unavailable: try again.
        """
        await self._purge(self._subjects.session(self._agent, project, session))

    # --- parts --------------------------------------------------------------------------------------------------------
    def _filed(self, project: str) -> str:
        return self._project if self._project is not None else project

    def _subject(self, key: SessionKey) -> str:
        subpath = key.get("subpath")
        return self._subjects.session(
            self._agent, self._filed(key["project_key"]), key["session_id"], SUB + subpath if subpath else MAIN
        )

    async def _parts(self, pattern: str) -> list[str]:
        """The subjects under `pattern` that hold messages."""
        found: list[str] = []
        while True:
            reply = await call_api(self._t, f"STREAM.INFO.{self._stream}", {"subjects_filter": pattern, "offset": len(found)})
            info: dict[str, Any] = msgspec.json.decode(reply)
            page = info["state"].get("subjects") or {}
            found += page
            if not page or len(found) >= info.get("total", 0):
                return found

    async def _purge(self, pattern: str) -> None:
        await purge(self._t, self._stream, pattern)
        self._last.clear()

    async def _put(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        """Store one message after the last one that this store knows."""
        record = headers[RECORD] = self._token(8)
        if subject not in self._last:
            newest = await get_last(self._t, self._stream, subject)
            self._last[subject] = newest.seq if newest is not None else 0
        expected = self._last[subject]
        for _ in range(TRIES):
            try:
                stored = await store(self._t, subject, body, headers=headers, expected=expected)
                self._last[subject] = stored.seq
                return
            except (Uncertain, WrongLastSequence):
                own, end = await self._behind(subject, expected)
                if record in own:
                    self._last[subject] = end
                    return
                if own or end < expected:
                    del self._last[subject]
                    raise Fenced(f"another process appends to the transcript {subject} as well") from None
                expected = end
        raise Unavailable(f"the server gives no verdict on an append to {subject}; try again")

    async def _behind(self, subject: str, known: int) -> tuple[set[str], int]:
        """The ids of the mesh's own messages behind the sequence `known`, and the transcript's last sequence."""
        newest = await get_last(self._t, self._stream, subject)
        end, own = newest.seq if newest is not None else 0, set[str]()
        if end > known:
            async for message in read_by_leader(self._t, self._stream, subject, from_seq=known + 1):
                own |= {message.headers[RECORD]} if RECORD in message.headers else set()
                end = message.seq
        return own, end


def _messages(entries: Sequence[SessionStoreEntry], limit: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies and headers that hold `entries`; none exceeds `limit` bytes."""
    lines: list[bytes] = []
    size = 0
    for entry in entries:
        line = json.dumps(entry, separators=(",", ":")).encode()
        if lines and size + len(line) + 1 > limit:
            yield b"\n".join(lines), {}
            lines, size = [], 0
        if len(line) > limit:
            count = -(-len(line) // limit)
            for place in range(count):
                yield line[place * limit : (place + 1) * limit], {PART: f"{place + 1}/{count}"}
        else:
            lines.append(line)
            size += len(line) + 1
    if lines:
        yield b"\n".join(lines), {}


def _entries(messages: Sequence[StoredMessage]) -> list[SessionStoreEntry]:
    """The entries in `messages`. A line in parts counts if it is whole; an entry that was appended twice counts once."""
    found: list[SessionStoreEntry] = []
    seen: set[str] = set()
    parts: list[bytes] = []
    for message in messages:
        lines = message.data.split(b"\n")
        if PART in message.headers:
            place, _, count = message.headers[PART].partition("/")
            # The first part begins a line anew: the parts before it were given up half-way.
            parts = [*(parts if place != "1" else []), message.data]
            if place != count or len(parts) != int(count):
                continue
            lines, parts = [b"".join(parts)], []
        for line in lines:
            entry: SessionStoreEntry = json.loads(line)
            own_id = entry.get("uuid")
            if own_id is None or own_id not in seen:
                found.append(entry)
            if own_id is not None:
                seen.add(own_id)
    return found


__all__ = ["JetStreamSessionStore"]
