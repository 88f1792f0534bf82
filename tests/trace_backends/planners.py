"""A planner with tools, a critic whom it asks, and a clerk whom it notifies: what back ends are shown."""

from __future__ import annotations

from typing import Any

from agentmesh import Agent, Idle, Init, agent_tool, tool
from agentmesh.backend import Response

MODEL = "test-model"


@tool(effect="pure")
async def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: its name.
    """
    return f"sunny in {city}"


class Planner(Agent[None]):
    """Looks at the weather, asks the critic, and tells the clerk."""

    backend = "anthropic"
    tools = (get_weather, agent_tool("critic", timeout_s=60))

    async def init_agent(self, options: dict[str, Any]) -> Init[None]:
        return Init(None, backend={"model": MODEL, "attempts": 2, "max_wait_s": 0.1})

    async def handle_response(self, ref: str, response: Response, state: None) -> Idle[None]:
        self.notify("clerk", {"planned": response.text})
        return Idle(state)


class Critic(Agent[None]):
    """Has an opinion."""

    backend = "anthropic"

    async def init_agent(self, options: dict[str, Any]) -> Init[None]:
        return Init(None, backend={"model": MODEL, "attempts": 2, "max_wait_s": 0.1})

    async def handle_response(self, ref: str, response: Response, state: None) -> Idle[None]:
        return Idle(state)


class Clerk(Agent[int]):
    """Counts what it is told."""

    backend = "scripted"

    async def init_agent(self, options: dict[str, Any]) -> Init[int]:
        return Init(0)

    async def handle_response(self, ref: str, response: Response, state: int) -> Idle[int]:
        return Idle(state)

    async def handle_event(self, event: Any, state: int) -> Idle[int]:
        return Idle(state + 1)
