"""Agents that a small, real model speaks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from msgspec import Struct

from agentmesh import Agent, Idle, Init, tool
from agentmesh.backend import Response
from live.agents import add_line

MODEL = {"model": "smollm2", "max_tokens": 60, "temperature": 0}
"""Without chance, so that it says the same in each run; and bounded, since a small model rambles."""


class Talker(Agent[list[str]]):
    """Answers, and remembers what it said."""

    backend = "anthropic"

    async def init_agent(self, options: dict[str, Any]) -> Init[list[str]]:
        return Init([], backend={**MODEL, **options})

    async def handle_response(self, ref: str, response: Response, state: list[str]) -> Idle[list[str]]:
        return Idle([*state, response.text])


@tool(effect="once")
async def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: its name.
    """
    add_line(Path(os.environ["TOOL_RUNS"]), city)
    return "sunny"


class Weatherman(Talker):
    """May look at the weather."""

    tools = (get_weather,)


class ChatTalker(Talker):
    """Speaks by Chat Completions."""

    backend = "openai"


class ChatWeatherman(ChatTalker):
    """May look at the weather."""

    tools = (get_weather,)


class City(Struct):
    """A city."""

    name: str
    country: str


class ChatGeographer(ChatTalker):
    """Answers with cities: llama.cpp makes a grammar of the schema, so that even such a model keeps to it."""

    answer_type = City


class ResponsesTalker(ChatTalker):
    """Speaks by Responses."""

    async def init_agent(self, options: dict[str, Any]) -> Init[list[str]]:
        return Init([], backend={**MODEL, "api": "responses", **options})


class ResponsesWeatherman(ResponsesTalker):
    """May look at the weather."""

    tools = (get_weather,)


class ClaudeTalker(Talker):
    """Speaks by Claude Code. Without its own tools and prompt, which take more than the model can hold."""

    backend = "claude"

    async def init_agent(self, options: dict[str, Any]) -> Init[list[str]]:
        short = {"tools": [], "system_prompt": "You answer in one short sentence.", "max_turns": 2, "max_retries": 0}
        return Init([], backend={"model": MODEL["model"], **short, **options})


class CodexTalker(Talker):
    """Speaks by Codex."""

    backend = "codex"

    async def init_agent(self, options: dict[str, Any]) -> Init[list[str]]:
        url = f"{os.environ['LOCAL_MODEL']}/v1"
        return Init([], backend={"base_url": url, "key_env": None, "model": MODEL["model"], "request_retries": 0, **options})
