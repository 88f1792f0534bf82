"""The durable tool loop: model answer, tool runs, model answer, until there is nothing more to run (case 215).

Every model call and every tool run of a backend is made here. Each is followed by a step in the journal
(docs/architecture.md#steps), so a turn that lost its node goes on behind the last step: committed answers and results are
replayed without a call, and their events are given once more with `replayed`. A call that was in flight is made again, unless it
is a call of a `once` tool (agentmesh.tools).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, Protocol

import msgspec

from agentmesh.backend import Event, Turn
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BackendError, BadAnswer, BudgetExceeded, TooLarge
from agentmesh.structured import Misfit
from agentmesh.tools import ToolSpec
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.inner_calls import InnerCall, take
from agentmesh_node.telemetry.metrics import model_call
from agentmesh_node.tools import Call, Result, Toolbox
from agentmesh_node.tools.calls import PATIENCE_S, key_of
from agentmesh_node.tools.kept_exchanges import EarlierTurns, ShownAs
from agentmesh_node.tools.loop_steps import (
    Ids,
    Intent,
    LoopStep,
    ModelAnswer,
    Ran,
    ReplayedSteps,
    Total,
    answered,
    called,
    failed,
    ran,
    sound,
    told_of_misfit,
)
from agentmesh_node.tools.open_calls import OpenCalls
from agentmesh_node.tools.turn_bounds import RESULT_BYTES, TOOL_RUNS, Driven, TurnBounds

TOO_LARGE = "The result of this call is too large to be kept. Ask for less at a time."


class Model(Protocol):
    """A model, as the loop uses it. Messages are the provider's own JSON values; only the model looks into them."""

    provider: str
    """Name of the provider in the telemetry conventions."""
    name: str
    """The model that is asked for."""

    def prompt(self, text: str, turn: Turn) -> Any:
        """The message that opens a turn.

        Raises:
            BackendError: an attachment cannot be sent.
        """

    def results(self, results: Sequence[Result]) -> Any:
        """The message that hands tool results over, in the order of the calls."""

    def noted(self, message: Any, note: str) -> Any:
        """`message`, the last one of a request, with a note of the mesh added."""

    def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        """Ask for an answer: gives its text as it comes, then the `ModelAnswer`.

        Raises:
            BackendError: there is no answer. `details` has `reason`, `retryable`, perhaps `retry_after_s`; `rejected` says that
                these messages can never be answered.
        """


class Metered(msgspec.Struct, frozen=True):
    """A model call or a tool run that is counted."""

    kind: Literal["model", "tool"]
    name: str
    turn: Turn
    usage: dict[str, int] = {}
    """Tokens of a model call, after it (see `ModelAnswer.usage`)."""
    replayed: bool = False
    """It was made by an earlier owner of this turn: it counts, but is not made again."""


class CallGuard(Protocol):
    """Checks each model call and each tool run of an agent before it is made, and hears of it afterwards."""

    async def before_call(self, call: Metered) -> str | None:
        """Return if the call may be made. A text that is returned goes to the model with its next request.

        Raises:
            BudgetExceeded: the call may not be made; the turn ends with this error.
        """

    async def after_call(self, call: Metered) -> None:
        """The call was made."""


class Allowed:
    """Holds a turn to its allowance. Spending is counted from its events (agentmesh_node.turns.budget_meter)."""

    async def before_call(self, call: Metered) -> str | None:
        call.turn.allowance.check()
        return call.turn.allowance.note() if call.kind == "model" else None

    async def after_call(self, call: Metered) -> None:
        return None


class Bounds(msgspec.Struct, frozen=True):
    """Bounds of a turn."""

    iterations: int = 50
    """Most model answers in one turn."""
    parallel: int = 8
    """Most tools of one turn that run at the same time."""
    tool_runs: int = TOOL_RUNS
    """Most runs of tools in one turn."""
    result_bytes: int = RESULT_BYTES
    """Most bytes of all results of one turn."""


BOUNDS = Bounds()


class ToolLoop:
    """The loop of one agent."""

    def __init__(
        self, model: Model, toolbox: Toolbox, *, bounds: Bounds = BOUNDS, guard: CallGuard | None = None, conversation: str = ""
    ) -> None:
        """`conversation`: no longer used. All that a life of an agent says is one conversation (`agentmesh.trace.told`)."""
        self.model = model
        self.toolbox = toolbox
        self.bounds = bounds
        self.guard: CallGuard = guard or Allowed()

    def run(self, history: list[Any], prompt: str, turn: Turn) -> AsyncIterator[Event]:
        """The events of a turn. `history` grows in place, and holds whole exchanges only when the terminal event is given."""
        return _LoopTurn(self, history, turn).events(prompt)


class _LoopTurn:
    """One turn of a loop."""

    def __init__(self, loop: ToolLoop, history: list[Any], turn: Turn) -> None:
        self._model = loop.model
        self._toolbox = loop.toolbox
        self._guard = loop.guard
        self._history = history
        self._turn = turn
        self._taken = ReplayedSteps(turn.steps.taken)
        self._total = Total()
        self._ids = Ids()
        self._calls: tuple[Call, ...] = ()
        """Calls of the newest answer, with distinct ids. The answer itself, and the results sent to the model, have the
        provider's."""
        bounds = loop.bounds
        self._driven = Driven(TurnBounds(bounds.iterations, bounds.tool_runs, bounds.result_bytes, goes_on=True))
        self._places = asyncio.Semaphore(bounds.parallel)
        self._writing = asyncio.Lock()
        self._before = list(history)
        self._whole = self._before
        """The history up to the last whole exchange: if the turn fails, this is kept."""
        self._text = ""
        self._typed = turn.answer_type
        self._told: str | None = None
        """What the model was told of an answer that is not of the agent's type: once in a turn."""
        self._untold: str | None = None
        """The same, as long as no answer to it is committed."""
        self._misfit: str | None = None
        """Why the newest answer, which would end the turn, is not of the agent's type."""
        self._absent: str | None = None
        """What the model was told of tools that are not there."""
        self._paused = False
        """Whether the newest message is the model's, because the provider paused."""
        self._earlier = EarlierTurns(turn.kept)
        self._open = OpenCalls()
        """Calls with which the next equal ones go on."""
        self._shown: ShownAs = "whole"
        """How those earlier turns are shown now."""
        self._begun = False
        """Whether the model has answered in this turn."""
        self._running = False
        """Whether tools of the newest answer have no results in the history yet."""
        self._asked: InnerCall | None = None
        """The newest call to the model."""
        self._runs: dict[str, InnerCall] = {}
        """Runs of tools whose results are not committed yet, by the calls' ids."""

    async def events(self, prompt: str) -> AsyncGenerator[Event]:
        """The events of the turn, up to one terminal event."""
        levels = self._earlier.levels(self._taken.earlier, self._taken.answered)
        for self._shown in levels:
            said = False
            try:
                async with aclosing(self._exchanges(prompt)) as exchanges:
                    async for event in exchanges:
                        said = said or event.kind in ("text", "thinking")
                        yield event
                return
            except (BackendError, BadAnswer, BudgetExceeded) as error:
                refused = bool(error.details.get("rejected"))
                if not refused or self._begun or self._shown == levels[-1]:
                    # A message that can never be answered must not be sent again with each further prompt.
                    self._history[:] = self._before if refused or self._running else self._whole
                    yield failed(error)
                    return
            # What earlier turns did may be at fault: this one goes on with less of it, or without.
            self._history[:] = self._before
            if said:
                yield Event("text", {"text": "", "restart": True})

    async def _exchanges(self, prompt: str) -> AsyncGenerator[Event]:
        await self._toolbox.specs()  # what is replayed needs the tools, too
        self._open = self._earlier.open_calls(self._taken.keys, self._shown)
        notes = await self._earlier.show(self._shown, self._history, self._model, self._turn, self._ask_after)
        message = self._model.prompt(prompt, self._turn)
        for note in notes:
            message = self._model.noted(message, note)
        self._history.append(message)
        while True:
            self._driven.check()
            reply: ModelAnswer | None = None
            async with aclosing(self._answer()) as answer:
                async for part in answer:
                    if isinstance(part, ModelAnswer):
                        reply = part
                    else:
                        yield part
            assert reply is not None
            self._keep(reply)
            if not reply.calls and not reply.goes_on:
                if self._misfit is None:
                    yield Event.result(self._text, stop_reason=reply.stop, model=reply.model)
                    return
                self._tell_of_misfit(self._misfit)
            if reply.calls:
                async with aclosing(self._tools(reply.calls, self._calls)) as results:
                    async for event in results:
                        yield event

    def _keep(self, reply: ModelAnswer) -> None:
        """Add an answer to the history."""
        self._driven.iterations += 1
        self._begun = True
        if reply.compacted:
            self._history.clear()
        if reply.message is not None:
            self._history.append(reply.message)
        self._text = self._text + reply.text if reply.goes_on or not reply.calls else ""
        self._paused = reply.goes_on and reply.message is not None
        if not reply.calls:
            self._whole = list(self._history)

    # --- the type of the answer ---------------------------------------------------------------------------------------
    def _misfit_of(self, reply: ModelAnswer) -> str | None:
        """Why this answer, if it ends the turn, is not of the agent's type."""
        if self._typed is None or reply.calls or reply.goes_on:
            return None
        try:
            self._typed.fitting(self._text + reply.text)
        except Misfit as misfit:
            return str(misfit)
        return None

    def _tell_of_misfit(self, problem: str) -> None:
        """Tell the model, once, that its answer does not fit.

        Raises:
            BadAnswer: it was told before.
        """
        assert self._typed is not None
        if self._told is not None:
            raise self._typed.refused(self._text, problem)
        self._told = self._untold = self._taken.told or self._typed.correction(problem)
        self._text = ""
        self._history.append(self._model.prompt(self._told, msgspec.structs.replace(self._turn, attachments=())))

    # --- the model ----------------------------------------------------------------------------------------------------
    async def _answer(self) -> AsyncGenerator[Event | ModelAnswer]:
        """The next answer: a replayed one, or a new one, which is committed before it is acted upon."""
        reply = self._taken.answer()
        if reply is not None:
            self._untold = None
            self._note(reply.note)
            for event in answered(reply):
                yield event
            await self._count(reply, replayed=True)
            for event in self._answer_events(reply, replayed=True):
                yield event
            yield reply
            return
        await self._turn.calls.begin()
        try:
            async with aclosing(self._new_answer()) as made:
                async for part in made:
                    if isinstance(part, ModelAnswer):
                        reply = part
                    else:
                        yield part
        finally:
            self._turn.calls.end()
        assert reply is not None
        yield reply

    async def _new_answer(self) -> AsyncGenerator[Event | ModelAnswer]:
        """An answer that the model gives now."""
        reply: ModelAnswer | None = None
        specs = await self._toolbox.specs()  # servers may have told of other tools since the last model call
        note = self._notes(await self._guard.before_call(Metered("model", self._model.name, self._turn)))
        self._note(note)
        async with aclosing(self._ask(specs)) as asked:
            async for part in asked:
                if isinstance(part, Event):
                    yield part
                else:
                    earlier = None if self._shown == "whole" or self._begun else self._shown
                    told, self._untold = self._untold, None
                    reply = msgspec.structs.replace(part, note=note, earlier=earlier, told=told)
        if reply is None:
            raise BackendError(
                "the model's stream ended without an answer", details={"reason": "stream_broken", "retryable": True}
            )
        await self._count(reply, replayed=False)
        # The events of a step are given before it: a later owner gives live readers no events of committed steps.
        for event in self._answer_events(reply, replayed=False):
            yield event
        await self._commit(reply, self._asked)
        yield reply

    def _answer_events(self, reply: ModelAnswer, *, replayed: bool) -> list[Event]:
        self._total.add(reply)
        self._calls = self._ids.of(reply.calls)
        self._misfit = self._misfit_of(reply)
        # Ahead of the usage: by that a reader knows how far back the void text reaches.
        void = [told_of_misfit(replayed=replayed)] if self._misfit is not None and self._told is None else []
        return [*void, self._total.event(replayed=replayed), *(called(call, replayed=replayed) for call in self._calls)]

    async def _count(self, reply: ModelAnswer, *, replayed: bool) -> None:
        await self._guard.after_call(Metered("model", reply.model, self._turn, reply.usage, replayed))

    async def _ask(self, specs: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        call = self._asked = tracing.chat(self._model.provider, self._model.name)
        clock = asyncio.get_running_loop().time
        began, failure = clock(), None
        try:
            async with aclosing(self._model.answer(self._history, specs)) as parts:
                async for part in parts:
                    if isinstance(part, ModelAnswer):
                        call.tokens(part.model, part.usage)
                    yield sound(part) if isinstance(part, ModelAnswer) else part
        except BackendError as error:
            failure = str(error.details.get("reason", error.code))
            call.failed(failure)
            raise
        finally:
            call.end()
            model_call(self._model.provider, self._model.name, clock() - began, failure)

    def _notes(self, of_guard: str | None) -> str | None:
        """What the model is told besides: of its budget, and of tools that are not there, each time that changes."""
        if self._paused:
            return None  # no message of ours is there to add it to
        absent = self._toolbox.notice(self._turn)
        told = absent if absent != self._absent else None
        self._absent = absent
        return "\n".join(note for note in (of_guard, told) if note) or None

    def _note(self, note: str | None) -> None:
        if note:
            self._history[-1] = self._model.noted(self._history[-1], note)

    # --- tools --------------------------------------------------------------------------------------------------------
    async def _tools(self, given: Sequence[Call], calls: Sequence[Call]) -> AsyncGenerator[Event]:
        """Run the tools that the model asked for, at the same time, and hand the results over in the order of the calls, under
        the ids that the model has `given`."""
        results: dict[str, Result] = {}
        self._running = True
        for call in calls:
            known = self._taken.result(call)
            if known is not None:
                results[call.id] = known
                self._ended(call, known, self._taken.key(call, self._turn.steps.key))
                self._driven.may_run()
                self._driven.take(known.text)
                await self._guard.after_call(Metered("tool", call.name, self._turn, replayed=True))
                yield ran(known, replayed=True)
        tasks = {asyncio.create_task(self._tool(call), name=f"tool {call.name}") for call in calls if call.id not in results}
        waiting = set(tasks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for result in [task.result() for task in done]:
                    yield ran(result, replayed=False)
                    kept = await self._keep_result(result)
                    if kept is not result:
                        yield ran(kept, replayed=False)
                    results[kept.id] = kept
        finally:
            # The first one to fail ended the turn; what the others raise is of no interest any more.
            await cancel_and_wait(*tasks, within_s=2 * PATIENCE_S, heed=False)
        told = [msgspec.structs.replace(results[call.id], id=raw.id) for raw, call in zip(given, calls, strict=True)]
        self._history.append(self._model.results(told))
        self._open.next_answer()
        self._running = False
        self._whole = list(self._history)

    async def _tool(self, call: Call) -> Result:
        """Run one call. It is open until its result is kept (`_keep_result`)."""
        async with self._places:
            await self._turn.calls.begin()
            try:
                return await self._run_open(call)
            except BaseException:
                self._turn.calls.end()
                raise

    async def _run_open(self, call: Call) -> Result:
        with tracing.execute_tool(call.name, call.id, target=self._toolbox.target(call.name)) as run:
            self._runs[call.id] = run
            result = self._driven.kept(await self._run(call))
            if not result.ok:
                run.failed(result.error or "error")
        await self._guard.after_call(Metered("tool", call.name, self._turn))
        return result

    async def _keep_result(self, result: Result) -> Result:
        """Commit a result. Returns it, or the result that is committed instead if the journal cannot keep it."""
        run = self._runs.pop(result.id, None)
        try:
            await self._commit(Ran(result), run)
        except TooLarge as error:
            result = msgspec.structs.replace(result, ok=False, text=f"{TOO_LARGE} ({error.message})", error="too_large")
            await self._commit(Ran(result), run)
        finally:
            self._turn.calls.end()
        return result

    async def _run(self, call: Call) -> Result:
        allowed = self._driven.may_run()
        refused = call.refusal()
        if refused is not None:
            return refused
        effect = self._toolbox.effect(call.name)
        key = self._taken.key(call, self._turn.steps.key)
        former = self._open.meet(call) if key is None and effect != "pure" else None
        if key is not None:
            self._open.gone_on_with((key,))
        if former is not None:
            # It is the same call, and keeps its key, whichever owner of this turn makes it in the end.
            key = former.key
            await self._commit(Intent(call.id, key))
            if former.result is not None:
                return msgspec.structs.replace(former.result, id=call.id)
        if key is not None and effect == "once":
            known = await self._ask_after(call, key)
            if known is not None:
                self._ended(call, known, key)
                return known
        if not allowed:  # a result and not the end, as with the budget
            return Result.failed(call, "max_tool_runs", "this call was not made: the turn has run as many tools as it may")
        try:
            await self._guard.before_call(Metered("tool", call.name, self._turn))
        except BudgetExceeded as error:
            # A result and not the end: results of tools beside it belong into the history. The next model call ends the turn.
            return Result.failed(call, error.code, f"this call was not made: {error.message}")
        if key is None:
            key = key_of(self._turn.steps.key, call)
            if effect == "once":
                await self._commit(Intent(call.id, key))
        result = await self._toolbox.run(call, self._turn, key)
        self._ended(call, result, key)
        return result

    def _ended(self, call: Call, result: Result, key: str | None) -> None:
        """Note the end of a call: it may have left open what became of it."""
        if key is not None:
            self._open.gone_on_with((key,))
        if self._toolbox.target(call.name) is None:  # a question has a name of its own
            self._open.ended(call, key or key_of(self._turn.steps.key, call), result)

    async def _ask_after(self, call: Call, key: str) -> Result | None:
        """What became of a call of a `once` tool that may have been made; None if it may be made now."""
        return await self._toolbox.reconcile(call, self._turn, key)

    async def _commit(self, step: LoopStep, call: InnerCall | None = None) -> None:
        """Take a step. `call`: what it is the result of."""
        async with self._writing:  # one at a time: steps have an order
            await take(self._turn.steps, msgspec.to_builtins(step), call)
