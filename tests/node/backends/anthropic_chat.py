"""Conversations with the anthropic backend, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event
from agentmesh.wire import Attachment
from agentmesh_node.backends.anthropic import AnthropicBackend
from fakes.messages import FakeMessages
from node.backends.conversation import Conversation, Plain, one_turn

KEY = "sk-ant-never-to-be-seen-0123456789"


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    """The fake server, named and with a key in the environment."""
    with FakeMessages() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        yield server


class Chat(Conversation):
    made = AnthropicBackend


def talk(prompt: str = "hello", *attachments: Attachment, cls: type[Agent[Any]] = Plain, **options: Any) -> list[Event]:
    """The events of one turn."""
    return one_turn(Chat, cls, prompt, *attachments, **options)
