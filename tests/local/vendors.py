"""A real model behind the vendors' CLIs: `make test-local`. Not among all tests: to read their own prompts takes minutes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.subjects import Subjects
from live.mesh import ProcessMesh, process_mesh
from local import agents
from local.model import INSTALLED, MISSING
from support import Server, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1860), pytest.mark.skipif(not INSTALLED, reason=MISSING)]

PATIENCE_S = 580.0
"""Just below the watchdog of a turn. Run this on a machine without other work: on two cores that eight other programs shared,
Codex's first turn, whose model is given thousands of tokens each time, took longer than that."""
LONG_S = 1800
AGENTS = str(Path(agents.__file__))


@contextlib.asynccontextmanager
async def talking(server: Server, subjects: Subjects, root: Path, address: str) -> AsyncIterator[ProcessMesh]:
    """A supervisor and two nodes whose agents speak by the model at `address`."""
    env = {
        **{name: "" for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE", "OPENAI_"))},
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_API_KEY": "sk-ant-none",
        "LOCAL_MODEL": address,
        "MESH_FILES": str(root / "files"),
    }
    async with process_mesh(server, subjects, root, env=env) as mesh:
        for own_id in ("n1", "n2"):
            await mesh.start("node", own_id, "--agents", AGENTS)
        yield mesh


@pytest.mark.parametrize("kind", ["ClaudeTalker", "CodexTalker"])
def test_two_turns_and_a_kill_between_them(server: Server, subjects: Subjects, tmp_path: Path, address: str, kind: str) -> None:
    async def main() -> None:
        async with talking(server, subjects, tmp_path, address) as mesh:
            await mesh.client.start_agent("talker", kind=kind, timeout=PATIENCE_S)
            first = await mesh.client.ask("talker", "What is the capital of France? Answer in one sentence.", timeout=PATIENCE_S)
            print(f"{kind}: {first.text!r}, {first.usage}")
            assert first.text
            await (await mesh.host_of("talker")).kill()
            second = await mesh.client.ask("talker", "And of Italy?", timeout=PATIENCE_S)
            print(f"{kind}, on another node: {second.text!r}, {second.usage}")
            assert second.text
            assert (second.usage or {})["input_tokens"] > (first.usage or {})["input_tokens"], (
                "the first turn is in what it is asked"
            )

    run(main(), LONG_S)
