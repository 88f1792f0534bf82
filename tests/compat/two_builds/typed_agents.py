"""An agent whose answers have a type, for nodes of both builds: the build before knows no types of answers.

Its model answers in words. When it is told that they do not fit, it notes that in the file that `RUNS` names, waits until there
is the file `enough(...)`, and then answers with what fits.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from agentmesh import Agent, Idle, Init
from agentmesh.backend import Event, Turn

RUNS = "TWO_BUILDS_RUNS"
WORDS = "four, I think"


class Sum(msgspec.Struct):
    """What is wanted."""

    total: int


def enough(runs: Path) -> Path:
    """The file that ends all waiting."""
    return runs.with_suffix(".enough")


def _note(runs: Path, ref: str) -> None:
    with runs.open("a") as file:
        file.write(f"{ref}\n")


class Adder(Agent[dict[str, Any]]):
    """It counts its answers."""

    backend = "scripted"
    answer_type = Sum
    max_takeovers = 1000

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        runs = Path(os.environ[RUNS])
        if prompt.startswith("add "):
            yield Event.result(WORDS)
            return
        _note(runs, turn.ref)
        while not enough(runs).exists():  # noqa: ASYNC110 - a test in another process makes it
            await asyncio.sleep(0.05)
        yield Event.result('{"total": 4}')

    async def init_agent(self, options: dict[str, Any]) -> Init[dict[str, Any]]:
        return Init({"answers": []})

    async def handle_response(self, ref: str, response: Any, state: dict[str, Any]) -> Idle[dict[str, Any]]:
        return Idle({"answers": [*state["answers"], response.text]})
