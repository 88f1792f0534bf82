"""What llama.cpp's own server does where an answer does not end well, in each of the three ways to ask it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentmesh.backend import Event, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.model_server.local import MODEL, LocalModel
from agentmesh_node.backends.openai import OpenAIBackend
from agentmesh_node.turns.typed_answers import TypedBackend
from local.model import INSTALLED, MISSING
from node.backends.case_table import LLAMA, NEVER, Row, cells, rows_of
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
ROWS: dict[str, Row] = {
    "messages": ("anthropic", "Messages", LLAMA),
    "chat": ("openai", "Chat Completions", LLAMA),
    "responses": ("openai", "Responses", LLAMA),
}
way = pytest.mark.parametrize("name", WAYS)


def told(name: str, case: str) -> str:
    """What docs/backends.md says becomes of this case."""
    return cells()[(*ROWS[name], case)]


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
    assert told(name, "cut answer") == "cut, as told"


@way
def test_a_prompt_that_is_longer_than_its_context_is_too_long(at: None, name: str) -> None:
    async def main() -> list[Event]:
        async with talk(name, max_tokens=6) as conversation:
            return await conversation.say("word " * 9000)

    last = run(main(), 110)[-1]
    assert (last.kind, last.data.get("reason")) == ("error", told(name, "too long"))


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
    assert (last.kind, last.data.get("reason")) == ("error", told(name, "broken stream"))


class Where(msgspec.Struct):
    city: str


@way
def test_only_where_it_heeds_a_schema_is_its_answer_of_the_agents_type(at: None, name: str) -> None:
    async def main() -> Event:
        async with talk(name, max_tokens=30) as conversation:
            typed = TypedBackend(conversation.backend, AnswerType(Where))
            turn = Turn("a", "1", 1, steps=UnjournaledSteps(key="a/1"), answer_type=AnswerType(Where))
            stream = await typed.prompt(await typed.start_session(), "What is the capital of France?", turn)
            return [event async for event in stream.events][-1]

    last = run(main(), 110)
    assert told(name, "typed answer") == ("value" if last.kind == "result" else last.data["reason"])


def test_the_table_says_of_all_else_what_the_mesh_sees_of_it() -> None:
    """In test_small_model.py, in whole turns of agents."""
    for row in rows_of(LLAMA):
        seen = {case: cells()[(*row, case)] for case in ("text", "stream", "tool", "429")}
        assert seen == {"text": "answer", "stream": "pieces", "tool": "run", "429": NEVER}
