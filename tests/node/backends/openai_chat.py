"""Conversations with the openai backend, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.wire import Attachment
from agentmesh_node.backends.openai import OpenAIBackend
from fakes.messages import FakeMessages
from node.backends.anthropic_chat import Plain
from support import run

KEY = "sk-openai-never-to-be-seen-0123456789"


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    """The fake server of Chat Completions, named and with a key in the environment."""
    with FakeMessages() as server:
        environment(monkeypatch, f"{server.url}/v1")
        yield server


def environment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Name the server at `url`, with a key."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


class Chat:
    """An agent's backend and its session, over several turns."""

    def __init__(self, cls: type[Agent[Any]] = Plain, **options: Any) -> None:
        self.agent = cls()
        self.options = {"model": "test-model", **options}
        self.backend = OpenAIBackend(self.agent, self.options)
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

    async def change(self, **options: Any) -> None:
        """Go on with other options."""
        await self.backend.release()
        self.options.update(options)
        self.backend = OpenAIBackend(self.agent, self.options)
        self.session = await self.backend.resume_session(self.session)

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
