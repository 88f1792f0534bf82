"""Agents that pay: a model, a tool loop and `once` tools, and what was paid in the whole world.

    pay L N          make N payments, `L/0`, `L/1` and so on: the even ones by `pay`, of which nobody can tell afterwards whether
                     it was made; the odd ones by `transfer`, whose receiver knows it by its key
    transfer L N     the same, all by `transfer`; the model fails behind the first one, and is asked again
    wait L           (without further agents) as `pay L 2`, on behalf of another agent
    work L N         make N calls of a model, each with some tools behind it that run at the same time: some look, which takes a
                     while, and some ask another agent; the model fails at times, and is asked again after a pause

Where agents are slow at times, tools take too long then, before or behind the payment. The model makes a call again, at times, of
which it was told that its outcome is unknown; it fails at times; and so does the agent's own code.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from agentmesh import Agent, Idle, Prompt
from agentmesh.backend import Event, Response, Turn
from agentmesh.errors import BackendError, MeshError
from agentmesh.tools import Done, NotDone, ToolCall, ToolSpec, agent_tool, tool
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.loop import ToolLoop
from agentmesh_node.tools.loop_steps import ModelAnswer
from judge.evidence import Payment, State
from sim.agents import Cell

TIMEOUT_S = 1.0
UNKNOWN = ("timeout", "unknown_outcome", "interrupted")
"""Errors of calls that may have been made."""
LOOK_S = 900.0
"""How long a look, or a question, may take: longer than any run."""
COUNTED_BY = "k0"
"""Whom those ask that work: one of the agents that count (`sim.workload.COUNTERS`)."""
ON_BEHALF = 2
"""Payments of a question."""


class Bank:
    """The world's memory of payments. `clear` it before a run."""

    paid: ClassVar[list[Payment]] = []
    prompts: ClassVar[dict[str, str]] = {}
    """By the refs of prompts: what they were."""
    failed: ClassVar[set[str]] = set()
    """Labels on which the model, or the agent's code, has failed once."""

    @classmethod
    def clear(cls) -> None:
        cls.paid.clear()
        cls.prompts.clear()
        cls.failed.clear()

    @classmethod
    async def pay(cls, tool_: str, to: str, call: ToolCall) -> str:
        """Make a payment, slowly at times."""
        for when in ("before", "behind"):
            if when == "behind":
                cls.paid.append(Payment(call.agent, tool_, to, call.key, Cell.where(), asyncio.get_running_loop().time()))
            if Cell.slowness and Cell.dice.random() < 0.3:
                await asyncio.sleep(Cell.dice.uniform(0.0, 1.5 * TIMEOUT_S))
        return f"paid {to}"

    @classmethod
    def fails(cls, what: str, label: str) -> bool:
        """Whether something fails now: once at most for each label."""
        if f"{what} {label}" in cls.failed or not Cell.slowness or Cell.dice.random() > 0.15:
            return False
        cls.failed.add(f"{what} {label}")
        return True


async def became(key: str) -> Done | NotDone | None:
    """What became of a transfer, as far as its receiver can tell now."""
    if Cell.slowness and Cell.dice.random() < 0.3:
        return None
    return Done("paid") if any(one.key == key for one in Bank.paid) else NotDone()


@tool(effect="once", timeout_s=TIMEOUT_S)
async def pay(to: str, call: ToolCall) -> str:
    """Pay, by a way of which nobody can tell afterwards whether it was gone."""
    return await Bank.pay("pay", to, call)


@tool(effect="once", reconcile=became, timeout_s=TIMEOUT_S)
async def transfer(to: str, call: ToolCall) -> str:
    """Pay somebody who knows each payment by its key, and takes it once."""
    return await Bank.pay("transfer", to, call)


@tool(effect="idempotent", timeout_s=LOOK_S)
async def look(at: str, call: ToolCall) -> str:
    """Look at something, and take a while for it."""
    await asyncio.sleep(Cell.dice.uniform(0.0, max(Cell.slowness, 0.2)))
    return at


ask = agent_tool(COUNTED_BY, name="ask", description="Ask somebody who counts.", timeout_s=LOOK_S)


class Till(Agent[Any]):
    """What the tools belong to."""

    tools = (pay, transfer, look, ask)


class Teller:
    """A model that makes payments one after the other, by what its history says of those that were made."""

    provider = "sim"
    name = "teller"

    def __init__(self, turn: Turn, verb: str, label: str, count: int) -> None:
        self._turn = turn
        self._transfers = verb == "transfer"
        self._label = label
        self._wanted = [f"{label}/{number}" for number in range(count)]

    def prompt(self, text: str, turn: Turn) -> Any:
        return ["user", text]

    def results(self, results: Sequence[Result]) -> Any:
        return ["results", *((result.ok, result.error) for result in results)]

    def noted(self, message: Any, note: str) -> Any:
        return [*message, note]

    async def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        Cell._begin_call(self._turn)
        with Cell.making(self._turn.agent, self._turn.steps.key, f"model {self._turn.number}.{len(history)}"):
            await Cell._work()
            yield self._answer(history)

    def _answer(self, history: Sequence[Any]) -> ModelAnswer:
        made = self._made(history)
        forced = self._transfers and len(made) == 1 and f"model {self._label}" not in Bank.failed
        if forced:
            Bank.failed.add(f"model {self._label}")
        if forced or Bank.fails("model", self._label):
            raise BackendError("the model is overloaded", details={"reason": "overloaded", "retryable": True})
        to = self._next(made)
        if to is None:
            return ModelAnswer(["model", "done"], "done", model=self.name)
        name = "transfer" if self._transfers or int(to.rpartition("/")[2]) % 2 else "pay"
        call = Call(f"{self._turn.number}-{len(made)}", name, {"to": to})
        return ModelAnswer(["model", to], calls=(call,), stop="tool_use", model=self.name)

    def _made(self, history: Sequence[Any]) -> list[tuple[str, bool, str | None]]:
        """The calls that a history shows: whom they paid, and how they ended."""
        pairs = itertools.pairwise(history)
        return [(m[1], *told[1]) for m, told in pairs if m[0] == "model" and told[0] == "results" and m[1] in self._wanted]

    def ends(self, history: Sequence[Any]) -> str:
        """How the payments ended, one after the other."""
        made = {to: "ok" if ok else "unknown" if error in UNKNOWN else "failed" for to, ok, error in self._made(history)}
        return ",".join(made[to] for to in self._wanted)

    def _next(self, made: Sequence[tuple[str, bool, str | None]]) -> str | None:
        """Whom to pay next: the one before again, once, if it is unknown what became of that."""
        if made:
            to, ok, error = made[-1]
            if not ok and error in UNKNOWN and sum(one[0] == to for one in made) < 2 and Cell.dice.random() < 0.6:
                return to
        return next((to for to in self._wanted if all(to != one[0] for one in made)), None)


class Worker:
    """A model that has some tools run at the same time, so many times, and is asked again where it fails."""

    provider = "sim"
    name = "worker"

    def __init__(self, turn: Turn, label: str, count: int) -> None:
        self._turn = turn
        self._label = label
        self._count = count
        self._shape = random.Random(label)
        """What is asked for of a label is the same whenever it is asked for."""
        self._tools = [self._of(number) for number in range(count)]

    def prompt(self, text: str, turn: Turn) -> Any:
        return ["user", text]

    def results(self, results: Sequence[Result]) -> Any:
        return ["results", len(results)]

    def noted(self, message: Any, note: str) -> Any:
        return [*message, note]

    async def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        done = sum(message[0] == "results" for message in history)
        while True:
            Cell._begin_call(self._turn)
            try:
                with Cell.making(self._turn.agent, self._turn.steps.key, f"model {self._turn.number}.{done}"):
                    await Cell._work()
                    if Cell.slowness and Cell.dice.random() < 0.2:
                        raise BackendError("the model is overloaded", details={"reason": "overloaded", "retryable": True})
                    yield Event("text", {"text": f"[{done}]"})
                    calls = self._tools[done] if done < self._count else ()
                    yield ModelAnswer(["model", done], f"[{done}]", calls=calls, model=self.name)
                return
            except BackendError:
                async with self._turn.calls.resting():
                    await asyncio.sleep(Cell.dice.uniform(0.0, 3.0))

    def _of(self, number: int) -> tuple[Call, ...]:
        count = self._shape.choice((1, 1, 2, 3))
        return tuple(self._call(number, index) for index in range(count))

    def _call(self, number: int, index: int) -> Call:
        own = f"{self._turn.number}-{number}-{index}"
        if self._shape.random() < 0.25:
            return Call(own, "ask", {"prompt": f"add {self._label}/{number}/{index}"})
        return Call(own, "look", {"at": f"{number}/{index}"})


class Noting(Toolbox):
    """A toolbox that notes what runs."""

    async def run(self, call: Call, turn: Turn, key: str = "") -> Result:
        if self.target(call.name) is not None:
            return await super().run(call, turn, key)  # a question is found again by its name
        with Cell.making(turn.agent, turn.steps.key, f"{call.name} {call.id}"):
            return await super().run(call, turn, key)


class Payer(Cell):
    """A cell that pays, and works. Its answer says of each payment how it ended."""

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        verb, label, *rest = prompt.split()
        if verb == "work":
            worker = Worker(turn, label, int(rest[0]))
            async with aclosing(ToolLoop(worker, Noting(Till())).run([], prompt, turn)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield Event.result(prompt) if event.kind == "result" else event
            return
        if verb not in ("pay", "transfer") and (verb != "wait" or rest):
            async for event in Cell.script(prompt, turn):
                yield event
            return
        Bank.prompts[turn.ref] = prompt
        model = Teller(turn, verb, label, int(rest[0]) if rest else ON_BEHALF)
        history: list[Any] = []
        async with aclosing(ToolLoop(model, Noting(Till())).run(history, prompt, turn)) as events:  # type: ignore[type-var]
            async for event in events:
                yield Event.result(f"{prompt} {model.ends(history)}") if event.kind == "result" else event

    async def handle_response(self, ref: str, response: Response, state: State) -> Any:
        verb, label = response.text.split()[:2]
        if verb == "pay" and Bank.fails("code", label):
            raise RuntimeError(label)
        return await super().handle_response(ref, response, state)

    async def handle_error(self, ref: str, error: MeshError, state: State) -> Idle[State] | Prompt[State]:
        if isinstance(error, BackendError) and ref in Bank.prompts:
            return Prompt(Bank.prompts[ref], state)
        return Idle(state)
