"""A thread's rollout: the file in which Codex keeps a conversation, and its copy in the mesh's object store.

Codex only ever appends to the file, so the copy is a list of parts: each save stores the new bytes, compressed. When there are
many parts they are joined into one. With the list (`Rollout`, a JSON value) any node can restore the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from agentmesh.errors import BackendError, InfrastructureError, NotFound, Unavailable

MAX_PARTS = 16
"""Most parts after a save; with one more, all are joined into one."""
SETTLE_S = 2.0
"""How long the file may lag behind Codex's notifications."""
POLL_S = 0.02


class Store(Protocol):
    """A store for parts (agentmesh.edge.blobs.Blobs)."""

    async def put(self, data: bytes) -> str: ...
    async def get(self, name: str) -> bytes: ...
    async def delete(self, name: str) -> None: ...


class MemoryStore:
    """Parts in memory: for a backend outside a mesh."""

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}
        self._names = itertools.count(1)

    def __len__(self) -> int:
        return len(self._parts)

    async def put(self, data: bytes) -> str:
        name = f"part-{next(self._names)}"
        self._parts[name] = data
        return name

    async def get(self, name: str) -> bytes:
        try:
            return self._parts[name]
        except KeyError:
            raise NotFound(f"there is no part {name}") from None

    async def delete(self, name: str) -> None:
        self._parts.pop(name, None)


class Rollout(msgspec.Struct, frozen=True):
    """The path of a thread's file, and the parts in the object store that hold it."""

    path: str
    """Relative to CODEX_HOME."""
    parts: tuple[str, ...] = ()


class File:
    """The rollout of the running turn, on this machine."""

    def __init__(self, home: Path, store: Store, strike: Callable[[bytes], bytes]) -> None:
        """
        Args:
            strike: strikes out of data what must not be stored.
        """
        self._home = home
        self._store = store
        self._strike = strike
        self._saved = b""
        """The content of the parts."""
        self._rollout = Rollout("")
        self.made: set[str] = set()
        """The parts that were stored by this run of the turn."""

    @property
    def saved(self) -> Rollout:
        """The newest copy."""
        return self._rollout

    async def restore(self, rollout: Rollout) -> None:
        """Restore the file from `rollout`.

        Raises:
            NotFound: a part is gone.
            Unavailable: it cannot be read now.
        """
        packed = await asyncio.gather(*(self._store.get(name) for name in rollout.parts))
        self._saved = await asyncio.to_thread(self._write, rollout.path, packed)
        self._rollout = rollout

    def _write(self, path: str, packed: Sequence[bytes]) -> bytes:
        place = (self._home / path).resolve()
        if not place.is_relative_to(self._home.resolve()):
            raise BackendError(f"a rollout cannot lie at {path}", details={"reason": "bad_session", "retryable": False})
        data = b"".join(map(zlib.decompress, packed))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return data

    async def save(self, path: str, *, counted: int | None = None) -> Rollout | None:
        """Store the new bytes of the file at `path`, and return the rollout.

        With `counted` it waits until the file has that many answers of the model; None if it does not have them in time.

        Raises:
            Unavailable: it cannot be stored now, or the file is missing.
        """
        data = await self._whole(path, counted)
        if data is None:
            return None
        if data == self._saved and path == self._rollout.path:
            return self._rollout
        whole = not data.startswith(self._saved) or len(self._rollout.parts) >= MAX_PARTS or path != self._rollout.path
        new = data if whole else data[len(self._saved) :]
        parts = () if whole else self._rollout.parts
        name = await self._store.put(await asyncio.to_thread(zlib.compress, new))
        self.made.add(name)
        self._saved, self._rollout = data, Rollout(path, (*parts, name))
        return self._rollout

    async def _whole(self, path: str, counted: int | None) -> bytes | None:
        try:
            async with asyncio.timeout(SETTLE_S):
                while True:
                    data = await asyncio.to_thread(self._read, path)
                    if counted is None or answers(data) >= counted:
                        return data
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return None
        except OSError as error:
            raise Unavailable(f"the thread's rollout cannot be read: {error}") from None

    def _read(self, path: str) -> bytes:
        data = (self._home / path).read_bytes()
        return self._strike(data[: data.rfind(b"\n") + 1])

    def answers(self) -> int:
        """How many answers of the model the saved file has."""
        return answers(self._saved)


def answers(data: bytes) -> int:
    """How many answers of the model, each with the results of its tools, a rollout has."""
    return data.count(b'"type":"token_count"')


async def forget(store: Store, names: Sequence[str]) -> None:
    """Delete parts that are no longer needed. A part that cannot be deleted now stays, which does no harm."""
    for name in names:
        with contextlib.suppress(InfrastructureError):
            await store.delete(name)
