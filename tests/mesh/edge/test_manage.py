"""Counting, removing and purging messages of a stream."""

from __future__ import annotations

import pytest

from agentmesh.edge.address import js_api
from agentmesh.edge.api import call_api
from agentmesh.edge.connection import connect
from agentmesh.edge.manage import count, delete, purge, stream_state
from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.errors import NoLeader
from agentmesh.subjects import Subjects
from mesh.edge.streams_made import make_stream
from support import Server, connected, run


def test_purge_below_the_first_sequence_removes_nothing(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            await store(t, f"{root}.a")
            assert await purge(t, stream, f"{root}.a", below=0) == 0
            assert await purge(t, stream, f"{root}.a", below=1) == 0
            assert await purge(t, stream, f"{root}.a") == 1

    run(main())


def test_messages_are_counted_per_subject_and_removed_one_by_one(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await call_api(t, "STREAM.CREATE.UPKEEP", {"name": "UPKEEP", "subjects": ["upkeep.>"], "allow_direct": True})
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


@pytest.mark.case(591)
def test_where_no_jetstream_answers_in_the_domain_that_was_named_the_error_names_it(server: Server, subjects: Subjects) -> None:
    async def error_of(api: str) -> str:
        transport = await connect([server.url], name="test", api=api)
        try:
            with pytest.raises(NoLeader) as caught:
                await stream_state(transport, subjects.stream("mail"))
        finally:
            await transport.close()
        return str(caught.value)

    error = run(error_of(js_api("hub")))
    assert f"no JetStream answers at $JS.hub.API.STREAM.INFO.{subjects.stream('mail')} (--domain, MESH_DOMAIN)" in error
