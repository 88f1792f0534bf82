"""A connection: held until it is closed, also when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

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


def test_a_variable_that_is_missing_is_named() -> None:
    async def check() -> None:
        connection = McpConnection(http("http://127.0.0.1:9", headers_from_env={"Authorization": "NO_SUCH"}), {}, deaf)
        with pytest.raises(BackendError, match="needs the variable NO_SUCH"):
            await connection.open()
        await connection.close()
        assert connection.over

    run(check(), 60)
