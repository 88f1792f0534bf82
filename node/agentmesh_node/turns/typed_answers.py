"""Answers of a declared type from any backend: one that does not fit is told to the model once (docs/agent.md#typed-answers).

A tool loop (agentmesh_node.tools.loop) does so itself, among its steps: nothing of what is here happens to it but the check. For
every other backend the answer is told by a second prompt of the same turn, behind the session that the first one left. Before
that a step is committed, the misfit: a turn that loses its node then goes on with the second prompt, and never makes the first
one again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from agentmesh.backend import Backend, Event, Response, Turn
from agentmesh.errors import BackendError, BudgetExceeded, TooLarge
from agentmesh.steps import Steps
from agentmesh.structured import AnswerType, Misfit
from agentmesh.wire import Outcome
from agentmesh_node.tools.loop_steps import failed, told_of_misfit

_ID = "misfit"
_COUNTED = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "tool_calls", "cost_usd")


class MisfitStep(msgspec.Struct, frozen=True):
    """The answer to a turn's prompt was not of the agent's type."""

    told: str
    """What the model is told: the second prompt."""
    session: Any
    """The session that the first prompt left, which the second one goes on from."""
    events: tuple[Event, ...] = ()
    """The events of the first prompt, texts joined."""

    def value(self) -> Any:
        """The step as JSON, in the form of an intent to call no tool: backends of an older build take it, and pass over it."""
        call = {"id": _ID, "name": "", "input": {}}
        return {"step": "intent", "id": _ID, "call": call, _ID: msgspec.to_builtins(self)}

    @staticmethod
    def among(steps: Sequence[Any]) -> tuple[int, MisfitStep] | None:
        """The misfit among a turn's steps, and its place."""
        for place, step in enumerate(steps):
            if isinstance(step, Mapping) and step.get("step") == "intent" and _ID in step:
                return place, msgspec.convert(step[_ID], MisfitStep)
        return None


class SecondSteps:
    """The steps of a turn's second prompt, as its backend sees them: those behind the misfit, under names of their own."""

    def __init__(self, steps: Steps, place: int) -> None:
        """`place`: that of the misfit among the turn's steps."""
        self._steps = steps
        self._from = place + 1

    @property
    def taken(self) -> tuple[Any, ...]:
        return self._steps.taken[self._from :]

    @property
    def key(self) -> str:
        return f"{self._steps.key}/{_ID}"

    def bounded_s(self, seconds: float) -> float:
        return self._steps.bounded_s(seconds)

    async def take(self, step: Any) -> None:
        await self._steps.take(step)

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
        return await self._steps.ask(
            f"{_ID}/{wait}", agent, prompt, timeout_s=timeout_s, metadata=metadata, budget=budget, wait_halted=wait_halted
        )


class TypedRun:
    """One turn of a typed agent, as a stream: `events`, and the `session` as it stands."""

    def __init__(self, backend: Backend, answer_type: AnswerType[Any], session: Any, turn: Turn) -> None:
        self._backend = backend
        self._type = answer_type
        self._turn = turn
        self._committed = self.session = session
        self.events: AsyncIterator[Event]
        self.left: Any = None
        """The session behind a result."""
        self._said: list[Event] = []
        """What the running prompt has given so far, with texts joined."""

    async def begin(self, prompt: str) -> TypedRun:
        """Begin with the turn's prompt; or with the second one, if the first has been answered.

        Raises:
            BackendError, BudgetExceeded: as the backend's `prompt`.
        """
        known = MisfitStep.among(self._turn.steps.taken)
        if known is None:
            stream = await self._backend.prompt(self.session, prompt, self._turn)
            self.session = stream.session
            self.events = self._first(stream.events)
        else:
            self.events = self._gone_on(*known)
        return self

    async def _first(self, given: AsyncIterator[Event]) -> AsyncGenerator[Event]:
        """The events of the first prompt, and of the second one if there is one."""
        held: list[Event] = []
        """The usage of what may be the answer: if it is void, that is said before, so that readers know how far back it goes."""
        async with aclosing(_closable(given)) as events:
            async for event in events:
                if event.kind == "usage" and self._said and self._said[-1].kind in ("text", "thinking"):
                    held.append(event)
                    continue
                problem = self._problem(event)
                for one in [*([told_of_misfit()] if problem is not None else ()), *held]:
                    yield self._note(one)
                held.clear()
                if problem is not None:
                    break
                yield self._note(self._checked(event))
                if event.terminal:
                    return
            else:
                for one in held:
                    yield one
                return
        session = self._backend.update_session(self.session, event.data)
        step = MisfitStep(self._type.correction(problem), session, tuple(self._said))
        place = len(self._turn.steps.taken)
        try:
            await self._turn.steps.take(step.value())
        except TooLarge:  # what the journal cannot keep is not told: a takeover would lose it
            yield self._refused(event, problem)
            return
        async with aclosing(self._second(place, step)) as second:
            async for one in second:
                yield one

    async def _gone_on(self, place: int, step: MisfitStep) -> AsyncGenerator[Event]:
        """What a later owner of the turn gives: the first prompt's events once more, then the second one's."""
        for event in step.events:
            yield msgspec.structs.replace(event, replayed=True)
        async with aclosing(self._second(place, step, resumed=True)) as second:
            async for event in second:
                yield event

    async def _second(self, place: int, step: MisfitStep, *, resumed: bool = False) -> AsyncGenerator[Event]:
        """The events of the second prompt, with what the first one used counted."""
        steps = SecondSteps(self._turn.steps, place)
        turn = msgspec.structs.replace(self._turn, steps=steps, attachments=(), kept=(), committed=self._committed)
        before = next((event.data for event in reversed(step.events) if event.kind == "usage"), {})
        self._said = []
        try:
            self.session = await self._backend.resume_session(step.session) if resumed else step.session
            turn.allowance.check()
            stream = await self._backend.prompt(self.session, step.told, turn)
        except (BackendError, BudgetExceeded) as error:
            yield failed(error)
            return
        self.session = stream.session
        async with aclosing(_closable(stream.events)) as events:
            async for event in events:
                problem = self._problem(event)
                if problem is not None:
                    self.session = self._backend.update_session(self.session, event.data)
                    yield self._refused(event, problem)
                    return
                yield self._note(_added(before, event) if event.kind == "usage" else self._checked(event))
                if event.terminal:
                    return

    # --- the check ----------------------------------------------------------------------------------------------------
    def _problem(self, event: Event) -> str | None:
        """Why a result is not of the agent's type; None for one that is, and for all other events."""
        if event.kind != "result":
            return None
        try:
            self._type.fitting(self._text(event))
        except Misfit as misfit:
            return str(misfit)
        return None

    def _checked(self, event: Event) -> Event:
        """The event; a result, which fits, with the canonical form of the answer."""
        if event.kind != "result":
            return event
        self.left = self._backend.update_session(self.session, event.data)
        return msgspec.structs.replace(event, data={**event.data, "text": self._type.fitting(self._text(event))})

    def _refused(self, event: Event, problem: str) -> Event:
        return failed(self._type.refused(self._text(event), problem))

    def _text(self, event: Event) -> str:
        """The text of a result: its own, else what was said."""
        text = Response.of([*self._said, event], 0, None).text
        return text if isinstance(text, str) else repr(text)

    def _note(self, event: Event) -> Event:
        """Keep an event. Texts are joined, as they are when a step is replayed."""
        last = self._said[-1] if self._said else None
        joins = last is not None and last.kind == event.kind and event.kind in ("text", "thinking")
        if last is not None and joins and not {"restart", "retry"} & {*last.data, *event.data}:
            self._said[-1] = Event(event.kind, {"text": last.data["text"] + event.data["text"]})
        elif not event.terminal:
            self._said.append(event)
        return event


def _added(before: Mapping[str, Any], event: Event) -> Event:
    """A usage event of the second prompt as one of the turn."""
    sums = {name: before.get(name, 0) + event.data.get(name, 0) for name in _COUNTED if name in before or name in event.data}
    return msgspec.structs.replace(event, data={**event.data, **sums})


async def _closable(events: AsyncIterator[Event]) -> AsyncGenerator[Event]:
    """The events; closed with the stream that they come from."""
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


class TypedBackend:
    """A backend whose answers are checked."""

    def __init__(self, backend: Backend, answer_type: AnswerType[Any]) -> None:
        self.backend = backend
        self._type = answer_type
        self._run: TypedRun | None = None

    async def start_session(self) -> Any:
        return await self.backend.start_session()

    async def resume_session(self, session: Any) -> Any:
        return await self.backend.resume_session(session)

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> TypedRun:
        self._run = TypedRun(self.backend, self._type, session, turn)
        return await self._run.begin(prompt)

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        """The session that the newest turn's result has left: it was asked for when that came."""
        return self._run.left if self._run is not None else session

    async def terminate_session(self, session: Any) -> None:
        await self.backend.terminate_session(session)

    async def release(self) -> None:
        release = getattr(self.backend, "release", None)
        if release is not None:
            await release()
