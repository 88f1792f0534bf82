"""The agents of the workload: each counts what it consumes and keeps a log of it, and does what a prompt says.

    add L            nothing more
    pass L N         pass it on to the next agent of the ring, N times
    call L N         ask the next agent of the chain, N deep, and answer with its answer
    apart L N        the same, and tell the next agent something that does not end with the request
    halt L           halt
    boom L           crash, always
    flaky L          crash, at times
    once L           crash the first time
    skip L           (to a `Prepared` one) is refused without a turn
    lost L           tell an agent that does not exist
    timer L S        have L back as an event in S seconds
    drop L I         cancel timer I
    steps L N        take N steps, each behind a call
    slowly L N       the same, and each call takes a while
    wait L A B ...   ask A in mid-turn, which asks B, and so on
    spawn L A        start agent A, and send it one prompt
    end L A          stop agent A
    odd L            (to a `Typed` one) is first answered with what is not of its type
    wrong L          (the same) is answered so twice

An event `{"label": L}` is counted too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

from msgspec import Struct
from msgspec.json import encode

from agentmesh import Agent, Answer, Closed, Defer, Halt, Idle, Init, Proceed, Skip, Timer, Undelivered
from agentmesh.backend import Event, Response, Turn
from agentmesh.identity import told
from judge.evidence import Call, State, TurnCall

SLOW_STEP_S = 0.2
"""How long a call of a slow turn takes."""
WAIT_S = 1200.0
"""How long a wait inside a turn may last: longer than any run, so that a circle which nobody finds shows."""


class Cell(Agent[State]):
    """One agent."""

    dice: ClassVar[random.Random] = random.Random(0)
    slowness: ClassVar[float] = 0.2
    """Longest turn, in seconds."""
    keep: ClassVar[int] = 0
    """How many of the newest entries of its log it remembers; 0: all of them."""
    bulk: ClassVar[int] = 0
    """Bytes that a turn adds to its state, or takes away again: too many for a record to be one message."""
    crashed: ClassVar[set[str]] = set()
    """What `once` has crashed on: the world's memory, not the agent's."""

    ending: ClassVar[set[str]] = set()
    """Labels of requests that end by a time: questions on their behalf may time out."""
    called: ClassVar[Counter[tuple[str, int]]] = Counter()
    """How often a turn made each of its calls: the world's memory too."""
    calls: ClassVar[list[Call]] = []
    """Every call, as it began: so is this."""
    made: ClassVar[list[TurnCall]] = []
    """Every call of turns that tell of their calls: the world's memory as well."""
    decided: ClassVar[list[Call]] = []
    """Every call of `handle_response`, and this."""
    where: ClassVar[Callable[[], str]] = str
    """Tells in which process something runs."""

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        verb, label, *rest = prompt.split()
        Cell._begin_call(turn)
        await Cell._work()
        if verb in ("steps", "slowly"):
            for number in range(len(turn.steps.taken), int(rest[0])):
                await turn.calls.begin()
                Cell.called[turn.steps.key, number] += 1
                Cell._begin_call(turn)
                with Cell.making(turn.agent, turn.steps.key, f"call {number}"):
                    await (asyncio.sleep(SLOW_STEP_S) if verb == "slowly" else Cell._work())
                    yield Event("text", {"text": f"[{number}]"})
                    await turn.steps.take(f"{label}#{number}")
                turn.calls.end()
        if verb == "wait" and rest:
            following = f"{label.partition('@')[0]}@{len(rest)}"
            request = " ".join(("wait", following, *rest[1:]))
            await turn.calls.begin()
            async with turn.calls.resting():
                outcome = await turn.steps.ask("w", rest[0], request, timeout_s=WAIT_S)
            turn.calls.end()
            base = label.partition("@")[0]
            assert outcome.error is None or outcome.error.code != "timeout" or base in Cell.ending
            prompt = f"{prompt} => {outcome.text if outcome.ok or outcome.error is None else f'!{outcome.error.code}'}"
        yield Event.result(prompt)

    @staticmethod
    @contextlib.contextmanager
    def making(agent: str, turn: str, what: str) -> Iterator[None]:
        """Note a call of a turn, and how it ends."""
        call = TurnCall(agent, turn, what, Cell.where(), asyncio.get_running_loop().time())
        Cell.made.append(call)
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            call.end = "cut"
            raise
        except BaseException:
            call.end = "failed"
            raise
        call.end = "done"

    @staticmethod
    def _begin_call(turn: Turn) -> None:
        Cell.calls.append(Call(turn.agent, turn.ref, Cell.where(), asyncio.get_running_loop().time(), told(turn.chain)))

    @staticmethod
    async def _work() -> None:
        """Take a while, at times."""
        if Cell.slowness and Cell.dice.random() < 0.5:
            await asyncio.sleep(Cell.dice.uniform(0.0, Cell.slowness))

    async def init_agent(self, options: dict[str, Any]) -> Init[State]:
        return Init(State(next=options.get("next", "")))

    def _note(self, state: State, entry: str) -> None:
        state.log.append(entry)
        if self.keep and len(state.log) > self.keep:
            state.dropped += len(state.log) - self.keep
            del state.log[: -self.keep]

    async def handle_response(self, ref: str, response: Response, state: State) -> Idle[State] | Halt[State] | Defer[State]:
        verb, label, *rest = response.text.split()
        state.count += 1
        self._note(state, f"prompt|{self.request.sender or '-'}|{label}")
        now = asyncio.get_running_loop().time()
        Cell.decided.append(Call(self.name, self.request.ref, Cell.where(), now, told(self.request.chain)))
        state.pad = "" if state.pad else "x" * self.bulk
        match verb:
            case "pass" if int(rest[0]) > 0:
                self.tell(state.next, f"pass {label.partition('@')[0]}@{rest[0]} {int(rest[0]) - 1}")
            case "call" | "apart" if int(rest[0]) > 0:
                base = label.partition("@")[0]
                self.tell(state.next, f"{verb} {base}@{rest[0]} {int(rest[0]) - 1}", tag=ref)
                if verb == "apart":
                    self.tell(state.next, f"add {base}@d{rest[0]}", detached=True)
                return Defer(state)
            case "halt":
                return Halt(state)
            case "boom":
                raise RuntimeError(label)
            case "once" if label not in self.crashed:
                self.crashed.add(label)
                raise RuntimeError(label)
            case "flaky" if self.dice.random() < 0.5:
                raise RuntimeError(label)
            case _:
                self._ask_for(verb, label, rest)
        return Idle(state)

    def _ask_for(self, verb: str, label: str, rest: list[str]) -> None:
        match verb:
            case "lost":
                self.tell("nobody", f"add {label}@lost")
            case "timer":
                self.notify_after(float(rest[0]), {"label": label}, id=label)
            case "drop":
                self.cancel_timer(rest[0])
            case "spawn":
                self.start_agent(rest[0], kind="Cell", if_exists="use")
                self.tell(rest[0], f"add {label}@spawned")
            case "end":
                self.stop_agent(rest[0])

    async def handle_event(self, event: Any, state: State) -> Idle[State]:
        match event:
            case Answer():
                self._note(state, f"answer|{event.agent}|{event.tag}")
                if event.outcome.ok:
                    self.reply(event.tag, event.outcome.text)
                else:
                    assert event.outcome.error is not None
                    self.reply(event.tag, error=event.outcome.error.exception())
            case Timer():
                state.count += 1
                self._note(state, f"timer|-|{event.id}")
            case Undelivered():
                self._note(state, f"undelivered|-|{event.effect['target']}:{event.error.code}")
                if "tag" in event.effect:
                    self.reply(event.effect["tag"], error=event.error.exception())
            case Closed():
                pass
            case _:
                state.count += 1
                self._note(state, f"event|{self.sender or '-'}|{event['label']}")
        return Idle(state)


class Prepared(Cell):
    """A cell that prepares before its first turn, looks at each prompt, and notes each halt."""

    async def pre_run(self, state: State) -> State:
        self._note(state, "prepared|-|-")
        return state

    async def pre_turn(self, prompt: str, state: State) -> Proceed[State] | Skip[State]:
        return Skip(state) if prompt.startswith("skip ") else Proceed(prompt, state)


class Said(Struct):
    """A typed answer."""

    said: str


class Typed(Cell):
    """A cell whose answers have a type, and whose model keeps to it or does not."""

    answer_type = Said
    asked: ClassVar[dict[str, str]] = {}
    """What each turn was asked: its model remembers it when it is told that its answer does not fit."""

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        name, again, _ = turn.steps.key.partition("/misfit")
        Cell._begin_call(turn)
        await Cell._work()
        asked = Typed.asked[name] if again else Typed.asked.setdefault(name, prompt)
        fits = asked.startswith("add") or (bool(again) and asked.startswith("odd"))
        yield Event.usage(input_tokens=1, output_tokens=1)
        yield Event.result(encode(Said(asked)).decode() if fits else asked)

    async def handle_response(self, ref: str, response: Response[Said], state: State) -> Idle[State]:
        state.count += 1
        self._note(state, f"prompt|{self.request.sender or '-'}|{response.answer.said.split()[1]}")
        return Idle(state)


KINDS: dict[str, type[Agent[Any]]] = {"Cell": Cell, "Prepared": Prepared, "Typed": Typed}
"""What the nodes serve."""
