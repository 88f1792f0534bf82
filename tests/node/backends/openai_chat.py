"""Conversations with the openai backend, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event
from agentmesh.wire import Attachment
from agentmesh_node.backends.openai import OpenAIBackend
from fakes.messages import FakeMessages
from node.backends.conversation import Conversation, Plain, one_turn

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


class Chat(Conversation):
    made = OpenAIBackend


def talk(prompt: str = "hello", *attachments: Attachment, cls: type[Agent[Any]] = Plain, **options: Any) -> list[Event]:
    """The events of one turn."""
    return one_turn(Chat, cls, prompt, *attachments, **options)
