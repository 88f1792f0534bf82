"""The reader of each backend, given a stream in chunks: how it ended, and whether it got behind the first event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from agentmesh.agent import Agent
from agentmesh.backend import Event, Turn
from agentmesh.errors import BackendError
from agentmesh.steps import UnjournaledSteps
from agentmesh_node.backends.anthropic.answers import AnswerReader
from agentmesh_node.backends.anthropic.failures import translated
from agentmesh_node.backends.api.body import read
from agentmesh_node.backends.openai.chat import ChatReader
from agentmesh_node.backends.openai.failures import translated as openai_translated
from agentmesh_node.backends.openai.responses import ResponsesReader
from agentmesh_node.backends.shapes import shaped
from agentmesh_node.tools import Call, Toolbox
from agentmesh_node.tools.loop_steps import ModelAnswer, sound
from agentmesh_node.tools.turn_bounds import Driven, TurnBounds

MOST_BYTES = 128 << 10
"""Most bytes of a stream here."""


class Ended(NamedTuple):
    """How a stream ended."""

    reason: str
    """`result`, or the error's reason."""
    behind_first: bool
    """Whether an event behind the first one was read."""
    calls: tuple[Call, ...] = ()
    """The tool calls of the answer."""


type Translate = Callable[[Exception, tuple[str, ...]], BackendError | None]
type Reader = Callable[[list[bytes], Random], Awaitable[Ended]]


class Body:
    """A response whose chunks are known; perhaps its connection breaks behind them."""

    def __init__(self, chunks: Iterable[bytes], kind: str = "text/event-stream", broken: Exception | None = None) -> None:
        self.headers = {"content-type": kind}
        self._chunks = chunks
        self._broken = broken

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        if self._broken is not None:
            raise self._broken


async def messages(chunks: list[bytes], random: Random) -> Ended:
    """The anthropic backend's."""
    return await _of_body(AnswerReader(8192), translated, chunks, random)


async def chat(chunks: list[bytes], random: Random) -> Ended:
    """The openai backend's, of Chat Completions."""
    return await _of_body(ChatReader(8192), openai_translated, chunks, random)


async def responses(chunks: list[bytes], random: Random) -> Ended:
    """The openai backend's, of Responses."""
    return await _of_body(ResponsesReader(8192), openai_translated, chunks, random)


async def _of_body(
    reader: AnswerReader | ChatReader | ResponsesReader, translate: Translate, chunks: list[bytes], random: Random
) -> Ended:
    import httpx2

    kind = random.choice(("text/event-stream",) * 8 + ("application/json", ""))
    broken = httpx2.RemoteProtocolError("cut") if random.random() < 0.1 else None
    calls: tuple[Call, ...] = ()
    reason = "result"
    try:
        async for part in read(Body(chunks, kind, broken), reader, silence_s=60, most_bytes=MOST_BYTES):
            if isinstance(part, ModelAnswer):
                calls = sound(part).calls
            else:
                shaped(part)
    except BackendError as error:
        reason = error.details["reason"]
    except Exception as error:
        known = translate(error, ())
        if known is None:
            raise
        reason = known.details["reason"]
    return Ended(reason, reader.frames > 1, calls)


# --- claude -----------------------------------------------------------------------------------------------------------
class _Quiet:
    """A child that has ended and said nothing else."""

    errors = ""

    def is_ready(self) -> bool:
        return False


async def claude(chunks: list[bytes], random: Random) -> Ended:
    """The claude backend's: Claude Code's lines, by the SDK's parser."""
    from claude_agent_sdk._internal.message_parser import parse_message

    from agentmesh_node.backends.claude import messages as claude_messages
    from agentmesh_node.backends.claude.process import parsed
    from agentmesh_node.backends.claude.sent_inputs import SentInputs

    sent, seen = SentInputs(), 0
    reader = claude_messages.MessageReader("s", {})
    driven = Driven(TurnBounds(None, 500, 1 << 20))

    async def conversation() -> AsyncGenerator[Any]:
        nonlocal seen
        for line in b"".join(chunks).splitlines(keepends=True):
            message = parsed(line)
            if message is not None:
                seen += 1
                sent.observe(message)
                found = parse_message(message)
                if found is not None:
                    yield found

    events: list[Event] = []
    try:
        async for event in claude_messages.heard(conversation(), reader, _Quiet(), driven):
            events.append(event)  # noqa: PERF401 - those before an error count too
    except BackendError as error:
        events.append(Event.error(str(error.details["reason"])))
    return _terminal(events, seen > 1)


# --- codex ------------------------------------------------------------------------------------------------------------
class _Nowhere:
    """A standard input that nobody reads."""

    def write(self, data: bytes) -> None:
        return None

    async def drain(self) -> None:
        return None


class _Over:
    """A child process that has said all, and ended."""

    returncode = 0
    stdin = _Nowhere()
    pid = 0

    def __init__(self, data: bytes) -> None:
        self.stdout = asyncio.StreamReader(limit=1 << 20)
        self.stdout.feed_data(data)
        self.stdout.feed_eof()

    async def wait(self) -> int:
        return 0


async def codex(chunks: list[bytes], random: Random) -> Ended:
    """The codex backend's: the app server's lines."""
    from agentmesh_node.backends.codex.own_tools import OwnToolRuns
    from agentmesh_node.backends.codex.process import AppServer
    from agentmesh_node.backends.codex.rollout import File, MemoryStore
    from agentmesh_node.backends.codex.run import Ground, Run, Session, failed
    from agentmesh_node.backends.codex.settings import CodexOptions
    from agentmesh_node.backends.codex.steps import EarlierSteps

    turn = Turn("coder", "1", 1, steps=UnjournaledSteps())
    store = MemoryStore()
    toolbox = Toolbox(Agent[Any]())
    run = Run(Ground(CodexOptions(), Path("/nowhere"), store, toolbox), Session(), turn)
    run._thread = "t"  # as in all recordings
    server = AppServer([], env={}, cwd="/")
    server._process = _Over(b"".join(chunks))  # type: ignore[assignment]
    tools = OwnToolRuns(toolbox, turn, EarlierSteps(()), server)
    events: list[Event] = []
    try:
        async for event in run.listen(server, tools, File(Path("/nowhere"), store, bytes), "u"):
            events.append(event)  # noqa: PERF401 - those before an error count too
        events.append(Event.result(run._text))
    except BackendError as error:
        events.append(failed(error))
    finally:
        await tools.close()
    return _terminal(events, len(events) > 1)


def _terminal(events: list[Event], behind_first: bool) -> Ended:
    """How the events of a turn end; they have the form that the contract asks for."""
    assert [event.terminal for event in events].count(True) == 1, [event.kind for event in events]
    last = events[-1]
    assert last.terminal
    for event in events:
        shaped(event)
    return Ended("result" if last.kind == "result" else str(last.data["reason"]), behind_first)


READERS: dict[str, Reader] = {"messages": messages, "chat": chat, "responses": responses, "claude": claude, "codex": codex}
"""By the recordings that they are tried with."""
