"""A claude backend for tests: the real Claude Code, a model server on loopback, a real store, and files of the test's own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event, Room, Turn
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.streams import ensure
from agentmesh.steps import UnjournaledSteps
from agentmesh.subjects import Subjects
from agentmesh.tools import ToolCall, tool
from agentmesh_node.backends.claude import ClaudeBackend
from agentmesh_node.backends.claude.store import JetStreamSessionStore
from fakes.messages import Call, FakeMessages, Tool
from support import Server, connected, eventually

if importlib.util.find_spec("claude_agent_sdk") is None:
    pytest.skip("the extra claude is not installed", allow_module_level=True)

KEY = "sk-ant-a-key-of-the-tests"


class Plain(Agent[dict[str, Any]]):
    """An agent without tools."""

    async def init_agent(self, options: Any) -> Any:
        raise NotImplementedError


class Desk:
    """One agent's life, which may be taken up on several machines."""

    def __init__(self, transport: NatsTransport, subjects: Subjects, root: Path) -> None:
        self.transport = transport
        self.subjects = subjects
        self.root = root
        self.store = JetStreamSessionStore(transport, subjects, "coder", project="life")
        self._turns = 0

    def backend(self, machine: str = "n1", agent: Agent[Any] | None = None, **options: Any) -> ClaudeBackend:
        """The backend as a process on `machine` makes it."""
        room = Room("coder", "life", str(self.root / machine), self.subjects.root, self.transport)
        chosen = {"model": "claude-sonnet-5", "max_retries": 0, **options}
        return ClaudeBackend(agent or Plain(), chosen, room=room)

    def turn(self, steps: UnjournaledSteps | None = None, *, number: int | None = None, attachments: Any = ()) -> Turn:
        """The next turn, or another attempt at the one with this number."""
        if number is None:
            self._turns += 1
            number = self._turns
        taken = steps or UnjournaledSteps(key=f"coder/{number}")
        return Turn("coder", str(number), number, attachments=attachments, steps=taken)


async def play(backend: ClaudeBackend, session: Any, prompt: str, turn: Turn) -> tuple[list[Event], Any]:
    """A whole turn, as the runner does it: its events, and the session afterwards."""
    stream = await backend.prompt(session, prompt, turn)
    found: list[Event] = []
    async with contextlib.aclosing(stream.events) as events:  # type: ignore[type-var]
        async for event in events:
            found.append(event)
            if event.terminal:
                break
    last = found[-1]
    return found, backend.update_session(stream.session, last.data) if last.kind == "result" else stream.session


def text(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.kind == "text")


def children(home: Path) -> list[int]:
    """The processes whose HOME lies under `home`: Claude Code, and what it runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"HOME={home}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


async def childless(home: Path) -> None:
    """Wait until nothing of Claude Code is left under `home`."""
    await eventually(lambda: not children(home), timeout=30, what="the end of Claude Code")


@contextlib.asynccontextmanager
async def desk(server: Server, subjects: Subjects, root: Path) -> AsyncIterator[Desk]:
    async with connected(server.url) as transport:
        await ensure(transport, subjects)
        yield Desk(transport, subjects, root)


def pointed_at(fake: FakeMessages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process's environment that of a node whose model server is `fake`."""
    for name in list(os.environ):
        if name.startswith(("ANTHROPIC_", "CLAUDE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def results(call: Call) -> list[str]:
    """The texts of all tool results in a request."""
    found = []
    for message in call.messages:
        if message["role"] == "user" and isinstance(message["content"], list):
            for block in message["content"]:
                if block["type"] == "tool_result":
                    content = block["content"]
                    found.append(content if isinstance(content, str) else "".join(part["text"] for part in content))
    return found


def runs(command: str) -> Tool:
    return Tool("Bash", {"command": command, "description": "a test"})


class Librarian(Plain):
    """Has tools of its own."""

    def __init__(self) -> None:
        self.seen: list[ToolCall] = []

    @tool(effect="once")
    async def lend(self, title: str, call: ToolCall) -> str:
        """Lend a book.

        Args:
            title: of the book.
        """
        self.seen.append(call)
        return f"lent {title}"

    tools = (lend,)
