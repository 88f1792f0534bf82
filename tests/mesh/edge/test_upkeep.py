"""Counting and removing single messages of a stream."""

from __future__ import annotations

from agentmesh.edge.jetstream import api, read_all, store
from agentmesh.edge.upkeep import count, delete
from support import Server, connected, run


def test_messages_are_counted_per_subject_and_removed_one_by_one(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await api(t, "STREAM.CREATE.UPKEEP", {"name": "UPKEEP", "subjects": ["upkeep.>"], "allow_direct": True})
            first = (await store(t, "upkeep.a", b"1")).seq
            second = (await store(t, "upkeep.a", b"2")).seq
            await store(t, "upkeep.b", b"3")
            assert await count(t, "UPKEEP", "upkeep.*") == {"upkeep.a": 2, "upkeep.b": 1}
            assert await count(t, "UPKEEP", "upkeep.none") == {}
            assert await delete(t, "UPKEEP", first) is True
            assert await delete(t, "UPKEEP", first) is False
            assert await delete(t, "UPKEEP", 99) is False
            assert [message.seq for message in await read_all(t, "UPKEEP", "upkeep.a")] == [second]

    run(main())
