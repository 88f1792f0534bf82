"""Agents that log wherever their code runs, and make the node log of them."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, ClassVar

from agentmesh import Agent, Idle, Init, Proceed, Prompt, tool
from agentmesh.backend import Event, Response
from agentmesh.errors import MeshError
from agentmesh.wire import Outcome
from agentmesh_node.backends.scripted import Raises
from agentmesh_node.user_code.block_detector import BLOCK_LIMIT_S

log = logging.getLogger("mine")
type State = list[str]


async def nested(where: str) -> None:
    """Log from a task, and from a thread of its own."""
    log.info("in a task", extra={"where": where})
    await asyncio.to_thread(log.info, "in a thread", extra={"where": where})


class Logger(Agent[State]):
    """Logs in each callback. `crash`, `raise`, `misbehave` and `block` as a prompt do that."""

    backend = "scripted"

    @staticmethod
    def script(prompt: str) -> Any:
        log.info("in a script")
        if prompt == "crash":
            return Raises(RuntimeError("the stream broke"))
        return [Event("text", {"text": prompt}), Event("result", {"text": prompt})]

    async def init_agent(self, options: dict[str, Any]) -> Init[State]:
        return Init([])

    async def pre_turn(self, prompt: str, state: State) -> Proceed[State]:
        log.info("in pre_turn")
        await asyncio.create_task(nested("pre_turn"))
        return Proceed(prompt, state)

    def handle_stream_event(self, event: Event, state: State) -> State:
        log.info("in handle_stream_event")
        return state

    def handle_response(self, ref: str, response: Response, state: State) -> Idle[State] | Prompt[State]:
        log.info("in handle_response")
        if response.text == "raise":
            raise RuntimeError("on purpose")
        if response.text == "misbehave":
            return "no decision"  # type: ignore[return-value]
        if response.text == "chain":
            return Prompt("the next one", state)
        return Idle(state)

    async def handle_error(self, ref: str, error: MeshError, state: State) -> Idle[State]:
        log.info("in handle_error")
        return Idle(state)

    async def post_turn(self, outcome: Outcome, ref: str, state: State) -> State:
        log.info("in post_turn")
        await asyncio.create_task(nested("post_turn"))
        if outcome.text == "block":
            time.sleep(1.5 * BLOCK_LIMIT_S)  # noqa: ASYNC251 - it is what is reported
        return state

    def handle_event(self, event: Any, state: State) -> Idle[State] | Prompt[State]:
        log.info("in handle_event")
        return Idle(state)


@tool(effect="pure")
async def ask_around(number: int) -> int:
    """An async tool."""
    log.info("in an async tool")
    await asyncio.create_task(nested("tool"))
    if number == 2:
        raise RuntimeError("on purpose")
    return number


@tool(effect="pure")
def look_up(number: int) -> int:
    """A plain tool, which runs in a thread."""
    log.info("in a plain tool")
    return number


class Caller(Logger):
    """The same with a model and tools."""

    backend = "anthropic"
    tools: ClassVar[tuple[Any, ...]] = (ask_around, look_up)

    async def init_agent(self, options: dict[str, Any]) -> Init[State]:
        return Init([], backend={"model": "fake-model", "attempts": 1})
