"""The agents, for nodes of both builds: they snapshot often, for that is where a build drops what it does not know.

long L           take steps, each behind a call that takes a while, until there is the file `enough(...)`; each call is a line
                 in the file that `RUNS` names
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec import structs

from agentmesh.backend import Event, Turn
from agentmesh_node.turns import agent_factory
from sim import agents

SNAPSHOT_RECORDS = 7
RUNS = "TWO_BUILDS_RUNS"
"""The variable that names a file: a line for each call of a long turn."""
CALL_S = 0.25

_config = agent_factory.AgentFactory.config


def enough(runs: Path) -> Path:
    """The file that ends all long turns, whose calls are lines in `runs`."""
    return runs.with_suffix(".enough")


def _note(runs: Path, line: str) -> None:
    with runs.open("a") as file:
        file.write(line)


def _often(self: Any, *args: Any) -> Any:
    return structs.replace(_config(self, *args), snapshot_records=SNAPSHOT_RECORDS)


def _change_node() -> None:
    agents.Cell.dice = random.Random()
    agents.Cell.slowness = 0.1
    agent_factory.AgentFactory.config = _often  # type: ignore[method-assign, assignment]


if __name__ != "compat.two_builds.agents":
    # A node loads this file by its path. A test imports its names, and the tests behind it in that process would get such a node.
    _change_node()


class Cell(agents.Cell):
    """One agent, with a state that does not grow for ever."""

    keep = 48
    # Nodes are killed so often that an innocent input would otherwise become a dead letter (docs/architecture.md#poison).
    max_takeovers = 1000

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        verb, label = prompt.split()[:2]
        if verb != "long":
            async for event in agents.Cell.script(prompt, turn):
                yield event
            return
        calls = getattr(turn, "calls", None)  # the build before has none
        runs, number = Path(os.environ[RUNS]), len(turn.steps.taken)
        while not enough(runs).exists():
            if calls is not None:
                await calls.begin()
            _note(runs, f"{label} {number}\n")
            await asyncio.sleep(CALL_S)
            await turn.steps.take(f"{label}#{number}")
            if calls is not None:
                calls.end()
            number += 1
        yield Event.result(prompt)
