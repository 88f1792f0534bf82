"""Blobs, and that any NATS client can read them."""

from __future__ import annotations

import base64
import hashlib

import nats
import pytest

from agentmesh.edge.blobs import CHUNK_BYTES, Blobs, Damaged
from agentmesh.edge.failures import Uncertain
from agentmesh.edge.manage import delete, stream_state
from agentmesh.edge.publish import store
from agentmesh.edge.read import get_last
from agentmesh.edge.streams import ensure
from agentmesh.errors import NotFound
from agentmesh.subjects import Subjects
from support import Faulty, Server, connected, never_sent, run


def _bytes(size: int) -> bytes:
    block = hashlib.sha256(b"seed").digest()
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3_000_000])
def test_put_get_delete(server: Server, subjects: Subjects, size: int) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            blobs = Blobs(t, subjects)
            data = _bytes(size)
            name = await blobs.put(data)
            assert name != await blobs.put(data)
            assert await blobs.get(name) == data
            await blobs.delete(name)
            await blobs.delete(name)
            with pytest.raises(NotFound):
                await blobs.get(name)

    run(main())


def test_nothing_of_a_deleted_blob_stays(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            blobs = Blobs(t, subjects)
            await blobs.delete(await blobs.put(_bytes(500_000)))
            assert (await stream_state(t, subjects.blob_stream)).messages == 0

    run(main())


def test_other_clients_read_and_write_blobs(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            blobs = Blobs(t, subjects)
            data = _bytes(300_000)
            name = await blobs.put(data)
            client = await nats.connect(server.url)
            try:
                bucket = await client.jetstream().object_store(subjects.blobs)
                read = await bucket.get(name)
                assert read.data == data
                assert read.info.chunks == 3
                await bucket.put("theirs", data)
                assert await blobs.get("theirs") == data
                await bucket.delete("theirs")
                with pytest.raises(NotFound):
                    await blobs.get("theirs")
            finally:
                await client.close()

    run(main())


def test_a_put_that_fails_shows_nothing_and_damage_is_noticed(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as inner:
            t = Faulty(inner)
            await ensure(t, subjects)
            ids = iter(["name", "chunks", "other", "more"])
            blobs = Blobs(t, subjects, new_id=lambda: next(ids))
            t.inject(subjects.blob_chunks("chunks"), never_sent)
            with pytest.raises(Uncertain):
                await blobs.put(_bytes(200_000))
            with pytest.raises(NotFound):
                await blobs.get("name")
            assert await blobs.put(_bytes(200_000)) == "other"
            first = await get_last(t, subjects.blob_stream, subjects.blob_chunks("more"))
            assert first is not None
            await delete(t, subjects.blob_stream, first.seq)
            with pytest.raises(Damaged):
                await blobs.get("other")

    run(main())


def test_messages_of_strangers_do_not_damage_a_blob(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            ids = iter(["name", "chunks"])
            blobs = Blobs(t, subjects, new_id=lambda: next(ids))
            data = _bytes(300_000)
            await store(t, subjects.blob_chunks("chunks"), b"before")
            await blobs.put(data)
            await store(t, subjects.blob_chunks("chunks"), b"behind")
            meta = subjects.blob_meta(base64.urlsafe_b64encode(b"name").decode())
            for body in (b"", b"no JSON", b'{"name":"name"}', b"[" * 5000):
                await store(t, meta, body)
            assert await blobs.get("name") == data
            await store(t, meta, b"rolled up", rollup=True)
            with pytest.raises(NotFound):
                await blobs.get("name")

    run(main())
