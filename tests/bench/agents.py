"""The agents that are measured. Their model answers at once: what is left is the mesh's own work."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from agentmesh import Agent, Answer, Defer, Idle, Init
from agentmesh.backend import Response


class Count(msgspec.Struct):
    """A state that every turn changes."""

    turns: int = 0
    ballast: str = ""


class Echo(Agent[Count]):
    """Answers with its prompt. The option `ballast` is the size of its state, in bytes."""

    async def init_agent(self, options: dict[str, Any]) -> Init[Count]:
        return Init(Count(ballast="x" * options.get("ballast", 0)))

    async def handle_response(self, ref: str, response: Response, state: Count) -> Idle[Count]:
        state.turns += 1
        return Idle(state)


class Place(msgspec.Struct):
    """Where an agent stands in its ring, and the request that the first one keeps open during a lap."""

    first: str
    next: str
    asked: str = ""


class Ring(Agent[Place]):
    """Hands a prompt on: `lap HOPS` begins, `hop LEFT SENT` goes on, `done` ends at the first agent.

    How long each hop took, from callback to callback, stays in this process until `report` asks for it.
    """

    def __init__(self) -> None:
        self.hops: list[float] = []

    def script(self, prompt: str) -> str:
        if prompt != "report":
            return prompt
        report, self.hops = json.dumps(self.hops), []
        return report

    async def init_agent(self, options: dict[str, Any]) -> Init[Place]:
        return Init(Place(options["first"], options["next"]))

    async def handle_response(self, ref: str, response: Response, state: Place) -> Idle[Place] | Defer[Place]:
        now = time.monotonic()
        match response.text.split():
            case ["lap", hops]:
                self.tell(state.next, f"hop {hops} {now}")
                return Defer(Place(state.first, state.next, ref))
            case ["hop", left, sent]:
                self.hops.append((now - float(sent)) * 1e3)
                more = int(left) - 1
                self.tell(*((state.next, f"hop {more} {now}") if more else (state.first, "done")))
            case ["done"]:
                self.reply(state.asked, "done")
        return Idle(state)


class Gathered(msgspec.Struct):
    """The request to answer, and how many workers have not yet."""

    asked: str = ""
    missing: int = 0


class Boss(Agent[Gathered]):
    """Asks as many workers as its prompt says, and answers when all have: `<its name>.0` and so on."""

    async def init_agent(self, options: dict[str, Any]) -> Init[Gathered]:
        return Init(Gathered())

    async def handle_response(self, ref: str, response: Response, state: Gathered) -> Defer[Gathered]:
        count = int(response.text)
        for number in range(count):
            self.tell(f"{self.name}.{number}", "work", tag=str(number))
        return Defer(Gathered(ref, count))

    async def handle_event(self, event: Any, state: Gathered) -> Idle[Gathered]:
        if isinstance(event, Answer):
            state.missing -= 1
            if not state.missing:
                self.reply(state.asked, "all")
        return Idle(state)
