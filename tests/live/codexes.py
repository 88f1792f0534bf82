"""Agents that Codex runs, for the tests on a whole mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agentmesh.agent import Agent, Idle, Init
from agentmesh.backend import Response


class Answers(msgspec.Struct):
    """What was answered so far."""

    texts: list[str] = []
    marks: str = ""
    """A file in which each run of the tool leaves a line."""


class Coder(Agent[Answers]):
    """Hands its option `codex` to the backend."""

    backend = "codex"

    def init_agent(self, options: dict[str, Any]) -> Init[Answers]:
        return Init(Answers(), backend=options["codex"])

    def handle_response(self, ref: str, response: Response, state: Answers) -> Idle[Answers]:
        return Idle(Answers([*state.texts, response.text], state.marks))


class Marker(Coder):
    """Has a tool of its own."""

    def mark(self, file: str) -> str:
        """Leave a line in a file.

        Args:
            file: where.
        """
        with Path(file).open("a") as marks:
            marks.write("mark\n")
        return "marked"

    tools = (mark,)
