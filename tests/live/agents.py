"""Agents that live tests talk to. They run in the test's process, or in nodes that are killed.

A prompt may steer its own turn: `gate:PATH ...` waits until the file PATH exists (a turn is in the middle as long as a test
wants it to be, on whichever node it runs), `fail:REASON` is an error of the backend. Each turn that begins is a line in the file
named by the option `runs`, so that tests can count attempts over all processes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from agentmesh import Agent, Answer, Closed, Defer, Halt, Idle, Init, Proceed, Prompt, Skip, Timer, Undelivered
from agentmesh.backend import Event, Response
from agentmesh.errors import BadRequest, MeshError
from agentmesh.wire import Outcome
from agentmesh_node.backends.scripted import Delay, Fail, Raises

GATE_S = 0.01


async def steered(prompt: str) -> Any:
    """The scripted answer to `prompt`: it says what it was told, when the gate is open."""
    word, _, rest = prompt.partition(" ")
    verb, _, argument = word.partition(":")
    if verb == "gate":
        gate = Path(argument)
        while not await asyncio.to_thread(gate.exists):  # noqa: ASYNC110 - another process opens it
            await asyncio.sleep(GATE_S)
        return rest
    if verb == "fail":
        return Fail(argument)
    return prompt


def add_line(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


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
            return {
                "answer": tag,
                "agent": agent,
                "ok": outcome.ok,
                "text": outcome.text,
                "code": getattr(outcome.error, "code", None),
            }
        case Undelivered(effect=effect, error=error):
            return {"undelivered": effect, "code": error.code}
        case Closed(ref=ref, how=how):
            return {"closed": ref, "how": how}
        case Timer(id=timer_id, event=inner, missed=missed):
            return {"timer": timer_id, "event": inner, "missed": missed}
    return event


class Recorder(Agent[Log]):
    """Notes what it gets, and answers with its prompt."""

    backend = "scripted"
    script: ClassVar[Any] = staticmethod(steered)

    async def init_agent(self, options: dict[str, Any]) -> Init[Log]:
        return Init(Log(runs=options.get("runs"), options=options))

    async def pre_turn(self, prompt: str, state: Log) -> Proceed[Log]:
        if state.runs is not None:
            await asyncio.to_thread(add_line, Path(state.runs), prompt)
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


class Puppet(Recorder):
    """Does what it is told: a prompt, or an event `{"do": ...}`, is a list of calls `[hand, {argument: value}]`.

    `["raise", {"message": ...}]` raises; `["then", {"decision": ..., "text": ...}]` decides: `halt`, `defer`, `exclusive`
    (a deferral), `prompt`.
    """

    async def handle_response(self, ref: str, response: Response, state: Log) -> Idle[Log] | Prompt[Log] | Halt[Log] | Defer[Log]:
        state = noted(state, prompts=response.text, senders=self.request.sender, refs=ref)
        try:
            calls = msgspec.json.decode(response.text)
        except msgspec.DecodeError:
            return Idle(state)
        return self._do(calls, state)

    async def handle_event(self, event: Any, state: Log) -> Idle[Log] | Prompt[Log] | Halt[Log]:
        state = noted(state, events=plain(event), senders=self.sender)
        decision = self._do(event["do"], state) if isinstance(event, dict) and "do" in event else Idle(state)
        assert not isinstance(decision, Defer)
        return decision

    def _do(self, calls: list[Any], state: Log) -> Idle[Log] | Prompt[Log] | Halt[Log] | Defer[Log]:
        decision: Idle[Log] | Prompt[Log] | Halt[Log] | Defer[Log] = Idle(state)
        for hand, arguments in calls:
            if hand == "raise":
                raise RuntimeError(arguments["message"])
            if hand == "then":
                decision = decided(state, **arguments)
            else:
                getattr(self, hand)(**arguments)
        return decision


def decided(state: Log, decision: str, text: str = "") -> Idle[Log] | Prompt[Log] | Halt[Log] | Defer[Log]:
    match decision:
        case "halt":
            return Halt(state)
        case "defer" | "exclusive":
            return Defer(state, exclusive=decision == "exclusive")
        case "prompt":
            return Prompt(text, state)
    return Idle(state)


class Guarded(Puppet):
    """One that a user named shop may ask, and nobody else."""

    callers = ("shop",)


class Collector(Agent[Log]):
    """Asks the agents that its prompt names, and answers its caller when all of them have answered."""

    backend = "scripted"

    async def init_agent(self, options: dict[str, Any]) -> Init[Log]:
        return Init(Log())

    async def handle_response(self, ref: str, response: Response, state: Log) -> Defer[Log]:
        names = response.text.split()
        for name in names:
            self.start_agent(name, kind="Recorder", if_exists="use")
            self.tell(name, f"work of {name}", tag=name)
        return Defer(Log(prompts=names, refs=[ref]))

    async def handle_event(self, event: Any, state: Log) -> Idle[Log]:
        state = noted(state, events=plain(event), senders=self.sender)
        if len(state.events) == len(state.prompts):
            self.reply(state.refs[0], " ".join(sorted(event.get("answer") or "?" for event in state.events)))
        return Idle(state)


class Sequel(Recorder):
    """A list of answers: the session holds the place in it."""

    script: ClassVar[Any] = (
        [Event("result", {"text": "first answer", "session_id": "s-1"})],
        "second answer",
        "third answer",
    )

    async def pre_turn(self, prompt: str, state: Log) -> Proceed[Log]:
        return Proceed(prompt, state)


class Gatherer(Agent[Log]):
    """Has a worker for each of the option `gates`, whose turns end when their gates open."""

    backend = "scripted"

    async def init_agent(self, options: dict[str, Any]) -> Init[Log]:
        return Init(Log(options=options))

    async def handle_response(self, ref: str, response: Response, state: Log) -> Defer[Log]:
        for number, gate in enumerate(state.options["gates"]):
            worker = f"{self.name}.w{number}"
            self.start_agent(worker, kind="Recorder", link=True)
            self.tell(worker, f"gate:{gate} w{number}", tag=f"w{number}")
        return Defer(noted(state, refs=ref))

    async def handle_event(self, event: Any, state: Log) -> Idle[Log]:
        state = noted(state, events=plain(event))
        if len(state.events) == len(state.options["gates"]):
            self.reply(state.refs[0], " ".join(sorted(event["text"] for event in state.events)))
        return Idle(state)


class Wordy(Recorder):
    """Answers with as many characters as its prompt says, and keeps them."""

    script: ClassVar[Any] = staticmethod(lambda prompt: "w" * int(prompt))


class Unfit(Agent[Log]):
    """Does what no agent may: at its start as the option `how` says, in a turn as the prompt says."""

    backend = "scripted"

    async def init_agent(self, options: dict[str, Any]) -> Any:
        match options.get("how"):
            case "raises":
                raise RuntimeError("no disk")
            case "returns":
                return "a string"
            case "returns_error":
                return BadRequest("these options do not fit")
            case "state":
                return Init(object())
            case "script":
                return Init(Log(), backend={"script": 7})
            case "hangs":
                await asyncio.Event().wait()
        return Init(Log())

    async def handle_response(self, ref: str, response: Response, state: Log) -> Any:
        match response.text:
            case "return":
                return 7
            case "state":
                return Idle(noted(state, events=lambda: "later"))
        return Idle(noted(state, prompts=response.text))


class Picky(Recorder):
    """Rewrites, skips and halts before a turn, as the prompt says; notes which callbacks ran, in `events`."""

    async def pre_run(self, state: Log) -> Log:
        return noted(state, events="pre_run")

    async def pre_turn(self, prompt: str, state: Log) -> Any:
        state = noted(state, events=f"pre_turn {prompt}")
        match prompt:
            case "skip me":
                return Skip(state)
            case "halt me":
                return Halt(state)
            case "raise in pre_turn":
                raise RuntimeError("pre_turn")
            case "nonsense in pre_turn":
                return 7
        return Proceed(prompt.replace("draft", "final"), state)

    async def handle_error(self, ref: str, error: MeshError, state: Log) -> Idle[Log] | Prompt[Log] | Halt[Log]:
        tries = sum(isinstance(event, str) and event.startswith("error") for event in state.events)
        state = noted(state, events=f"error {error.code}")
        if error.details.get("reason") == "again":
            return Prompt("fail:again" if tries == 0 else "third time", state)
        return Halt(state) if error.details.get("reason") == "halt" else Idle(state)

    async def post_turn(self, outcome: Outcome, ref: str, state: Log) -> Log:
        return noted(state, events=f"post_turn {outcome.ok}")


class Preparing(Recorder):
    """Its `pre_run` waits for the option `gate`; without one it raises."""

    async def pre_run(self, state: Log) -> Log:
        if not state.options["gate"]:
            raise RuntimeError("no gate")
        await steered(f"gate:{state.options['gate']}")
        return state


class Failing(Recorder):
    """Fails as its prompt says."""

    @staticmethod
    def script(prompt: str) -> Any:
        text = Event("text", {"text": prompt})
        ways: dict[str, Any] = {
            "refuse": Fail("quota"),
            "terminal": [text, Event("error", {"reason": "overloaded"})],
            "unnamed": [Event("error", {})],
            "silent": [text],
            "crash": Raises(RuntimeError("the stream broke"), text),
            "observer": [Event("text", {"text": "raise in the observer"}), Event("result", {"text": "never"})],
            "hang": [Delay(3600), Event("result", {"text": "never"})],
        }
        return ways.get(prompt, prompt)

    def handle_stream_event(self, event: Event, state: Log) -> Log:
        if event.data.get("text") == "raise in the observer":
            raise RuntimeError("the observer broke")
        return noted(state, events=event.kind)


class Leaving(Recorder):
    """Leaves a line in the file of its runs when it ends or halts."""

    async def terminate_agent(self, reason: MeshError, state: Log) -> None:
        await asyncio.to_thread(add_line, Path(state.runs or ""), f"leaving: {reason.code}")

    async def post_run(self, state: Log) -> None:
        await asyncio.to_thread(add_line, Path(state.runs or ""), "leaving: halted")


class Halting(Recorder):
    """Its answer stops in the middle, unless the file that its prompt names exists."""

    @staticmethod
    def script(prompt: str) -> list[Any]:
        pause = [] if Path(prompt).exists() else [Delay(3600)]
        return [Event("text", {"text": "one"}), *pause, Event("text", {"text": "two"}), Event("result", {"text": "one two"})]
