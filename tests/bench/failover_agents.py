"""Agents of the failover benchmark: they count their turns, and their answers cost no time.

A process that finds a path in `MESH_BENCH_HOLD` keeps its turns in the middle as long as that file exists: so a node can be
killed in mid-turn, and the other nodes answer the same prompts at once.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from agentmesh import Agent, Idle, Init
from agentmesh.backend import Response

LOOK_S = 0.02


async def held(prompt: str) -> str:
    """The answer to `prompt`, here or as soon as nothing holds it."""
    path = os.environ.get("MESH_BENCH_HOLD")
    while path and prompt.startswith("hold") and await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(LOOK_S)
    return prompt


class Count(msgspec.Struct):
    """Prompts whose turns took effect."""

    prompts: list[str] = []


class Worker(Agent[Count]):
    """Answers with its prompt."""

    backend = "scripted"
    script = staticmethod(held)

    async def init_agent(self, options: dict[str, Any]) -> Init[Count]:
        return Init(Count())

    async def handle_response(self, ref: str, response: Response, state: Count) -> Idle[Count]:
        return Idle(Count([*state.prompts, response.text]))
