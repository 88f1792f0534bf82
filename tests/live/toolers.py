"""Agents with tools, for nodes that are killed while a tool runs or a model answers.

Each run of a tool is a line in the file that the node's variable TOOL_RUNS names. `GATE`, if it is set, names a file that the
tenth run waits for.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from agentmesh import Agent, Idle, Init, agent_tool, tool
from agentmesh.backend import Response
from agentmesh.tools import Done, ToolCall
from live.agents import GATE_S, add_line

GATED = 10


async def one_run(line: str, number: int) -> None:
    add_line(Path(os.environ["TOOL_RUNS"]), line)
    gate = os.environ.get("GATE")
    if gate and number == GATED:
        while not await asyncio.to_thread(Path(gate).exists):  # noqa: ASYNC110 - another process opens it
            await asyncio.sleep(GATE_S)


@tool(effect="pure")
async def count(number: int) -> int:
    """Count."""
    await one_run(f"count {number}", number)
    return number


@tool(effect="idempotent")
async def put(number: int, call: ToolCall) -> int:
    """Put."""
    await one_run(f"put {number} {call.key}", number)
    return number


@tool(effect="once")
async def pay(number: int) -> int:
    """Pay."""
    await one_run(f"pay {number}", number)
    return number


async def paid(key: str) -> Done:
    add_line(Path(os.environ["TOOL_RUNS"]), f"asked {key}")
    return Done("it went through")


@tool(effect="once", reconcile=paid)
async def transfer(number: int) -> int:
    """Transfer."""
    await one_run(f"transfer {number}", number)
    return number


class Teller(Agent[None]):
    """Its model may use every kind of tool, and ask its fellows."""

    backend = "anthropic"
    tools = (count, put, pay, transfer, agent_tool("second", timeout_s=60), agent_tool("first", timeout_s=60))

    async def init_agent(self, options: dict[str, Any]) -> Init[None]:
        return Init(None, backend={"model": "test-model", "attempts": 2, "max_wait_s": 0.1, **options})

    async def handle_response(self, ref: str, response: Response, state: None) -> Idle[None]:
        return Idle(state)
