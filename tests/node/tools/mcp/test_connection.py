"""A connection: held until it is closed, also when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from agentmesh.errors import BackendError
from agentmesh_node.tools.mcp.connection import McpConnection
from node.tools.mcp.serving import alive, http, pids, stdio
from support import eventually, run

pytestmark = pytest.mark.processes


async def deaf(message: Any) -> None:
    return None


def test_what_was_begun_for_nobody_ends_by_itself(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    ended: list[bool] = []

    async def check() -> None:
        connection = McpConnection(stdio(notes), {}, deaf)
        opening = asyncio.create_task(connection.open(lambda: ended.append(True)))
        await eventually(lambda: pids(notes), what="the child")
        opening.cancel()
        await asyncio.wait((opening,))
        assert not connection.alive
        await eventually(lambda: ended, what="its end")
        assert connection.over
        assert not any(alive(pid) for pid in pids(notes))

    run(check(), 60)


@pytest.mark.case(514)
def test_what_is_logged_of_it_is_not_the_turns_that_opened_it(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Seen(McpConnection):
        async def _connect(self, stack: Any) -> Any:
            seen.append(trace.get_current_span().get_span_context().is_valid)
            raise RuntimeError("on purpose")

    async def check() -> None:
        turn = trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1))
        with trace.use_span(trace.NonRecordingSpan(turn)), pytest.raises(RuntimeError, match="on purpose"):
            await Seen(stdio(tmp_path / "notes"), {}, deaf).open()

    run(check(), 60)
    assert seen == [False]


def test_a_variable_that_is_missing_is_named() -> None:
    async def check() -> None:
        connection = McpConnection(http("http://127.0.0.1:9", headers_from_env={"Authorization": "NO_SUCH"}), {}, deaf)
        with pytest.raises(BackendError, match="needs the variable NO_SUCH"):
            await connection.open()
        await connection.close()
        assert connection.over

    run(check(), 60)
