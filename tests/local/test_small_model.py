"""A real model behind the `anthropic` and `openai` backends: its answers are kept, its calls run, a kill costs neither."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.subjects import Subjects
from agentmesh_client import Text
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from local import agents
from local.model import INSTALLED, MISSING
from support import Server, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason=MISSING)]

LONG_S = 110
AGENTS = str(Path(agents.__file__))
SDKS = ("anthropic", "openai", "agentmesh_node.backends.anthropic.backend", "agentmesh_node.backends.openai.backend")
WAYS = ("", "Chat", "Responses")
"""The ways to ask it, by the beginnings of the names of their agents' classes: the Messages API has none."""
CALL = '<tool_call> {"name": "get_weather", "arguments": {"city": "Paris"}} </tool_call>'


@contextlib.asynccontextmanager
async def talking(server: Server, subjects: Subjects, logs: Path, address: str) -> AsyncIterator[ProcessMesh]:
    """A supervisor and two nodes whose agents speak by the model at `address`."""
    env = {
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_API_KEY": "none",
        "OPENAI_BASE_URL": f"{address}/v1",
        "TOOL_RUNS": str(logs / "runs"),
    }
    async with process_mesh(server, subjects, logs, env=env, modules=SDKS) as mesh:
        for own_id in ("n1", "n2"):
            await mesh.start("node", own_id, "--agents", AGENTS)
        yield mesh


@pytest.mark.parametrize("way", WAYS)
def test_it_knows_in_its_second_turn_what_the_first_was_about(
    server: Server, subjects: Subjects, tmp_path: Path, address: str, way: str
) -> None:
    async def main() -> None:
        async with talking(server, subjects, tmp_path, address) as mesh:
            await mesh.client.start_agent("talker", kind=f"{way}Talker", timeout=PATIENCE_S)
            first = await mesh.client.ask("talker", "What is the capital of France? Answer in one sentence.", timeout=PATIENCE_S)
            second = await mesh.client.ask("talker", "And of Italy?", timeout=PATIENCE_S)
            assert "Paris" in (first.text or "")
            assert "Rome" in (second.text or "")
            assert first.usage is not None
            assert second.usage is not None
            assert second.usage["input_tokens"] > first.usage["input_tokens"], "the first turn is in what it is asked"
            assert second.usage["output_tokens"] > 0

    run(main(), LONG_S)


@pytest.mark.case(762)
def test_its_answer_is_of_the_type_that_the_agent_declares(
    server: Server, subjects: Subjects, tmp_path: Path, address: str
) -> None:
    async def main() -> None:
        async with talking(server, subjects, tmp_path, address) as mesh:
            await mesh.client.start_agent("geographer", kind="ChatGeographer", timeout=PATIENCE_S)
            found = await mesh.client.ask(
                "geographer", "What is the capital of France?", answer_type=agents.City, timeout=PATIENCE_S
            )
            assert found.answer.name and found.answer.country, "what it says is another matter"

    run(main(), LONG_S)


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_that_it_calls_runs_once(server: Server, subjects: Subjects, tmp_path: Path, address: str, way: str) -> None:
    async def main() -> None:
        async with talking(server, subjects, tmp_path, address) as mesh:
            options = {"max_tokens": 80, "max_iterations": 2}  # it may well call again and again
            await mesh.client.start_agent("weatherman", kind=f"{way}Weatherman", options=options, timeout=PATIENCE_S)
            async with mesh.client.stream(
                "weatherman", f"Repeat exactly this and nothing else: {CALL}", timeout=PATIENCE_S
            ) as live:
                kinds = [type(event).__name__ async for event in live]
            assert kinds.index("ToolUse") < kinds.index("ToolResult")
            ran = (tmp_path / "runs").read_text().split()
            assert ran[0] == "Paris"
            assert len(ran) == kinds.count("ToolResult"), "each call ran once"
            assert len(await mesh.results("weatherman", 1)) == 1

    run(main(), LONG_S)


@pytest.mark.parametrize("way", WAYS)
def test_killed_in_mid_answer_the_other_node_has_it_said_once(
    server: Server, subjects: Subjects, tmp_path: Path, address: str, way: str
) -> None:
    async def main() -> None:
        async with talking(server, subjects, tmp_path, address) as mesh:
            await mesh.client.start_agent("talker", kind=f"{way}Talker", options={"max_tokens": 200}, timeout=PATIENCE_S)
            victim = await mesh.host_of("talker")
            async with mesh.client.stream("talker", "Count from one to fifty in words.", timeout=PATIENCE_S) as live:
                async for event in live:
                    if isinstance(event, Text):
                        break
                await victim.kill()
                outcome = await live.outcome()
            assert outcome.text
            assert await mesh.host_of("talker") is not victim
            status = await mesh.client.status("talker", content=True, timeout=PATIENCE_S)
            assert status.agent_state == [outcome.text], "the turn took effect once"
            assert [stored.text for stored in await mesh.results("talker", 1)] == [outcome.text]

    run(main(), LONG_S)
