"""A client that exports spans: `python -m live.asking URL ROOT AGENT PROMPT` prints the answer.

With tests/ as PYTHONPATH, and OTEL_ variables that say where to.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from opentelemetry import trace

import agentmesh_client
from agentmesh_node.telemetry import otel

PATIENCE_S = 150.0
SCOPE = "a user's"
SPAN = "a question"
"""The span of the user's own that the question is asked in."""


async def asked(url: str, root: str, agent: str, prompt: str, env: Mapping[str, str]) -> str:
    """Run this file as a program, to its end; the answer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "live.asking", url, root, agent, prompt,
        env={**env, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S + 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


async def _ask(url: str, root: str, agent: str, prompt: str) -> None:
    started = otel.setup("client", "asker")
    try:
        with trace.get_tracer(SCOPE).start_as_current_span(SPAN):
            async with agentmesh_client.connect(url, root=root) as mesh:
                print((await mesh.ask(agent, prompt, timeout=PATIENCE_S)).text)
    finally:
        await asyncio.to_thread(started.shutdown)


if __name__ == "__main__":
    asyncio.run(_ask(*sys.argv[1:]))
