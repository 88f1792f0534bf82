"""The codex backend: Codex CLI runs the agent's turns, on any node (docs/backends.md).

A turn is one child process (agentmesh_node.backends.codex.process). Between turns there is none: the session holds the thread's
id, and the names of its parts in the mesh's object store.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh.backend import Room, Stream, Turn
from agentmesh.edge.blobs import Blobs
from agentmesh.subjects import Subjects
from agentmesh_node.backends.codex import settings
from agentmesh_node.backends.codex.rollout import MemoryStore, Store, forget
from agentmesh_node.backends.codex.run import Ground, Run, Session
from agentmesh_node.tools import Toolbox


class CodexBackend:
    """A `Backend` whose turns are turns of Codex."""

    def __init__(
        self, agent: Agent[Any], options: Mapping[str, Any], *, room: Room | None = None, store: Store | None = None
    ) -> None:
        """
        Args:
            room: a directory for files, and the mesh; without it threads are kept only in this process.
            store: where threads are kept instead of in the mesh's object store.

        Raises:
            BackendError: an option cannot be used; `details["reason"]` is `bad_options`.
            InvalidAgent: the class's `tools` cannot be used.
        """
        self._own_directory = room is None
        directory = Path(room.directory if room is not None else tempfile.mkdtemp(prefix="agentmesh-codex-"))
        self._ground = Ground(
            settings.options_from(options),
            directory / "codex",
            _store(room) if store is None else store,
            Toolbox(agent),
            room.place if room is not None else nullcontext,
        )
        self._last: Run | None = None
        """The newest turn of this process."""

    async def start_session(self) -> Any:
        """Begin a thread; Codex is not started before the first prompt.

        Raises:
            BackendError: this node has no Codex (`not_installed`), or no key (`no_credentials`).
        """
        await self._ready()
        return msgspec.to_builtins(Session())

    async def resume_session(self, session: Any) -> Any:
        """Resume a thread. Its rollout is fetched when a turn needs it.

        Raises:
            BackendError: as `start_session`; `bad_session` if the value is not a session of this backend.
        """
        await self._ready()
        _session(session)
        return session

    async def _ready(self) -> None:
        settings.key_of(self._ground.options, os.environ)
        await asyncio.to_thread(settings.binary, os.environ)

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        """Begin a turn. A turn that fails leaves the session as it was: the thread goes on from its last whole turn."""
        value = _session(session)
        if turn.committed is not None:
            # The journal still has the session before this one: nothing goes until the turn is over.
            self._last = Run(self._ground, value, turn, self._last.made if self._last is not None else frozenset())
            return Stream(self._last.events(prompt), session)
        run = Run(self._ground, value, turn)
        # This session value is committed, so the parts that it lists as old can go; and so can those of a turn that failed.
        left = self._last.made - run.needed if self._last is not None else set()
        await forget(self._ground.store, sorted({*value.old, *left}))
        self._last = run
        return Stream(run.events(prompt), session)

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        """The session in the turn's result."""
        return result.get("thread", session)

    async def terminate_session(self, session: Any) -> None:
        """Remove the thread's stored parts, and the agent's files on this node."""
        value = _session(session)
        parts = value.rollout.parts if value.rollout is not None else ()
        await forget(self._ground.store, sorted({*value.old, *parts, *(self._last.made if self._last is not None else ())}))
        await self.release()
        await asyncio.to_thread(shutil.rmtree, self._ground.directory, ignore_errors=True)

    async def release(self) -> None:
        """Close sessions with MCP servers. Codex runs only during a turn."""
        await self._ground.toolbox.close()
        if self._own_directory:
            await asyncio.to_thread(shutil.rmtree, self._ground.directory.parent, ignore_errors=True)


def _store(room: Room | None) -> Store:
    if room is None or room.transport is None:
        return MemoryStore()
    return Blobs(room.transport, Subjects(room.root))


def _session(value: Any) -> Session:
    try:
        return msgspec.convert(value if value is not None else {}, Session)
    except msgspec.ValidationError as error:
        raise settings.refused("bad_session", f"the stored session is none of the codex backend's: {error}") from None
