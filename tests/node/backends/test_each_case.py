"""What becomes of a turn, by backend, API and case: each cell of the table in docs/backends.md is played."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event, Room, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh.structured import AnswerType
from agentmesh.subjects import Subjects
from agentmesh.tools import tool
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.codex.backend import CodexBackend
from agentmesh_node.backends.codex.rollout import MemoryStore
from agentmesh_node.backends.openai import OpenAIBackend
from agentmesh_node.turns.typed_answers import TypedBackend
from fakes import responses
from fakes.messages import Answer, FakeMessages, Item, Refusal, Tool
from fakes.responses import Reply, ResponsesServer, Text, say
from node.backends import codex
from node.backends.case_table import CASES, FAKE, ROWS, Row, cells, rows_of
from support import Server, run

pytestmark = pytest.mark.processes

KEY = "sk-a-key-of-the-tests"
LONG = "This model's maximum context length is 8192 tokens"


class Sum(msgspec.Struct):
    total: int


class Doubler(Agent[Any]):
    """An agent with a tool."""

    @tool(effect="pure")
    async def double(self, number: int) -> int:
        """Double a number."""
        return 2 * number

    tools = (double,)


SUM = AnswerType(Sum)
OF_CLAUDE: dict[str, Sequence[Item]] = {
    "tool": [Answer(tools=(Tool("mcp__agent__double", {"number": 2}),)), "four"],
    "typed answer": [Answer(tools=(Tool("StructuredOutput", {"total": 4}),))],
}
"""Where Claude Code has names of its own."""
OF_MESSAGES: dict[str, Sequence[Item]] = {
    "text": ["It is four."],
    "stream": [Answer(text="one two three four", chunk=4)],
    "tool": [Answer(tools=(Tool("double", {"number": 2}),)), "four"],
    "typed answer": ['{"total": 4}'],
    "cut answer": [Answer(text="one two", stop_reason="max_tokens")],
    "too long": [Refusal(status=400, message=LONG)],
    "429": [Refusal(status=429)],
    "broken stream": [Answer(text="one two three four", chunk=2, break_after=5)],
}
OF_RESPONSES: dict[str, Sequence[Reply]] = {
    "text": [say("It is four.")],
    "stream": [Reply((Text("one two three four", pieces=4),))],
    "tool": [Reply((responses.Call("double", {"number": 2}),)), say("four")],
    "typed answer": [say('{"total": 4}')],
    "cut answer": [Reply((Text("one two"),), end="incomplete")],
    "too long": [Reply(end="failed", failure={"code": "context_length_exceeded", "message": LONG})],
    "429": [Reply.limited(0.1)],
    "broken stream": [Reply((Text("one two"),), end="cut")],
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", codex.KEY_NAME):
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that answers as the case wants it."""
    row, case = request.getfixturevalue("row"), request.getfixturevalue("case")
    if row[1] == "Responses":
        with ResponsesServer(list(OF_RESPONSES[case])) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            yield server.url
        return
    script = OF_CLAUDE.get(case, OF_MESSAGES[case]) if row[0] == "claude" else OF_MESSAGES[case]
    with FakeMessages(list(script)) as fake:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/v1")
        yield fake.url


class Ground(NamedTuple):
    """What backends stand on that have a store."""

    where: Path
    server: Server
    subjects: Subjects


@pytest.fixture
def ground(tmp_path: Path, server: Server, subjects: Subjects) -> Ground:
    return Ground(tmp_path, server, subjects)


@asynccontextmanager
async def made(row: Row, url: str, ground: Ground) -> AsyncIterator[Any]:
    """The backend of a row."""
    agent = Doubler()
    api = {"api": "responses"} if row[1] == "Responses" else {}
    match row[0]:
        case "anthropic":
            yield AnthropicBackend(agent, {"model": "m", "attempts": 1})
        case "openai":
            yield OpenAIBackend(agent, {"model": "m", "attempts": 1, **api})
        case "codex":
            room = Room("coder", "life", str(ground.where), "mesh", None)
            yield CodexBackend(agent, codex.options(url), room=room, store=MemoryStore())
        case "claude":
            from node.backends.claude_desk import desk

            async with desk(ground.server, ground.subjects, ground.where) as room_of:
                yield room_of.backend(agent=agent)


async def played(backend: Any, case: str) -> list[Event]:
    """The events of a turn."""
    typed = SUM if case == "typed answer" else None
    asked = TypedBackend(backend, SUM) if typed is not None else backend
    turn = Turn("coder", "1", 1, steps=UnjournaledSteps(key="t"), answer_type=typed)
    stream = await asked.prompt(await asked.start_session(), "2 + 2?", turn)
    events = [event async for event in stream.events]
    await asked.release()
    return events


def word(case: str, events: list[Event]) -> str:
    """What became of a turn, as the table says it."""
    last = events[-1]
    if last.kind == "error":
        return str(last.data["reason"])
    match case:
        case "stream":
            return "pieces" if sum(event.kind == "text" for event in events) > 1 else "whole"
        case "tool":
            ran = [event.data for event in events if event.kind == "tool_result"]
            return "run" if [(data["ok"], data["text"]) for data in ran] == [(True, "4")] else str(ran)
        case "typed answer":
            return "value" if SUM.read(last.data["text"]) == Sum(4) else "?"
        case "cut answer":
            return "cut, as told" if last.data.get("stop_reason") == "max_tokens" else "cut"
        case "broken stream":
            return "asked again"
    return "answer" if last.data["text"] == "It is four." else str(last.data["text"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("row", rows_of(FAKE), ids="-".join)
def test_each_cell_of_the_table_is_what_happens(row: Row, case: str, model: str, ground: Ground) -> None:
    if row[0] == "claude" and importlib.util.find_spec("claude_agent_sdk") is None:
        pytest.skip("the extra claude is not installed")

    async def main() -> list[Event]:
        async with made(row, model, ground) as backend:
            return await played(backend, case)

    assert word(case, run(main(), 120)) == cells()[(*row, case)]


def test_the_table_has_these_rows_and_no_others() -> None:
    assert [key[:3] for key in cells()][:: len(CASES)] == list(ROWS)
    assert all(re.fullmatch(r"[a-z_, ]+", word) for word in cells().values())
