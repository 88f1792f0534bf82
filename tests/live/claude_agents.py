"""Agents that run Claude Code, for nodes that are killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agentmesh import Agent, Idle, Init
from agentmesh.backend import Event, Response
from agentmesh.tools import ToolCall, tool
from live.agents import add_line


class Notes(msgspec.Struct):
    lent: str = ""
    """A file with a line for each book that was lent."""
    seen: list[list[Any]] = []
    """Kind of each event of the stream, and whether it was replayed."""
    texts: list[str] = []


@tool(effect="once")
async def lend(title: str, call: ToolCall) -> str:
    """Lend a book.

    Args:
        title: of the book.
    """
    add_line(Path(title), call.key)
    return "lent"


class Coder(Agent[Notes]):
    backend = "claude"
    tools = (lend,)

    async def init_agent(self, options: dict[str, Any]) -> Init[Notes]:
        return Init(Notes(), {"model": "claude-sonnet-5", "max_retries": 0, "allowed_tools": ["Bash"], **options})

    def handle_stream_event(self, event: Event, state: Notes) -> Notes:
        return msgspec.structs.replace(state, seen=[*state.seen, [event.kind, event.replayed]])

    async def handle_response(self, ref: str, response: Response, state: Notes) -> Idle[Notes]:
        return Idle(msgspec.structs.replace(state, texts=[*state.texts, response.text]))
