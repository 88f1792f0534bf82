"""Agents of the failover benchmark: they count their turns, and their answers cost no time.

A process that finds a path in `MESH_BENCH_HOLD` keeps its turns in the middle as long as that file exists: so a node can be
killed in mid-turn, and the other nodes answer the same prompts at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from agentmesh import Agent, Idle, Init
from agentmesh.backend import Event, Response, Turn

LOOK_S = 0.02
STEPS = 20
CALL_S = 0.5
RUNS = "runs"
"""The file with a line for each call of a `Walker`, in the directory that `MESH_BENCH_LOGS` names."""


async def held(prompt: str) -> str:
    """The answer to `prompt`, here or as soon as nothing holds it."""
    path = os.environ.get("MESH_BENCH_HOLD")
    while path and prompt.startswith("hold") and await asyncio.to_thread(Path(path).exists):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(LOOK_S)
    return prompt


async def walk(prompt: str, turn: Turn) -> AsyncIterator[Event]:
    """Take some steps, each behind a call that takes a while."""
    calls = getattr(turn, "calls", None)  # older builds hand no turn on
    for number in range(len(turn.steps.taken), STEPS):
        if calls is not None:
            await calls.begin()
        _note(f"{turn.agent} {number}\n")
        await asyncio.sleep(CALL_S)
        yield Event("text", {"text": f"[{number}]"})
        await turn.steps.take(number)
        if calls is not None:
            calls.end()
    yield Event.result(prompt)


def _note(line: str) -> None:
    with (Path(os.environ["MESH_BENCH_LOGS"]) / RUNS).open("a") as file:
        file.write(line)


class Count(msgspec.Struct):
    """Prompts whose turns took effect."""

    prompts: list[str] = []


class Worker(Agent[Count]):
    """Answers with its prompt."""

    backend = "scripted"
    script: ClassVar[Any] = staticmethod(held)

    async def init_agent(self, options: dict[str, Any]) -> Init[Count]:
        return Init(Count())

    async def handle_response(self, ref: str, response: Response, state: Count) -> Idle[Count]:
        return Idle(Count([*state.prompts, response.text]))


class Walker(Worker):
    """Answers with its prompt, behind some steps."""

    script = staticmethod(walk)
