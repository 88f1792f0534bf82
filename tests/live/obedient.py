"""Agents whose prompts and events say what each of their callbacks does. They run in the test's process.

A prompt is words; `<callback>=<order>` among them is an order for that callback in this turn, and so in an event. Orders: `raise`
(behind a change to the state), `halt`, `skip`, `nonsense`, `prompt:TEXT`. Each callback notes its name in the state, in place.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any, ClassVar, TypedDict, cast

import msgspec

from agentmesh import Agent, Defer, Event, Halt, Idle, Init, Proceed, Prompt, Response, Skip
from agentmesh.errors import BadRequest, MeshError
from agentmesh.wire import Outcome
from agentmesh_node.backends.scripted import Delay
from live.agents import add_line, steered


class Diary(msgspec.Struct):
    """What was done, and what is ordered for the turn."""

    log: str | None = None
    """A file for what happens where no state is kept."""
    trail: list[str] = []
    orders: dict[str, str] = {}


def orders_in(text: Any) -> dict[str, str]:
    return dict(word.split("=", 1) for word in str(text).split() if "=" in word)


class Obedient(Agent[Diary]):
    """Does as it is told, in every callback."""

    backend = "scripted"
    script: ClassVar[Any] = staticmethod(steered)

    async def init_agent(self, options: dict[str, Any]) -> Init[Diary]:
        return Init(Diary(log=options.get("log"), orders=options.get("orders", {})))

    def _do(self, callback: str, state: Diary, note: str = "") -> Any:
        state.trail.append(note or callback)
        word, _, text = state.orders.get(callback, "").partition(":")
        match word:
            case "raise":
                raise RuntimeError(f"as ordered, in {callback}")
            case "nonsense":
                return 7
            case "error":
                return BadRequest("as ordered")
            case "halt":
                return Halt(state)
            case "skip":
                return Skip(state)
            case "prompt":
                return Prompt(text, state)
        return Idle(state)

    async def pre_run(self, state: Diary) -> Any:
        decided = self._do("pre_run", state)
        return decided.state if isinstance(decided, Idle) else decided

    async def pre_turn(self, prompt: str, state: Diary) -> Any:
        state.orders = orders_in(prompt)
        decided = self._do("pre_turn", state, f"pre_turn {prompt.rsplit(maxsplit=1)[-1].partition('=')[0]}")
        return Proceed(prompt, state) if isinstance(decided, Idle) else decided

    async def handle_response(self, ref: str, response: Response, state: Diary) -> Any:
        return self._do("handle_response", state)

    def handle_error(self, ref: str, error: MeshError, state: Diary) -> Any:
        return self._do("handle_error", state, f"handle_error {error.code}")

    def post_turn(self, outcome: Outcome, ref: str, state: Diary) -> Any:
        decided = self._do("post_turn", state)
        return decided.state if isinstance(decided, Idle) else decided

    async def handle_event(self, event: Any, state: Diary) -> Any:
        state.orders = {**state.orders, "handle_event": "", **orders_in(event)}
        return self._do("handle_event", state, f"event {str(event).split(maxsplit=1)[0]}")

    async def post_run(self, state: Diary) -> None:
        await self._say("post_run", state)
        self._do("post_run", state)

    async def terminate_agent(self, reason: MeshError, state: Diary) -> None:
        await self._say(f"terminate_agent {reason.code}", state)

    async def _say(self, line: str, state: Diary) -> None:
        if state.log is not None:
            await asyncio.to_thread(add_line, Path(state.log), line)


class Observing(Obedient):
    """Notes the stream, too."""

    def handle_stream_event(self, event: Event, state: Diary) -> Diary:
        state.trail.append(f"stream {event.kind}")
        return state


async def stubborn(prompt: str) -> Any:
    if not prompt.startswith("stubborn"):
        return prompt
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        return "too late"


class Stubborn(Obedient):
    """Its answer comes when it is killed."""

    script: ClassVar[Any] = staticmethod(stubborn)


class Hurried(Obedient):
    """Has a second and a half for a turn, and takes one for each, or for ever."""

    watchdog_s = 1.5

    @staticmethod
    def script(prompt: str) -> list[Any]:
        return [Delay(3600 if prompt == "hang" else 0.9), Event("result", {"text": "in time"})]


class Waiting(Agent[Diary]):
    """Waits for ever in the callbacks that a prompt or an event names; those of `post_turn` are plain, and wait in a thread."""

    backend = "scripted"
    script: ClassVar[Any] = staticmethod(steered)
    released: ClassVar[threading.Event] = threading.Event()
    """Ends what waits in threads."""

    async def init_agent(self, options: dict[str, Any]) -> Init[Diary]:
        return Init(Diary(log=options["log"]))

    async def _wait(self, callback: str, text: Any, state: Diary) -> None:
        state.trail.append(callback)
        if callback in str(text).split():
            await asyncio.to_thread(add_line, Path(state.log or ""), callback)
            await asyncio.Event().wait()

    async def pre_turn(self, prompt: str, state: Diary) -> Any:
        await self._wait("pre_turn", prompt, state)
        return Proceed(prompt, state)

    async def handle_response(self, ref: str, response: Response, state: Diary) -> Any:
        await self._wait("handle_response", response.text, state)
        return Idle(state)

    async def handle_error(self, ref: str, error: MeshError, state: Diary) -> Any:
        await self._wait("handle_error", error, state)
        return Idle(state)

    def post_turn(self, outcome: Outcome, ref: str, state: Diary) -> Diary:
        if outcome.text == "post_turn":
            add_line(Path(state.log or ""), "post_turn")
            self.released.wait(60)
        state.trail.append("post_turn")
        return state

    async def handle_event(self, event: Any, state: Diary) -> Any:
        await self._wait("handle_event", event, state)
        return Idle(state)


class Homeless(Obedient):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no room")


class Hostile(Obedient):
    """Answers each prompt with what would spoil its journal, were it let in."""

    max_attempts = 1

    @staticmethod
    def script(prompt: str) -> list[Any]:
        ways: dict[str, list[Any]] = {
            "text": [Event("result", {"text": 7})],
            "surrogate": [Event("result", {"text": "\ud800"})],
            "usage": [Event("usage", {"tokens": object()}), Event("result", {"text": "done"})],
            "session": [Event("result", {"text": "done", "session_id": 7})],
            "reason": [Event("error", {"reason": "odd", "object": object()})],
        }
        return ways.get(prompt, [Event("result", {"text": prompt})])

    async def handle_response(self, ref: str, response: Response, state: Diary) -> Any:
        state.trail.append(response.text)
        match response.text:
            case "label":
                return Prompt("next", state, label=cast("Any", 7))
            case "exclusive":
                return Defer(state, exclusive=cast("Any", "yes"))
            case "empty":
                return Prompt("\ud800", state)
            case "field":
                state.trail.append(cast("Any", 7))
            case "cancelled":
                task = asyncio.ensure_future(asyncio.sleep(3600))
                task.cancel()
                await task
            case "exits":
                raise SystemExit(3)
            case "error":
                raise BadRequest("\ud800", details={"object": object()})
            case "metadata":
                self.tell("other", "prompt", metadata=cast("Any", 7))
        return Idle(state)


class Blocking(Obedient):
    """Holds the loop."""

    async def handle_response(self, ref: str, response: Response, state: Diary) -> Any:
        import time

        time.sleep(0.15)  # noqa: ASYNC251 - what it is for
        return Idle(state)


# --- states of all types ----------------------------------------------------------------------------------------------
class Point(msgspec.Struct):
    x: Any = 0


@dataclasses.dataclass
class Pair:
    x: Any = 0


class Entry(TypedDict):
    x: Any


async def _moved(state: Any, prompt: str) -> Any:
    value = object() if prompt == "bad" else prompt
    if isinstance(state, dict):
        state["x"] = value
    else:
        state.x = value
    return Idle(state)


class OfStruct(Agent[Point]):
    async def init_agent(self, options: dict[str, Any]) -> Init[Point]:
        return Init(Point())

    async def handle_response(self, ref: str, response: Response, state: Point) -> Any:
        return await _moved(state, response.text)


class OfDataclass(Agent[Pair]):
    async def init_agent(self, options: dict[str, Any]) -> Init[Pair]:
        return Init(Pair())

    async def handle_response(self, ref: str, response: Response, state: Pair) -> Any:
        return await _moved(state, response.text)


class OfTypedDict(Agent[Entry]):
    async def init_agent(self, options: dict[str, Any]) -> Init[Entry]:
        return Init(Entry(x=0))

    async def handle_response(self, ref: str, response: Response, state: Entry) -> Any:
        return await _moved(state, response.text)


class OfDict(Agent[dict[str, Any]]):
    async def init_agent(self, options: dict[str, Any]) -> Init[dict[str, Any]]:
        return Init({"x": 0})

    async def handle_response(self, ref: str, response: Response, state: dict[str, Any]) -> Any:
        return await _moved(state, response.text)


class OfNothing(Agent):  # type: ignore[type-arg]  # as a first agent is written
    async def init_agent(self, options: dict[str, Any]) -> Any:
        return Init({"x": 0})

    async def handle_response(self, ref: str, response: Response, state: Any) -> Any:
        return await _moved(state, response.text)
