"""A wait for a stored outcome ends with it, or with the process that waits."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.edge.publish import store
from agentmesh.edge.streams import ensure
from agentmesh.errors import Unavailable
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome, encode_outcome
from agentmesh_node.gateway.outcome_waits import OutcomeWaits
from support import Server, connected, eventually, run


def test_a_wait_ends_with_the_outcome_with_its_time_or_with_its_process(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            waits = OutcomeWaits(t, subjects)
            body = encode_outcome(Outcome(agent="coder", ref="1", ok=True, text="done"))
            waiting = asyncio.ensure_future(waits.outcome("coder", "1", "coder.a", 60))
            await eventually(lambda: waits._woken)
            await store(t, subjects.result("coder", "1"), body)
            found = await waiting
            assert found is not None and found.body == body and await waits.is_there("coder", "1", "coder.a")
            with pytest.raises(Unavailable):
                await waits.outcome("coder", "2", "coder.b", 0.0)
            waiting = asyncio.ensure_future(waits.outcome("coder", "2", "coder.b", 60))
            await eventually(lambda: waits._woken)
            waits.close()
            assert await waiting is None

    run(main())
