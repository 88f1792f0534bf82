"""What the tests of the codex backend share: backends on the real program against a fake model server."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event, Room, Stream, Turn
from agentmesh.steps import UnjournaledSteps
from agentmesh_node.backends.codex.backend import CodexBackend
from agentmesh_node.backends.codex.settings import BINARY
from fakes.responses import ResponsesServer

KEY_NAME = "FAKE_MODEL_KEY"
KEY = "sk-fake-0123456789abcdef"


class Plain(Agent[dict[str, Any]]):
    """An agent without tools of its own."""

    backend = "codex"


def options(fake: ResponsesServer | str, **more: Any) -> dict[str, Any]:
    url = fake if isinstance(fake, str) else fake.url
    return {
        "base_url": url,
        "key_env": KEY_NAME,
        "model": "fake-model",
        "request_retries": 0,
        "stream_retries": 0,
        "limit_retries": 0,
        **more,
    }


def backend(
    where: Path,
    fake: ResponsesServer | str,
    agent: Agent[Any] | None = None,
    *,
    transport: Any = None,
    root: str = "mesh",
    **more: Any,
) -> CodexBackend:
    room = Room("coder", "life", str(where), root, transport)
    return CodexBackend(agent or Plain(), options(fake, **more), room=room)


def turn(*taken: Any, attachments: tuple[Any, ...] = ()) -> Turn:
    """A turn that earlier owners have taken steps of."""
    kept = msgspec.json.decode(msgspec.json.encode(taken))  # as the journal gives them back
    return Turn("coder", "17", 1, attachments=attachments, steps=UnjournaledSteps(tuple(kept), "coder/17"))


async def play(made: CodexBackend, session: Any, prompt: str, about: Turn | None = None) -> tuple[list[Event], Any]:
    """A whole turn: its events, and the session that would be committed behind it."""
    stream = await made.prompt(session, prompt, about or turn())
    events = [event async for event in stream.events]
    assert [event.terminal for event in events].count(True) == 1
    assert events[-1].terminal
    last = events[-1]
    after = made.update_session(stream.session, last.data) if last.kind == "result" else stream.session
    return events, msgspec.json.decode(msgspec.json.encode(after))


async def until(stream: Stream, kind: str) -> list[Event]:
    """The stream's events up to the first of that kind."""
    seen: list[Event] = []
    async for event in stream.events:
        seen.append(event)
        if event.kind == kind:
            return seen
    raise AssertionError(f"no {kind} event, but {seen}")


def of(kind: str, events: list[Event]) -> list[dict[str, Any]]:
    return [event.data for event in events if event.kind == kind]


def text_of(events: list[Event]) -> str:
    return "".join(data["text"] for data in of("text", events))


def program(where: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a Python program stand for Codex."""
    import sys

    where.write_text(f"#!{sys.executable}\n{source}")
    where.chmod(where.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(BINARY, str(where))


def processes(mark: str) -> list[str]:
    """The command lines on this machine that contain `mark`, zombies left out."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in line:
                found.append(line)
    return found
