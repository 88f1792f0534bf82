"""What the server refuses or leaves unanswered is counted, by code."""

from __future__ import annotations

import pytest

from agentmesh.edge import store_errors
from agentmesh.edge.api import call_api
from agentmesh.edge.failures import ApiError, WrongLastSequence
from agentmesh.edge.publish import store
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout
from agentmesh.errors import StoreFull
from agentmesh.subjects import Subjects
from support import Server, connected, run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestTimeout(), "timeout"),
        (NoResponders("x"), "no_responders"),
        (Disconnected(), "disconnected"),
        (ApiError(400, 1, "no"), "api_error"),
        (StoreFull("the disk is full"), "store_full"),
    ],
)
def test_errors_are_counted_by_code(error: Exception, code: str) -> None:
    before = store_errors.counts.get(code, 0)
    assert store_errors.counted(error) is error
    assert store_errors.counts[code] == before + 1


def test_calls_that_a_server_refuses_are_counted_and_a_lost_comparison_is_not(server: Server, subjects: Subjects) -> None:
    async def main() -> dict[str, int]:
        before = dict(store_errors.counts)
        async with connected(server.url) as transport:
            with pytest.raises(ApiError, match="not found"):
                await call_api(transport, "STREAM.INFO.NONE")  # an answer like any other
            with pytest.raises(ApiError, match="does not match"):
                await call_api(transport, "STREAM.CREATE.NONE", {"name": "OTHER"})
            stream = f"COUNTED_{subjects.root}"
            await call_api(transport, f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [f"{subjects.root}.counted"]})
            await store(transport, f"{subjects.root}.counted", b"1")
            with pytest.raises(WrongLastSequence):
                await store(transport, f"{subjects.root}.counted", b"2", expected=0)
            await call_api(transport, f"STREAM.DELETE.{stream}")
        return {code: count - before.get(code, 0) for code, count in store_errors.counts.items() if count != before.get(code, 0)}

    assert run(main()) == {"api_error": 1}
