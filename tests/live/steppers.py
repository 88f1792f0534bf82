"""Agents whose turns are long: they take steps, and ask one another in the middle.

A prompt that is a JSON list is a program, run in one turn:

- `["call", FILE, WORD]` is a tool call: it adds a line to FILE, and its result is a step;
- `["gate", FILE]` waits until FILE exists;
- `["ask", AGENT, PROMPT, SECONDS]` asks an agent; PROMPT may be a program as well;
- `["both", OP, OP, ...]` runs asks at the same time.

The answer is the list of what came of them; errors are `!code`. Any other prompt is answered with itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from agentmesh import Agent, Idle, Init
from agentmesh.backend import Event, Response, Turn
from live.agents import GATE_S, add_line


class Book(msgspec.Struct):
    """What an agent has seen."""

    answers: list[str] = []
    calls: list[str] = []
    """Results of calls, as `handle_stream_event` saw them."""
    replayed: int = 0
    events: list[Any] = []


class Run:
    """One run of a program."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._done = deque(turn.steps.taken)
        self.results: list[Any] = []

    async def events(self, program: list[Any]) -> AsyncIterator[Event]:
        """Do all of it; each call is an event."""
        for place, (verb, *arguments) in enumerate(program):
            match verb:
                case "call":
                    replayed = bool(self._done)
                    result = self._done.popleft() if self._done else await self._call(*arguments)
                    self.results.append(result)
                    yield Event("tool_result", {"id": str(place), "ok": True, "text": result}, replayed=replayed)
                case "gate":
                    await opened(Path(arguments[0]))
                case "ask":
                    self.results.append(await self._ask(f"w{place}", *arguments))
                case "both":
                    asks = (self._ask(f"w{place}.{n}", *op[1:]) for n, op in enumerate(arguments))
                    self.results.append(await asyncio.gather(*asks))
        yield Event.result(msgspec.json.encode(self.results).decode())

    async def _call(self, file: str, word: str) -> str:
        await asyncio.to_thread(add_line, Path(file), word)
        await asyncio.sleep(GATE_S)
        await self._turn.steps.take(word)
        return word

    async def _ask(self, wait: str, agent: str, prompt: Any, seconds: float) -> Any:
        text = prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()
        outcome = await self._turn.steps.ask(wait, agent, text, timeout_s=seconds)
        if outcome.error is not None:
            return f"!{outcome.error.code}"
        assert outcome.text is not None
        return msgspec.json.decode(outcome.text) if outcome.text.startswith("[") else outcome.text


async def opened(gate: Path) -> None:
    while not await asyncio.to_thread(gate.exists):  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(GATE_S)


async def answer(prompt: str, turn: Turn) -> AsyncIterator[Event]:
    """The events of a turn."""
    if not prompt.startswith("["):
        yield Event.result(prompt)
        return
    async for event in Run(turn).events(msgspec.json.decode(prompt)):
        yield event


class Doer(Agent[Book]):
    """Does what its prompt says."""

    script = staticmethod(answer)

    def init_agent(self, options: dict[str, Any]) -> Init[Book]:
        return Init(Book())

    def handle_stream_event(self, event: Event, state: Book) -> Book:
        if event.kind != "tool_result":
            return state
        calls = [*state.calls, event.data["text"]]
        return msgspec.structs.replace(state, calls=calls, replayed=state.replayed + event.replayed)

    async def handle_response(self, ref: str, response: Response, state: Book) -> Idle[Book]:
        return Idle(msgspec.structs.replace(state, answers=[*state.answers, response.text]))

    async def handle_event(self, event: Any, state: Book) -> Idle[Book]:
        return Idle(msgspec.structs.replace(state, events=[*state.events, event]))
