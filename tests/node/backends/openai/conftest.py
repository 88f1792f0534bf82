"""Servers for the tests of the openai backend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.messages import FakeMessages
from fakes.responses import ResponsesServer
from node.backends.openai_chat import environment, serving


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture
def responses(monkeypatch: pytest.MonkeyPatch) -> Iterator[ResponsesServer]:
    with ResponsesServer() as server:
        environment(monkeypatch, server.url)
        yield server
