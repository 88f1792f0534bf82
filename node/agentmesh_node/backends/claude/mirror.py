"""Stores the transcript of one run in the mesh, and marks in the journal how far it is stored."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import Fenced, MeshError
from agentmesh.steps import Steps
from agentmesh_node.backends.claude.store import JetStreamSessionStore
from agentmesh_node.backends.claude.transcript import blocks, calls_in, counts
from agentmesh_node.backends.own_loop import OwnLoop
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.inner_calls import take

if TYPE_CHECKING:
    from claude_agent_sdk import SessionKey, SessionStoreEntry

log = logging.getLogger("agentmesh.node")

STORED_S = 15.0
"""How long a call of an own tool waits until the transcript up to the call is stored."""


class Mirror:
    """The session store that the SDK gets.

    After each model answer and each set of tool results that is stored a step is committed. So the events shown to live readers
    so far stay valid, and the turn shows progress: the node's death after it is not charged to the prompt. Behind a step that has
    the results of all tools that the model has called the turn may go on elsewhere.
    """

    def __init__(self, store: JetStreamSessionStore, message: str, steps: Steps, loop: OwnLoop) -> None:
        """`message` is the uuid of the message to this run: entries before it were copied from an earlier session."""
        self._store = store
        self._message = message
        self._begun = False
        self._steps = steps
        self._loop = loop
        self._unanswered: set[str] = set()
        """Calls of the model that have no result."""
        self._settled: str | None = None
        """The newest entry, if it is the result of a tool and none is missing."""
        self._kept: str | None = None
        self._more = asyncio.Event()
        self._calls: set[str] = set()
        self._called = asyncio.Condition()
        self._marking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Mirror:
        self._marking = asyncio.create_task(self._mark(), name="mark a transcript")
        return self

    async def __aexit__(self, *raised: object) -> None:
        assert self._marking is not None
        await cancel_and_wait(self._marking, within_s=STORED_S)

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Store what Claude Code has written. If this raises the SDK repeats the call, and reports a final failure.

        Raises:
            Fenced, MailboxFull, Unavailable: as `JetStreamSessionStore.append`.
        """
        await self._store.append(key, entries)
        await self._note_calls(entries)
        if key.get("subpath"):  # a subagent's: its answers are no progress of the turn itself
            return
        for entry in entries:
            if self._begun and counts(entry):
                self._kept = entry.get("uuid")
                self._note_results(entry)
                self._more.set()
            self._begun = self._begun or entry.get("uuid") == self._message

    def _note_results(self, entry: SessionStoreEntry) -> None:
        self._unanswered.update(call.id for call in calls_in([entry]))
        message: Mapping[str, Any] = dict(entry).get("message") or {}  # type: ignore[assignment]
        results = {block.get("tool_use_id") for block in blocks(message) if block.get("type") == "tool_result"}
        self._unanswered -= results
        self._settled = self._kept if results and not self._unanswered else None

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        return await self._store.load(key)

    async def _note_calls(self, entries: Sequence[SessionStoreEntry]) -> None:
        found = {call.id for call in calls_in(entries)}
        if found:
            async with self._called:
                self._calls |= found
                self._called.notify_all()

    async def stored(self, call: str) -> bool:
        """Wait until the answer in which the model makes this call is stored; False if that takes too long."""
        try:
            async with asyncio.timeout(STORED_S), self._called:
                await self._called.wait_for(lambda: call in self._calls)
        except TimeoutError:
            return False
        return True

    async def _mark(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                kept = self._kept
                await take(self._steps, {"step": "kept", "entry": kept}, tracing.ended_call())
                if kept == self._settled:
                    await self._loop.settled()
        except Fenced:
            log.info("another owner runs the turn now: its transcript is not marked any more")
        except MeshError as error:
            log.warning("the transcript of a turn is not marked: %s", error)


@contextlib.asynccontextmanager
async def mirrored(
    store: JetStreamSessionStore | None, message: str, steps: Steps, loop: OwnLoop
) -> AsyncIterator[Mirror | None]:
    """The mirror of one run; None if there is no mesh to store its transcript."""
    if store is None:
        yield None
        return
    async with Mirror(store, message, steps, loop) as mirror:
        yield mirror
