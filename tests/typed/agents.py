"""What a type checker infers of an agent, and what it refuses. Never run: `make lint` checks it.

mypy is strict about ignores that are not needed: each one below is an error that it must find.
"""

from __future__ import annotations

from typing import Any, TypedDict, assert_type

import msgspec

from agentmesh import (
    Agent,
    Answer,
    Defer,
    Event,
    Halt,
    Idle,
    Init,
    Proceed,
    Prompt,
    Response,
    Skip,
    Timer,
    Undelivered,
    agent_tool,
)
from agentmesh.callback_context import Request
from agentmesh.errors import MeshError
from agentmesh.structured import answer_of
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.settings import NodeSettings
from agentmesh_node.telemetry.events import Fact


class State(msgspec.Struct):
    lines: list[str] = []


class Typed(TypedDict):
    count: int


class Whole(Agent[State]):
    """Every callback, as it is meant to be written."""

    async def init_agent(self, options: dict[str, Any]) -> Init[State]:
        return Init(State(), backend={"model": options["model"]})

    async def handle_response(
        self, ref: str, response: Response, state: State
    ) -> Idle[State] | Prompt[State] | Halt[State] | Defer[State]:
        assert_type(response.text, str)
        assert_type(response.answer, Any)
        assert_type(response.events, tuple[Event, ...])
        assert_type(self.request, Request)
        assert_type(self.sender, str | None)
        assert_type(self.notify_after(1.0, {"any": "JSON"}), str)
        if response.usage is None:
            return Defer(state, exclusive=True)
        return Prompt("Go on.", state, label="more") if len(state.lines) < 3 else Halt(state)

    async def handle_error(self, ref: str, error: MeshError, state: State) -> Idle[State] | Prompt[State] | Halt[State]:
        assert_type(error.code, str)
        return Idle(state)

    async def handle_event(self, event: Any, state: State) -> Idle[State]:
        match event:
            case Answer(tag=tag, outcome=outcome):
                assert_type(tag, str)
                assert_type(outcome, Outcome)
            case Undelivered(error=error):
                assert_type(error, ErrorBody)
            case Timer(missed=missed):
                assert_type(missed, int)
        return Idle(state)

    def handle_stream_event(self, event: Event, state: State) -> State:
        return state

    async def pre_run(self, state: State) -> State:
        return state

    async def pre_turn(self, prompt: str, state: State) -> Proceed[State] | Skip[State] | Halt[State]:
        return Proceed(prompt, state) if prompt else Skip(state)

    async def post_turn(self, outcome: Outcome, ref: str, state: State) -> State:
        return state


class Brief(Agent[Typed]):
    """A narrower answer than the base's is fine."""

    async def init_agent(self, options: dict[str, Any]) -> Init[Typed]:
        return Init(Typed(count=0))

    async def handle_response(self, ref: str, response: Response, state: Typed) -> Idle[Typed]:
        assert_type(state["count"], int)
        return Idle(state)


class Plain(Agent[State]):
    """Plain callbacks are as good; an exception that is returned refuses."""

    def init_agent(self, options: dict[str, Any]) -> Init[State] | Exception:
        return Init(State()) if options else ValueError("no options")

    def handle_response(self, ref: str, response: Response, state: State) -> Idle[State]:
        return Idle(state)

    def handle_event(self, event: Any, state: State) -> Idle[State] | Halt[State]:
        return Halt(state)

    async def handle_stream_event(self, event: Event, state: State) -> State:
        return state

    def pre_run(self, state: State) -> State | Exception:
        return state

    def post_run(self, state: State) -> None:
        self.notify("other", "halted")


class Plan(msgspec.Struct):
    steps: list[str]


class Planner(Agent[State]):
    """Its answers have a type."""

    answer_type = Plan
    tools = (agent_tool("other", answer_type=Plan),)

    async def init_agent(self, options: dict[str, Any]) -> Init[State]:
        return Init(State())

    async def handle_response(self, ref: str, response: Response[Plan], state: State) -> Idle[State]:
        assert_type(response.answer, Plan)
        assert_type(response.answer.steps, list[str])
        print(response.answer.days)  # type: ignore[attr-defined]
        self.reply(ref, answer=Plan([]))
        return Idle(state)

    async def handle_event(self, event: Any, state: State) -> Idle[State]:
        if isinstance(event, Answer):
            assert_type(answer_of(event.outcome, Plan), Plan)
        return Idle(state)


class WrongType(Planner):
    answer_type = 7  # type: ignore[assignment]


class WrongState(Agent[State]):
    async def init_agent(self, options: dict[str, Any]) -> Init[State]:
        return Init({"lines": []})  # type: ignore[arg-type]

    async def handle_response(self, ref: str, response: Response, state: State) -> Idle[State]:
        state.line = "no such field"  # type: ignore[attr-defined]
        return Idle("text")  # type: ignore[arg-type]

    async def pre_turn(self, prompt: str, state: State) -> Proceed[State]:
        return Proceed(7, state)  # type: ignore[arg-type]


class WrongDecision(Agent[State]):
    async def init_agent(self, options: dict[str, Any]) -> State:  # type: ignore[override]
        return State()

    async def handle_response(self, ref: str, response: Response, state: State) -> Skip[State]:  # type: ignore[override]
        return Skip(state)

    async def handle_event(self, event: Any, state: State) -> Defer[State]:  # type: ignore[override]
        return Defer(state)


def inferred() -> None:
    assert_type(Init(State()), Init[State])
    assert_type(Idle(State()), Idle[State])
    assert_type(Prompt("p", State()).label, str | None)
    assert_type(Halt(State()).state, State)
    assert_type(Defer(State()).exclusive, bool)
    assert_type(Proceed("p", State()).prompt, str)
    assert_type(Skip(Typed(count=1)), Skip[Typed])
    Idle(State()).state = State()  # type: ignore[misc]
    Prompt(State())  # type: ignore[call-arg, arg-type]


def hands(agent: Whole) -> None:
    agent.tell("other", "prompt", tag="t")
    agent.tell("other", 7)  # type: ignore[arg-type]
    agent.start_agent("other", kind="Whole", if_exists="maybe")  # type: ignore[arg-type]
    agent.start_agent("other")  # type: ignore[call-arg]
    agent.name = "mine"  # type: ignore[misc]


def watch(fact: Fact) -> None:
    assert_type(fact.fields, dict[str, Any])
    fact.turn = 7  # type: ignore[misc]


NodeSettings(node_id="n1", agents={"Whole": Whole}, handlers=(watch,))
NodeSettings(node_id="n1", agents={"Whole": State})  # type: ignore[dict-item]
