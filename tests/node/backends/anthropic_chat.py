"""Conversations with the anthropic backend, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.tools import tool
from agentmesh.wire import Attachment
from agentmesh_node.backends.anthropic import AnthropicBackend
from fakes.messages import FakeMessages
from support import run

KEY = "sk-ant-never-to-be-seen-0123456789"


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    """The fake server, named and with a key in the environment."""
    with FakeMessages() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        yield server


@tool(effect="pure")
async def double(number: int) -> int:
    """Double a number.

    Args:
        number: any
    """
    return 2 * number


class Plain(Agent[Any]):
    pass


class Doubling(Agent[Any]):
    tools = (double,)


class Chat:
    """An agent's backend and its session, over several turns."""

    def __init__(self, cls: type[Agent[Any]] = Plain, **options: Any) -> None:
        self.backend = AnthropicBackend(cls(), {"model": "test-model", **options})
        self.session: Any = None
        self.number = 0

    async def say(self, prompt: str, *attachments: Attachment) -> list[Event]:
        if self.session is None:
            self.session = await self.backend.start_session()
        self.number += 1
        turn = Turn("a", str(self.number), self.number, attachments=attachments, steps=UnjournaledSteps(key=f"t{self.number}"))
        stream = await self.backend.prompt(self.session, prompt, turn)
        events = [event async for event in stream.events]
        self.session = msgspec.json.decode(msgspec.json.encode(stream.session))
        return events

    async def __aenter__(self) -> Chat:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.release()


def talk(prompt: str = "hello", *attachments: Attachment, cls: type[Agent[Any]] = Plain, **options: Any) -> list[Event]:
    """The events of one turn."""

    async def within() -> list[Event]:
        async with Chat(cls, **options) as chat:
            return await chat.say(prompt, *attachments)

    return run(within(), 60)
