"""The claude backend against the suite that every backend passes, with the real Claude Code."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agentmesh.backend import Backend, Room
from agentmesh.subjects import Subjects
from agentmesh.testing import BackendConformance
from agentmesh.tools import tool
from agentmesh_node.backends.claude import ClaudeBackend
from fakes.messages import Answer, Call, FakeMessages, Item, Refusal, Tool
from node.backends.claude_desk import Plain, desk, pointed_at
from support import Server


class Calculator(Plain):
    @tool(effect="pure")
    async def double(self, number: int) -> int:
        """Double a number."""
        return 2 * number

    tools = (double,)


def model(call: Call) -> Item:
    """Calls a tool of the agent's, then one of Claude Code's, then answers."""
    told = call.prompt.rpartition("</system-reminder>")[2].strip()
    if told == "fail":
        return Refusal(status=404)
    if told == "endless":
        return Answer(text="well, " * 2000, delay_s=0.1, chunk=2)
    said = [m for m in call.messages if m["role"] == "assistant"]
    match len(said) % 3:
        case 0:
            return Answer(text="let me see", tools=[Tool("mcp__agent__double", {"number": 2})])
        case 1:
            return Answer(tools=[Tool("Bash", {"command": "echo 4", "description": "count"})])
    return "it is four"


class Claude(BackendConformance):
    failing_prompt = "fail"
    endless_prompt = "endless"

    @pytest.fixture(autouse=True)
    def _around(self, server: Server, subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.server, self.subjects, self.root = server, subjects, tmp_path
        with FakeMessages(model) as fake:
            pointed_at(fake, monkeypatch)
            yield


OPTIONS = {"model": "claude-sonnet-5", "max_retries": 0, "allowed_tools": ["Bash"]}


class TestOnOneMachine(Claude):
    """Outside a mesh the files of the machine are all there is."""

    def backend(self) -> Backend:
        return ClaudeBackend(Calculator(), OPTIONS, room=Room("coder", "life", str(self.root / "files")))


class TestInAMesh(Claude):
    """Every backend is made on another machine: what it knows comes from the mesh."""

    machines = 0

    @contextlib.asynccontextmanager
    async def _backend(self) -> AsyncIterator[Backend]:
        self.machines += 1
        async with desk(self.server, self.subjects, self.root) as room:
            backend = room.backend(f"n{self.machines}", agent=Calculator(), allowed_tools=["Bash"])
            yield backend
            await backend.release()
