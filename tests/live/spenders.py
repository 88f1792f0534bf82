"""Agents that spend: they call a tool, or each other, until they are stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from agentmesh import Agent, Answer, Idle, Init, Prompt, agent_tool, tool
from agentmesh.backend import Response
from agentmesh.errors import MeshError
from live.agents import add_line


class Kept(msgspec.Struct):
    """What it has seen."""

    answers: list[str] = []
    retry: bool = False
    tell: str | None = None


@tool(effect="pure")
async def dig(number: int) -> int:
    """Dig."""
    runs = os.environ.get("TOOL_RUNS")
    if runs:
        add_line(Path(runs), f"dig {number}")
    return number


class Spender(Agent[Kept]):
    """Answers by the Messages API."""

    backend = "anthropic"
    tools: ClassVar[tuple[Any, ...]] = (dig, agent_tool("helper"))

    def init_agent(self, options: dict[str, Any]) -> Init[Kept]:
        return Init(
            Kept(retry=options.get("retry", False), tell=options.get("tell")), backend={"model": "fake-model", "attempts": 1}
        )

    def handle_response(self, ref: str, response: Response, state: Kept) -> Idle[Kept]:
        if state.tell:
            self.tell(state.tell, "help later", tag="t")
        return Idle(msgspec.structs.replace(state, answers=[*state.answers, response.text]))

    def handle_error(self, ref: str, error: MeshError, state: Kept) -> Idle[Kept] | Prompt[Kept]:
        again = state.retry and error.code == "budget_exceeded"
        state = msgspec.structs.replace(state, retry=False)
        return Prompt("try again", state) if again else Idle(state)

    def handle_event(self, event: Any, state: Kept) -> Idle[Kept]:
        text = event.outcome.text or "" if isinstance(event, Answer) else ""
        return Idle(msgspec.structs.replace(state, answers=[*state.answers, text]))


class Helper(Spender):
    """Asks nobody."""

    tools: ClassVar[tuple[Any, ...]] = (dig,)
