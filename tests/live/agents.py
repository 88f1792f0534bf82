"""Agents that live tests talk to. They run in the test's process, or in nodes that are killed.

A prompt may steer its own turn: `gate:PATH ...` waits until the file PATH exists (a turn is in the middle as long as a test
wants it to be, on whichever node it runs), `fail:REASON` is an error of the backend. Each turn that begins is a line in the file
named by the option `runs`, so that tests can count attempts over all processes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from agentmesh import Agent, Answer, Defer, Halt, Idle, Init, Proceed, Prompt, Timer, Undelivered
from agentmesh.backend import Event, Response
from agentmesh_node.backends.scripted import Fail

GATE_S = 0.01


async def steered(prompt: str) -> Any:
    """The scripted answer to `prompt`: it says what it was told, when the gate is open."""
    word, _, rest = prompt.partition(" ")
    verb, _, argument = word.partition(":")
    if verb == "gate":
        gate = Path(argument)
        while not await asyncio.to_thread(gate.exists):
            await asyncio.sleep(GATE_S)
        return rest
    if verb == "fail":
        return Fail(argument)
    return prompt


class Log(msgspec.Struct):
    """What an agent has come to see."""

    runs: str | None = None
    options: dict[str, Any] = {}
    prompts: list[str] = []
    events: list[Any] = []
    senders: list[str | None] = []
    refs: list[str] = []


def noted(state: Log, **more: Any) -> Log:
    """`state` with each value at the end of the list of that name."""
    return msgspec.structs.replace(state, **{key: [*getattr(state, key), value] for key, value in more.items()})


def plain(event: Any) -> Any:
    """An event as JSON that a test can compare."""
    match event:
        case Answer(tag=tag, agent=agent, outcome=outcome):
            return {"answer": tag, "agent": agent, "ok": outcome.ok, "text": outcome.text, "code": getattr(outcome.error, "code", None)}
        case Undelivered(effect=effect, error=error):
            return {"undelivered": effect, "code": error.code}
        case Timer(id=timer_id, event=inner, missed=missed):
            return {"timer": timer_id, "event": inner, "missed": missed}
    return event


class Recorder(Agent[Log]):
    """Notes what it gets, and answers with its prompt."""

    backend = "scripted"
    script = staticmethod(steered)

    async def init_agent(self, options: dict[str, Any]) -> Init[Log]:
        return Init(Log(runs=options.get("runs"), options=options))

    async def pre_turn(self, prompt: str, state: Log) -> Proceed[Log]:
        if state.runs is not None:
            with Path(state.runs).open("a") as runs:
                runs.write(f"{prompt}\n")
        return Proceed(prompt, state)

    async def handle_response(self, ref: str, response: Response, state: Log) -> Idle[Log] | Prompt[Log] | Halt[Log] | Defer[Log]:
        return Idle(noted(state, prompts=response.text, senders=self.request.sender, refs=ref))

    async def handle_event(self, event: Any, state: Log) -> Idle[Log] | Prompt[Log] | Halt[Log]:
        return Idle(noted(state, events=plain(event), senders=self.sender))


class Talker(Recorder):
    """Says much in one turn."""

    @staticmethod
    def script(prompt: str) -> list[Any]:
        return [
            Event("text", {"text": f"thinking about {prompt}"}),
            Event("tool_use", {"id": "t1", "name": "grep", "input": {"for": prompt}}),
            Event("tool_result", {"id": "t1", "ok": True, "text": "found"}),
            Event("text", {"text": "there"}),
            Event("usage", {"input_tokens": 3, "output_tokens": 4}),
            Event("result", {"text": "it is there"}),
        ]
