"""Agents that harm the process they run in, by the first word of their prompt: `die`, `hang`, `block:SECONDS`, `crash`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from agentmesh import Agent, Idle, Init
from agentmesh.backend import Response


class Seen(msgspec.Struct):
    """Prompts that took effect."""

    prompts: list[str] = []


def harm(prompt: str) -> str:
    """The answer, if there is one."""
    word, _, argument = prompt.partition(" ")[0].partition(":")
    if word == "die":
        os._exit(9)
    if word == "hang":
        time.sleep(3600)
    if word == "block":
        time.sleep(float(argument))
    return prompt


class Deadly(Agent[Seen]):
    """Its prompts run on the node's loop. Three deaths of nodes are enough."""

    backend = "scripted"
    max_takeovers = 3

    async def init_agent(self, options: dict[str, Any]) -> Init[Seen]:
        return Init(Seen())

    async def handle_response(self, ref: str, response: Response, state: Seen) -> Idle[Seen]:
        return Idle(Seen([*state.prompts, harm(response.text)]))


def note(file: Path, line: str) -> None:
    """Add a line to a file."""
    with file.open("a") as lines:
        lines.write(f"{line}\n")


class Frail(Deadly):
    """Crashes, in the agent's own code; each start of `handle_response` is a line in the file of the option `runs`."""

    max_attempts = 100

    async def init_agent(self, options: dict[str, Any]) -> Init[Seen]:
        return Init(Seen([options["runs"]]))

    async def handle_response(self, ref: str, response: Response, state: Seen) -> Idle[Seen]:
        note(Path(state.prompts[0]), response.text)
        if response.text.startswith("crash"):
            raise RuntimeError("told to crash")
        return Idle(Seen([*state.prompts, response.text]))
