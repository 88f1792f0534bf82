"""What llama.cpp's own server does where an answer does not end well, in each of the three ways to ask it."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.backend import Event, Turn
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.model_server.local import MODEL, LocalModel
from agentmesh_node.backends.openai import OpenAIBackend
from local.model import INSTALLED, MISSING
from node.backends.conversation import Conversation, Plain
from support import run

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.skipif(not INSTALLED, reason=MISSING)]
COUNT = "Count from one to fifty in words."


class Messages(Conversation):
    made = AnthropicBackend


class Chat(Conversation):
    made = OpenAIBackend


WAYS: dict[str, tuple[type[Conversation], dict[str, Any]]] = {
    "messages": (Messages, {}),
    "chat": (Chat, {}),
    "responses": (Chat, {"api": "responses"}),
}
way = pytest.mark.parametrize("name", WAYS)


def talk(name: str, **options: Any) -> Conversation:
    kind, own = WAYS[name]
    return kind(Plain, **{"model": MODEL, "temperature": 0, "attempts": 1, **own, **options})


@pytest.fixture
def at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, address)


def there(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@way
def test_an_answer_that_is_cut_at_its_limit_says_so(at: None, name: str) -> None:
    async def main() -> list[Event]:
        async with talk(name, max_tokens=6) as conversation:
            return await conversation.say(COUNT)

    last = run(main(), 110)[-1]
    assert (last.kind, last.data.get("stop_reason")) == ("result", "max_tokens")


@way
def test_a_prompt_that_is_longer_than_its_context_is_too_long(at: None, name: str) -> None:
    async def main() -> list[Event]:
        async with talk(name, max_tokens=6) as conversation:
            return await conversation.say("word " * 9000)

    last = run(main(), 110)[-1]
    assert (last.kind, last.data.get("reason")) == ("error", "too_long")


@way
def test_a_server_that_is_killed_in_mid_answer_breaks_the_stream(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def main() -> list[Event]:
        async with LocalModel() as model:
            there(monkeypatch, model.address)
            async with talk(name, max_tokens=200) as conversation:
                session = await conversation.backend.start_session()
                stream = await conversation.backend.prompt(session, COUNT, Turn("a", "1", 1))
                events: list[Event] = []
                async for event in stream.events:
                    if event.kind == "text" and not events:
                        await model.stop()
                    events.append(event)
                return events

    last = run(main(), 110)[-1]
    assert (last.kind, last.data.get("reason")) == ("error", "stream_broken")
