"""What time the leader of a stream has."""

from __future__ import annotations

import time

import pytest

from agentmesh.edge.failures import ApiError
from agentmesh.edge.publish import store
from agentmesh.edge.read import get_last
from agentmesh.edge.server_time import compare_clocks
from agentmesh.server_clock import WIDEST_S, ServerClock
from agentmesh.subjects import Subjects
from mesh.edge.streams_made import make_stream
from support import Server, connected, run


def test_the_servers_answer_is_by_the_clock_that_stamps_messages(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            stream, root = await make_stream(t, subjects)
            clock = ServerClock(time.monotonic, lambda: 0.0)
            await compare_clocks(t, stream, clock, monotonic=time.monotonic)
            before = clock.now()
            await store(t, f"{root}.a")
            stored = await get_last(t, stream, f"{root}.a")
            assert clock.known and stored is not None
            assert before - WIDEST_S <= stored.time <= clock.now() + WIDEST_S

    run(main())


def test_a_stream_that_is_not_there_has_no_time(server: Server) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            clock = ServerClock(time.monotonic, time.time)
            with pytest.raises(ApiError):
                await compare_clocks(t, "NONE", clock, monotonic=time.monotonic)
            assert not clock.known

    run(main())
