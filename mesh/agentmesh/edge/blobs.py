"""Blobs: bodies that exceed the server's payload limit, in a NATS object store that any NATS client can read.

The layout is the object store's own: chunks on one subject, then a meta record (name, size, digest) on another. The meta
record is written last, so a blob is seen whole or not at all. Messages of strangers on these subjects are passed over: chunks
bear the blob's name in a header, and a meta record has a form.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import partial

import msgspec

from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.manage import purge
from agentmesh.edge.publish import store
from agentmesh.edge.read import StoredMessage, get_last, read_all, read_by_leader
from agentmesh.edge.transport import Transport
from agentmesh.errors import NotFound, Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import format_time

BLOB = "Mesh-Blob"
"""Header: name of the blob that a chunk is part of, or that holds a record's body."""
CHUNK_BYTES = 128 * 1024


class Damaged(Unavailable):
    """A blob lacks a part of what was put."""


class _Options(msgspec.Struct, kw_only=True):
    max_chunk_size: int = CHUNK_BYTES


class _Info(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    mtime: str = ""
    digest: str = ""
    deleted: bool = False
    options: _Options | None = None


_decode = msgspec.json.Decoder(_Info).decode
_encode = msgspec.json.Encoder().encode


class Blobs:
    """The blob store of one mesh."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        *,
        ambient: Ambient = SYSTEM,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._stream = subjects.blob_stream
        self._now = ambient.now
        self._new_id = new_id or partial(ambient.token, 16)

    async def put(self, data: bytes) -> str:
        """Store `data` under a new random name and return it.

        Raises:
            Unavailable, Uncertain: see `publish.store`. Nothing is visible under any name; chunks may remain.
        """
        name, chunk_id = self._new_id(), self._new_id()
        subject = self._subjects.blob_chunks(chunk_id)
        size = min(CHUNK_BYTES, self._t.max_payload)
        chunks = 0
        for start in range(0, len(data), size):
            # In order, each acknowledged: their order in the stream is the blob.
            await store(self._t, subject, data[start : start + size], headers={BLOB: name})
            chunks += 1
        info = _Info(
            name=name,
            bucket=self._subjects.blobs,
            nuid=chunk_id,
            size=len(data),
            chunks=chunks,
            mtime=format_time(self._now()),
            digest=_digest(data),
            options=_Options(max_chunk_size=size),
        )
        await store(self._t, self._meta(name), _encode(info), rollup=True)
        return name

    async def get(self, name: str) -> bytes:
        """The blob `name`.

        Raises:
            NotFound: there is none.
            Damaged: a part of it is gone.
            Unavailable: it cannot be read now.
        """
        info = await self._info(name)
        subject = self._subjects.blob_chunks(info.nuid)
        data = _joined(name, info, await read_all(self._t, self._stream, subject))
        if data is None:  # a replica may leave a chunk out: the leader decides
            data = _joined(name, info, [chunk async for chunk in read_by_leader(self._t, self._stream, subject)])
        if data is None:
            await self._info(name)  # deleted meanwhile: NotFound
            raise Damaged(f"blob {name} is damaged: its digest does not match; restore it, or try again")
        return data

    async def delete(self, name: str) -> None:
        """Remove the blob `name`, if it exists.

        Raises:
            Unavailable: try again.
        """
        try:
            info = await self._info(name)
        except NotFound:
            return
        # The meta record first, so that nobody finds a blob without its chunks. Names are random and never used again,
        # so no marker needs to stay.
        await purge(self._t, self._stream, self._meta(name))
        await purge(self._t, self._stream, self._subjects.blob_chunks(info.nuid))

    async def _info(self, name: str) -> _Info:
        message = await get_last(self._t, self._stream, self._meta(name))
        info = _info_in(message) if message is not None else None
        if message is not None and info is None:  # a stranger's: the blob's own lies behind it, unless that was rolled up
            messages = await read_all(self._t, self._stream, self._meta(name))
            info = next((found for m in reversed(messages) if (found := _info_in(m)) is not None), None)
        if info is None or info.deleted:
            raise NotFound(f"there is no blob {name}")
        return info

    def _meta(self, name: str) -> str:
        return self._subjects.blob_meta(base64.urlsafe_b64encode(name.encode()).decode())


def _joined(name: str, info: _Info, messages: list[StoredMessage]) -> bytes | None:
    """The body that the chunks in `messages` make up; None if it is not the one that was put."""
    own = [message for message in messages if message.headers.get(BLOB) == name]
    # The chunks of early programs bear no name, and strangers can hardly have come between them.
    data = b"".join(message.data for message in own or messages[: info.chunks])
    return data if len(data) == info.size and _digest(data) == info.digest else None


def _info_in(message: StoredMessage) -> _Info | None:
    """The meta record in a message; None if it is not of that form."""
    try:
        return _decode(message.data)
    except (msgspec.DecodeError, RecursionError):
        return None


def _digest(data: bytes) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
