"""`Turn.steps`: passes a backend's steps and waits to the turn machine, and the answers back
(docs/architecture.md#steps)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw

from agentmesh import names, unicode, wire
from agentmesh.budget import Limits, limits_from
from agentmesh.errors import BadRequest, MeshError, NotInCallback, TooLarge
from agentmesh.steps import inner_s
from agentmesh.turn.step_values import AskAgent, StepTaken, TakeStep, WaitOver
from agentmesh.turn.values import Input, RunTurn
from agentmesh.wire import ErrorBody, Outcome, PromptBody
from agentmesh_node.services import Services
from agentmesh_node.telemetry.inner_calls import inner_of_step

MAX_WAIT_NAME = 256
"""Longest name of a wait, in characters."""
PROMPT_ROOM = 128 << 10
"""Bytes that a request's headers, and its record, may need beside its body."""


class TurnSteps:
    """The steps of one run of a turn. When the run is over, all waits here are cancelled, and no more steps are taken."""

    __slots__ = ("_closed", "_command", "_ends", "_feed", "_s", "_steady", "_steps", "_takes", "_waiting", "_waits")

    def __init__(
        self, services: Services, command: RunTurn, feed: Callable[[Input], None], waiting: Callable[[], object]
    ) -> None:
        """`feed` takes inputs for the turn machine; `waiting` is called when the turn begins to wait for an agent."""
        self._s = services
        self._command = command
        self._feed = feed
        self._waiting = waiting
        self._steps = list(command.steps)
        self._takes: dict[str, tuple[Raw, asyncio.Future[None]]] = {}
        self._waits: dict[str, asyncio.Future[Outcome]] = {}
        self._closed = False
        self._steady: set[str] = set()
        """Waits that last while the agent that was asked is halted."""
        wall_s = command.purse.limits.wall_s
        within_s = command.watchdog_s if wall_s is None else min(command.watchdog_s, wall_s - command.purse.elapsed_s)
        self._ends = services.now() + within_s
        """When the watchdog or the budget ends the turn."""

    # --- for the backend -------------------------------------------------------------------------------------------
    @property
    def taken(self) -> tuple[Any, ...]:
        """Copies of the committed steps, oldest first."""
        return tuple(msgspec.json.decode(step) for step in self._steps)

    @property
    def key(self) -> str:
        """The turn's name (see `agentmesh.steps.Steps.key`)."""
        return self._command.key

    def bounded_s(self, seconds: float) -> float:
        """See `agentmesh.steps.Steps.bounded_s`."""
        return inner_s(seconds, self._ends - self._s.now())

    async def take(self, step: Any) -> None:
        """Commit a step.

        Raises:
            TooLarge: it is larger than a journal takes (`agentmesh.turn.steps`).
            BadRequest: it is no JSON value.
            NotInCallback: the turn is over.
        """
        self._check_open()
        value = _encoded(step)
        token = self._s.token()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._takes[token] = value, future
        self._feed(TakeStep(self._command.number, token, value, inner_of_step()))
        await future

    async def ask(
        self,
        wait: str,
        agent: str,
        prompt: str,
        *,
        timeout_s: float,
        metadata: dict[str, Any] | None = None,
        budget: dict[str, float] | None = None,
        wait_halted: bool = False,
    ) -> Outcome:
        """Ask another agent (see `agentmesh.steps.Steps.ask`).

        Raises:
            NotInCallback: the turn is over.
        """
        self._check_open()
        try:
            limits = None if budget is None else limits_from(budget)
            request = self._request(wait, agent, PromptBody(prompt=prompt, metadata=metadata or {}), timeout_s, limits)
        except MeshError as error:
            return Outcome(agent=agent, ref="", ok=False, error=ErrorBody.of(error))
        if wait_halted:
            self._steady.add(wait)
        future = self._waits.get(wait)
        if future is None:
            future = self._waits[wait] = asyncio.get_running_loop().create_future()
            self._feed(request)
            self._waiting()
        # Shielded: several callers may wait for it, and one of them may be cancelled.
        return await asyncio.shield(future)

    def _request(self, wait: str, agent: str, prompt: PromptBody, timeout_s: float, budget: Limits | None) -> AskAgent:
        if not isinstance(wait, str) or not 0 < len(wait) <= MAX_WAIT_NAME:
            raise BadRequest(f"a wait's name is a text of 1 to {MAX_WAIT_NAME} characters")
        if not timeout_s >= 0:  # refuses NaN too
            raise BadRequest(f"timeout_s is a number of seconds, not {timeout_s}")
        if not prompt.prompt:
            raise BadRequest("the prompt is empty")
        size = len(_encoded(prompt))
        limit = self._s.transport.max_payload - PROMPT_ROOM
        if size > limit:
            raise TooLarge(
                f"the prompt takes {size} bytes; at most {limit} can be asked in a turn: pass a reference instead",
                details={"size": size, "limit": limit},
            )
        wire.check_depth(prompt.metadata)
        return AskAgent(
            turn=self._command.number,
            wait=wait,
            agent=names.agent_name(agent),
            prompt=prompt,
            deadline=wire.check_time(self._s.now() + self.bounded_s(timeout_s)),
            budget=budget,
            trace=self._s.tracing.headers(),
        )

    def _check_open(self) -> None:
        if self._closed:
            raise NotInCallback("the turn is over: it takes no more steps")

    # --- for the machine -------------------------------------------------------------------------------------------
    def step_taken(self, command: StepTaken) -> None:
        """Answer `take`: the step is committed, or refused."""
        entry = self._takes.pop(command.token, None)
        if entry is None:
            return
        value, future = entry
        if command.error is None:
            self._steps.append(value)  # also if its `take` was cancelled
        if future.done():
            return
        if command.error is None:
            future.set_result(None)
        else:
            future.set_exception(command.error.exception())

    @property
    def waiting(self) -> bool:
        """Whether the turn waits for an agent."""
        return any(not future.done() for future in self._waits.values())

    def waits_for_halted(self, wait: str) -> bool:
        """Whether this wait lasts while the agent that was asked is halted."""
        return wait in self._steady

    def wait_over(self, command: WaitOver) -> None:
        """Answer `ask`: the wait has its outcome."""
        future = self._waits.get(command.wait)
        if future is not None and not future.done():
            future.set_result(command.outcome)

    def close(self) -> None:
        """The run is over: cancel the calls that still wait here."""
        self._closed = True
        for _, future in self._takes.values():
            future.cancel()
        for wait in self._waits.values():
            wait.cancel()


def _encoded(value: Any) -> Raw:
    """`value` as JSON that can be read again. Lone surrogates in its texts are replaced, because models give them.

    Raises:
        BadRequest: it cannot be encoded, or not be decoded again.
    """
    try:
        raw = Raw(unicode.encode(value))
        msgspec.json.decode(raw)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise BadRequest(f"a step is a JSON value: {error}") from None
    return raw
