"""Steps of long turns, on real servers and with processes that end by SIGKILL (docs/architecture.md#steps; case 215)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.subjects import Subjects
from live import steppers
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, run

LONG_S = 110
STEPS = 20
HERE = Path(steppers.__file__)


def program(*ops: Any) -> str:
    return msgspec.json.encode(ops).decode()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@contextlib.asynccontextmanager
async def stepping_mesh(server: Server, subjects: Subjects, logs: Path, *nodes: str) -> AsyncIterator[ProcessMesh]:
    """A mesh whose nodes serve `Doer`."""
    async with process_mesh(server, subjects, logs) as mesh:
        for node in nodes:
            await mesh.start("node", node, "--agents", str(HERE))
        yield mesh


@pytest.mark.case(215)
@pytest.mark.parametrize("deaths", [(1,), (10,), (20,), (4, 11, 17)], ids=str)
def test_a_turn_that_loses_its_node_goes_on_behind_its_last_step(
    server: Server, subjects: Subjects, tmp_path: Path, deaths: tuple[int, ...]
) -> None:
    async def main() -> None:
        nodes = [f"n{number}" for number in range(len(deaths) + 1)]
        async with stepping_mesh(server, subjects, tmp_path, *nodes) as mesh:
            calls = tmp_path / "calls"
            words = [f"call {number}" for number in range(1, STEPS + 1)]
            await mesh.client.start_agent("doer", kind="Doer", timeout=PATIENCE_S)
            prompt = program(*(["call", str(calls), word] for word in words))
            asked = asyncio.create_task(mesh.client.ask("doer", prompt, timeout=PATIENCE_S))
            for death in deaths:
                await eventually(lambda at=death: len(set(lines(calls))) >= at, PATIENCE_S, f"call {death}")
                victim = await mesh.host_of("doer")
                await victim.kill()
            answer = await asked
            assert msgspec.json.decode(answer.text) == words
            made = Counter(lines(calls))
            assert list(made) == words
            assert made.total() - STEPS <= len(deaths), f"more than the calls in flight were made again: {made}"
            state = (await mesh.client.status("doer", content=True, timeout=PATIENCE_S)).agent_state
            assert state["calls"] == words, "handle_stream_event sees the whole turn again"
            records = [r.kind for r in await mesh.records("doer")]
            assert records.count("step") == STEPS and records.count("turn") == 1
            assert records.count("trying") <= len(deaths)

    run(main(), LONG_S)
