"""Runs an agent's own code: its callbacks and its prompt tasks. Knows nothing of NATS.

Whatever user code does becomes an input of the turn machine: it returned, it misbehaved, or it raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Token
from typing import Any

import msgspec
from msgspec import Raw
from opentelemetry.context import Context

from agentmesh import callback_context, unicode
from agentmesh.agent import Agent
from agentmesh.backend import Backend, Event, Kept, Response, Turn
from agentmesh.budget import Prices
from agentmesh.callback_results import (
    NONE,
    Codec,
    answer_type_of,
    bad_response,
    crash_error,
    plain,
    raised_error,
    sound,
    terminal_error,
)
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BackendError, BudgetExceeded
from agentmesh.records import NOTHING, Inner
from agentmesh.steps import Calls, Steps, UnjournaledSteps, Unmoved
from agentmesh.structured import AnswerType
from agentmesh.tool_runs import ToolRun
from agentmesh.turn.values import (
    Choice,
    Input,
    Misbehaved,
    Raised,
    Returned,
    RunCallback,
    RunTurn,
    TurnAttempt,
    TurnEnded,
    Unreadable,
)
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.telemetry.metrics import TurnMetrics
from agentmesh_node.telemetry.tracing import Here, Tracing
from agentmesh_node.turns.budget_meter import BudgetMeter, MeteredSteps
from agentmesh_node.turns.tools_seen import ToolsSeen
from agentmesh_node.turns.typed_answers import TypedBackend
from agentmesh_node.user_code.block_detector import BLOCK_LIMIT_S, timed
from agentmesh_node.user_code.callback_threads import CallbackThreads

log = logging.getLogger("agentmesh.node")

type BackendFactory = Callable[[Agent[Any], dict[str, Any]], Backend]
CHECK_S = 20.0
"""How long a backend may take to accept new options."""
KILL_PATIENCE_S = 5.0
"""How long a cancelled task may take to end before it is left behind and reported."""


class Ports(msgspec.Struct, frozen=True):
    """The runner's ports: time, randomness, limits, facts, prices, metrics, threads."""

    now: Callable[[], float]
    """The time that timers count from."""
    monotonic: Callable[[], float]
    token: Callable[[], str]
    limit: int
    emit: Callable[[str, str, int, dict[str, Any]], None] = lambda agent, kind, turn, fields: None
    """Publishes a lifecycle fact: agent, kind, turn, fields (agentmesh_node.telemetry.events)."""
    prices: Prices = msgspec.field(default_factory=Prices)
    """Prices of models."""
    metrics: TurnMetrics = msgspec.field(default_factory=TurnMetrics)
    """Metrics of what turns spend."""
    threads: CallbackThreads = msgspec.field(default_factory=CallbackThreads)
    """Threads in which plain callbacks run."""
    kind: str = ""
    """What the agent's kind is called."""
    clock: Callable[[], float] | None = None
    """The servers' time, in seconds since the epoch; None if `now` is that."""


class Runner:
    """One agent's code in this process."""

    def __init__(self, cls: type[Agent[Any]], name: str, backend: BackendFactory, ports: Ports, tracing: Tracing) -> None:
        self._cls = cls
        self._name = name
        self._title = f"turn {name}"
        self._factory = backend
        self._ports = ports
        self._tracing = tracing
        self._codec = Codec(cls)
        self._answer_type = answer_type_of(cls)
        self._streams = cls.handle_stream_event is not Agent.handle_stream_event
        self._made: Agent[Any] | None = None
        self._backend: Backend | TypedBackend | None = None
        self._cached: tuple[Raw, Any] = (NOTHING, None)
        self._turn: asyncio.Task[None] | None = None
        self._here = Here(name, ports.kind)
        self._of_turn = self._here
        """The same for the newest turn's prompt task, with the calls of its attempt."""
        self._begin_calls = tracing.calls(ports.clock or ports.now)
        self._shown: tuple[TurnAttempt, Context] | None = None
        """The context of a prompt task that is over and has noted no calls: the first callback behind it has the same."""
        self._number = 0
        """The newest turn's number."""
        self._steps: Steps = UnjournaledSteps()
        self._open_calls: Calls = Unmoved()
        self._meter: BudgetMeter | None = None
        """The newest turn's meter."""
        self._tools = ToolsSeen()
        """The newest turn's tools."""
        self._hooks: dict[str, tuple[Callable[..., Any], bool]] = {}

    @property
    def _agent(self) -> Agent[Any]:
        """The instance, made at its first use: an error of its constructor counts as an error of the callback that needed it."""
        if self._made is None:
            self._made = self._cls()
            self._made.__dict__["_name"] = self._name
        return self._made

    @property
    def answer_type(self) -> AnswerType[Any] | None:
        """The type of the agent's answers; None if its class declares none."""
        return self._answer_type

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """JSON schema of the agent's answers; None if its class declares no type."""
        return self._answer_type.schema if self._answer_type is not None else None

    def renew(self) -> None:
        """Drop the instance and its backend, as if the process had been restarted."""
        self._made = None
        self._backend = None
        self._hooks.clear()
        self._cached = (NOTHING, None)

    async def release(self) -> None:
        """Release what the backend holds in this process: the agent sleeps, moves, has crashed or has ended.

        A backend that holds connections or child processes defines `async release()`; the session stays as it is.
        """
        release = getattr(self._backend, "release", None)
        if release is None:
            return
        try:
            async with asyncio.timeout(KILL_PATIENCE_S):
                await release()
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            log.exception("the backend does not let go", extra={"agent": self._name})

    # --- state ----------------------------------------------------------------------------------------------------
    def _state(self, raw: Raw) -> Any:
        """The state object for `raw`: the one that was encoded to it, or a new one; never one that a callback half changed."""
        cached, state = self._cached
        if cached is raw:
            return state
        state = self._codec.decode(raw)
        self._cached = (raw, state)
        return state

    def _forget_state(self) -> None:
        self._cached = (NOTHING, None)

    # --- callbacks --------------------------------------------------------------------------------------------------
    async def call(self, command: RunCallback) -> Input:
        """Run a callback to its end. Raises nothing but cancellation."""
        hook = command.hook
        if hook in _SESSION_HOOKS:
            return await self._session(command)
        try:
            arguments = self._arguments(command)
        except msgspec.MsgspecError as error:
            return Raised(ErrorBody(code="bad_state", message=f"the stored state cannot be read: {error}"))
        context = self._context(command)
        token = callback_context.current_context.set(context)
        shown, self._shown = self._shown, None
        if shown is not None and shown[0] is command.of:
            entered: Token[Context] | None = self._tracing.show(shown[1])
        else:
            entered = self._tracing.enter(command.of, command.trace, self._here)
        try:
            try:
                value = await self._invoke(hook, arguments)
            except BaseException as error:  # user code may raise anything
                self._forget_state()
                if _is_cancelled(error):
                    raise
                log.exception("callback raised", extra={"agent": self._name, "callback": hook})
                return Raised(raised_error(error))
            finally:
                asks = context.close()
                callback_context.current_context.reset(token)
            return self._decided(command, value, asks)
        finally:
            if entered is not None:
                self._tracing.restore(entered)

    def _decided(self, command: RunCallback, value: Any, asks: tuple[callback_context.Ask, ...]) -> Input:
        """What a callback has decided, by what it returned and asked for; or that this is none of what it may return."""
        hook = command.hook
        request = command.request
        checked = self._codec.check(
            hook, value, asks, command.state, attachments=request is not None and bool(request.attachments)
        )
        item = checked.item
        if type(item) is Returned:  # as nearly always: `isinstance` takes five times as long where it says no
            if item.state != NOTHING:
                self._cached = (item.state, checked.state)
            else:
                self._forget_state()  # a callback that returns no state may still have changed the object
            return item
        assert isinstance(item, Misbehaved)
        self._forget_state()
        log.error("callback misbehaved", extra={"agent": self._name, "callback": hook, "error": item.error.message})
        return item

    def _arguments(self, command: RunCallback) -> tuple[Any, ...]:
        arguments = tuple(_own(argument) for argument in command.args) if command.hook in _SHARED else command.args
        return (*arguments, self._state(command.state)) if command.state != NOTHING else arguments

    def _context(self, command: RunCallback) -> callback_context.Context:
        if command.hook == "terminate_agent":
            return callback_context.closed(_own_request(command.request))
        ports = self._ports
        return callback_context.Context(
            now=ports.now,
            token=ports.token,
            request=_own_request(command.request),
            sender=command.sender,
            trace=self._tracing.headers,
            limit=ports.limit,
            budget=self._meter.left() if self._meter is not None and command.request is not None else None,
            answer_type=self._answer_type,
        )

    def _invoke(self, hook: str, arguments: tuple[Any, ...]) -> Awaitable[Any]:
        """Begin a call of a callback. The result is awaited."""
        known = self._hooks.get(hook)
        if known is None:
            function = getattr(self._agent, hook)
            known = self._hooks[hook] = (function, inspect.iscoroutinefunction(function))
        function, is_async = known
        if is_async:
            return timed(function(*arguments), hook, self._report_block, self._ports.monotonic)
        return self._in_thread(function, arguments, hook)

    async def _in_thread(self, function: Callable[..., Any], arguments: tuple[Any, ...], hook: str) -> Any:
        try:
            value = await self._ports.threads.run(self._name, function, arguments)
        except asyncio.CancelledError as error:
            if _is_cancelled(error):
                # A thread cannot be killed: what the callback still returns is thrown away.
                log.warning("a plain callback is left behind in its thread", extra={"agent": self._name, "callback": hook})
            raise
        return await timed(value, hook, self._report_block, self._ports.monotonic) if inspect.isawaitable(value) else value

    def _report_block(self, what: str, seconds: float) -> None:
        """A callback held the loop, and so every other agent of the node: report it by name, in the log and as a fact."""
        spent = round(seconds, 3)
        log.warning("callback blocked the loop", extra={"agent": self._name, "callback": what, "seconds": spent})
        self._ports.emit(self._name, "callback_blocked", self._number, {"callback": what, "seconds": spent})

    def _report_absence(self, server: str, reason: str) -> None:
        """A server of tools that may be absent is: report it, in the log and as a fact."""
        log.warning("an optional server of tools is absent: %s", reason, extra={"agent": self._name, "server": server})
        self._ports.emit(self._name, "tools_absent", self._number, {"server": server, "reason": reason})

    # --- backend ----------------------------------------------------------------------------------------------------
    def _new_backend(self, options: dict[str, Any]) -> Backend | TypedBackend:
        made = self._factory(self._agent, options)
        return made if self._answer_type is None else TypedBackend(made, self._answer_type)

    async def _session(self, command: RunCallback) -> Input:
        try:
            if command.hook == "start_session":
                self._backend = self._new_backend(command.args[0])
                return self._with_session(await self._backend.start_session())
            if command.hook == "resume_session":
                return await self._resume(command)
            if command.hook == "change_options":
                return await self._change_options(*command.args)
            if self._backend is not None:
                await self._backend.terminate_session(_decoded(command.args[0]))
            return Returned(NONE)
        except BaseException as error:
            if _is_cancelled(error):
                raise
            if command.hook == "change_options":  # a request is refused: nothing is wrong here
                log.info("the backend refuses its new options: %s", error, extra={"agent": self._name})
            else:
                log.exception("the backend failed", extra={"agent": self._name, "call": command.hook})
            return Raised(raised_error(error))

    async def _resume(self, command: RunCallback) -> Input:
        raw, options, version = command.args
        taken = await self._readable(command.state, version)
        if isinstance(taken, ErrorBody):
            return Unreadable(taken)
        self._backend = self._new_backend(options)
        session = _decoded(raw)
        resumed = await self._backend.resume_session(session)
        kept = raw if resumed == session else _encoded(resumed)
        return Returned(Choice(kind="session", session=kept), state=taken)

    async def _change_options(self, raw: Raw, options: dict[str, Any]) -> Input:
        """Go on with a backend that has these options. If it cannot be made, or does not take the session, the former one stays.

        Both are never at work beside each other: the former one lets go first, and can be used again afterwards.
        """
        await self.release()
        former = self._backend
        try:
            async with asyncio.timeout(CHECK_S):
                self._backend = self._new_backend(copy.deepcopy(options))
                session = _decoded(raw)
                resumed = await self._backend.resume_session(session)
        except BaseException:
            if self._backend is not former:
                await self.release()
            self._backend = former
            raise
        return Returned(Choice(kind="session", session=raw if resumed == session else _encoded(resumed)))

    async def _readable(self, raw: Raw, version: int) -> Raw | ErrorBody:
        """The state that replaces `raw`, which a class of `version` wrote; NOTHING if it stays; an error if it cannot be read.

        A state of this version is only checked. A state of another version is migrated; or, if the class has no hook for that and
        the state fits, it is taken as it is. Either way it is of this version from now on.
        """
        problem = ""
        try:
            self._state(raw)
            if version == self._cls.state_version:
                return NOTHING
        except msgspec.MsgspecError as error:
            problem = str(error)
        if getattr(self._cls, "migrate_state", None) is not None:
            return await self._migrate(raw, version)
        if not problem:
            return raw
        return ErrorBody(
            code="bad_state",
            message=f"the stored state (version {version}) does not fit this class: {problem}; "
            "give the class a migrate_state(old, version), or take its former version",
        )

    async def _migrate(self, raw: Raw, version: int) -> Raw | ErrorBody:
        try:
            state = await self._invoke("migrate_state", (msgspec.json.decode(raw), version))
        except BaseException as error:
            if _is_cancelled(error):
                raise
            log.exception("callback raised", extra={"agent": self._name, "callback": "migrate_state"})
            return ErrorBody(code="bad_state", message=f"migrate_state raised {raised_error(error).message}")
        found = self._codec.encode(state)
        return ErrorBody(code=found.code, message=f"migrate_state: {found.message}") if isinstance(found, ErrorBody) else found

    def _with_session(self, session: Any) -> Returned:
        return Returned(Choice(kind="session", session=_encoded(session)))

    # --- turns --------------------------------------------------------------------------------------------------------
    @property
    def turn_task(self) -> asyncio.Task[None] | None:
        """The prompt task, if one was started."""
        return self._turn

    def start_turn(
        self,
        command: RunTurn,
        feed: Callable[[Input], None],
        on_event: Callable[[Event], None] | None,
        steps: Steps | None = None,
        open_calls: Calls | None = None,
    ) -> bool:
        """Start the prompt task; `feed` gets its `TurnEnded`. Returns whether it still runs: a quick one is over at once."""
        until = command.awaited_until
        bound_s = command.watchdog_s if until is None else min(command.watchdog_s, max(0.0, until - self._ports.now()))
        self._meter = BudgetMeter(command.purse, self._ports.prices, self._ports.monotonic, bound_s=bound_s)
        self._steps = MeteredSteps(steps if steps is not None else UnjournaledSteps(), self._meter)
        self._open_calls = open_calls if open_calls is not None else Unmoved()
        self._tools = ToolsSeen()
        self._number = command.number
        attempt = command.attempt
        self._of_turn = self._here if attempt is None else Here(self._name, self._ports.kind, None, attempt, self._begin_calls)
        task = self._turn = asyncio.Task(
            self._run_turn(command, feed, on_event), loop=asyncio.get_running_loop(), name=self._title, eager_start=True
        )
        return not task.done()

    async def kill_turn(self) -> None:
        """End the prompt task. When this returns it has ended, or is logged as one that does not end; its result is dropped."""
        task, self._turn = self._turn, None
        self._forget_state()
        await cancel_and_wait(task, within_s=KILL_PATIENCE_S)

    async def _run_turn(self, command: RunTurn, feed: Callable[[Input], None], on_event: Callable[[Event], None] | None) -> None:
        token = callback_context.current_context.set(callback_context.closed(_own_request(command.request)))
        here, attempt, tracing = self._of_turn, command.attempt, self._tracing
        if attempt is None:
            entered = tracing.enter(None, command.trace, here)
        else:
            shown = tracing.context(attempt, command.trace, here)
            entered = tracing.show(shown)
        try:
            ended = await self._consume(command, on_event)
        except BaseException as error:
            if _is_cancelled(error):
                raise
            # After a crash, state and session are those of the dispatch.
            self._forget_state()
            log.exception("a turn crashed", extra={"agent": self._name, "ref": command.request.ref})
            ended = TurnEnded(turn=command.number, error=crash_error(error))
        finally:
            if entered is not None:
                tracing.restore(entered)
            here.attempt = None
            if attempt is not None and here.made is None:
                self._shown = attempt, shown
            callback_context.current_context.reset(token)
            self._count()
        if ended.error is not None and self._meter is not None:
            # An answer that cannot be encoded must not keep the turn's record from being written.
            ended = msgspec.structs.replace(ended, usage=plain(self._meter.usage()))
        if tools := self._tools.runs:
            ended = msgspec.structs.replace(ended, tools=tools)
        if here.made is not None and (inner := here.made.without_step):
            ended = msgspec.structs.replace(ended, inner=inner)
        feed(ended)

    def spent(self) -> dict[str, Any] | None:
        """The newest turn's spending so far, as its outcome has it; None if it is nothing."""
        found = plain(self._meter.usage()) if self._meter is not None else None
        return found if isinstance(found, dict) else None

    def tools(self) -> tuple[ToolRun, ...]:
        """The tools that ran in the newest turn so far."""
        return self._tools.runs

    def inner(self) -> tuple[Inner, ...]:
        """The calls of the newest turn so far that no step has, those that still run cut off now."""
        calls = self._of_turn.made
        return calls.without_step if calls is not None else ()

    def tool(self) -> str | None:
        """The tool that the newest turn waits for: of several the one that was called last."""
        return self._tools.waited_for

    def _count(self) -> None:
        """Count the spending of the run, which has ended by itself or was killed."""
        if self._meter is None or not self._meter.usage():
            return
        self._ports.metrics.spent(self._cls.__name__, self._meter.made(), self._name)

    async def _consume(self, command: RunTurn, on_event: Callable[[Event], None] | None) -> TurnEnded:
        backend, number, meter = self._backend, command.number, self._meter
        assert backend is not None
        assert meter is not None
        began = self._ports.monotonic()
        request = command.request
        steps, absent, kept = self._steps, self._report_absence, _kept(command) if command.kept else ()
        turn = Turn(
            self._name,
            request.ref,
            number,
            request.metadata,
            request.attachments,
            steps,
            meter,
            absent,
            kept,
            self._open_calls,
            request.chain,
            self._answer_type,
        )
        try:
            meter.check()
            stream = await backend.prompt(_decoded(command.session), command.prompt, turn)
        except (BackendError, BudgetExceeded) as error:
            return TurnEnded(turn=number, error=sound(ErrorBody.of(error)))
        try:
            if meter.patience_s is None:
                events, last, streamed = await self._read(stream.events, command, on_event)
            else:
                async with _within(meter):
                    events, last, streamed = await self._read(stream.events, command, on_event)
        except BudgetExceeded as error:
            # The session of the turn's beginning: an interrupted run leaves none that is whole.
            return TurnEnded(turn=number, error=sound(ErrorBody.of(error)))
        state = self._encode_streamed(streamed, command.state) if self._streams else NOTHING
        if state is not NOTHING and isinstance(state, ErrorBody):
            return TurnEnded(turn=number, error=state)
        session = stream.session
        if last is None:
            missing = ErrorBody(code="no_terminal_event", message="the backend's stream ended without a result")
            return TurnEnded(turn=number, error=missing, state=state, session=_encoded(session))
        if last.kind == "error":
            return TurnEnded(turn=number, error=terminal_error(last), state=state, session=_encoded(session))
        session = backend.update_session(session, last.data)
        session_id = last.data.get("session_id") or (session.get("session_id") if isinstance(session, dict) else None)
        response = Response.of(events, round((self._ports.monotonic() - began) * 1000), session_id)
        if response.usage is not (usage := meter.usage()):
            response = msgspec.structs.replace(response, usage=usage)
        if self._answer_type is not None:
            response = msgspec.structs.replace(response, answer=self._answer_type.value(response.text))
        problem = bad_response(response)
        if problem is not None:
            raise BackendError(f"the backend's result cannot be passed on: {problem}", details={"reason": "bad_result"})
        return TurnEnded(turn=number, response=response, state=state, session=_encoded(session))

    async def _read(
        self, stream: Any, command: RunTurn, on_event: Callable[[Event], None] | None
    ) -> tuple[list[Event], Event | None, Any]:
        """The stream's events up to its terminal one, and the state as `handle_stream_event` left it.

        Nothing after the terminal event is read.
        """
        events: list[Event] = []
        state = self._state(command.state) if self._streams else None
        try:
            async for given in stream:
                data = unicode.well_formed(given.data)
                event = given if data is given.data else msgspec.structs.replace(given, data=data)
                events.append(event)
                if event.kind in _OF_TOOLS:
                    self._tools.observe(event)
                if event.kind in _OF_CALLS and (calls := self._of_turn.calls) is not None:
                    calls.observe(event)
                if self._meter is not None:
                    self._meter.observe(event)
                if on_event is not None:
                    on_event(event)
                if self._streams:
                    state = await self._observe(event, state)
                if event.terminal:
                    return events, event, state
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    await close()
        return events, None, state

    async def _observe(self, event: Event, state: Any) -> Any:
        """`handle_stream_event`, on the loop: each call is timed like the code between two suspensions of an `async` callback."""
        began = self._ports.monotonic()
        try:
            value: Any = self._agent.handle_stream_event(event, state)
        finally:
            spent = self._ports.monotonic() - began
            if spent > BLOCK_LIMIT_S:
                self._report_block("handle_stream_event", spent)
        if not isinstance(value, Awaitable):
            return value
        return await timed(value, "handle_stream_event", self._report_block, self._ports.monotonic)

    def _encode_streamed(self, state: Any, before: Raw) -> Raw | ErrorBody:
        raw = self._codec.encode(state, before)
        if isinstance(raw, Raw):
            self._cached = (raw, state)
            return raw
        self._forget_state()
        return ErrorBody(code=raw.code, message=f"handle_stream_event: {raw.message}")


_SHARED = frozenset({"init_agent", "handle_error", "terminate_agent", "post_turn"})
"""Callbacks whose arguments the turn machine uses further: they get copies."""
_OF_TOOLS = frozenset({"tool_use", "tool_result"})
_OF_CALLS = _OF_TOOLS | {"usage"}
_SESSION_HOOKS = frozenset({"start_session", "resume_session", "change_options", "terminate_session"})


@contextlib.asynccontextmanager
async def _within(meter: BudgetMeter) -> AsyncIterator[None]:
    """Bound the block by the time that the turn's budget leaves.

    Raises:
        BudgetExceeded: the time is over.
    """
    try:
        async with asyncio.timeout(meter.patience_s) as bound:
            yield
    except TimeoutError:
        if not bound.expired():
            raise
        raise meter.exceeded() from None


def _kept(command: RunTurn) -> tuple[Kept, ...]:
    """What earlier turns did, as the backend of this one sees it."""
    return tuple(
        Kept(
            name=name,
            number=turn.number,
            prompt=turn.prompt,
            attachments=turn.attachments,
            steps=tuple(msgspec.json.decode(step.value) for step in turn.steps),
            note=turn.note,
            shown=turn.shown,
            retried=turn.ref == command.request.ref,
        )
        for name, turn in command.kept
    )


def _own(argument: Any) -> Any:
    """A copy of `argument`, which a callback may change."""
    match argument:
        case ErrorBody():
            return ErrorBody(code=argument.code, message=argument.message, details=copy.deepcopy(argument.details)).exception()
        case Outcome():
            error = argument.error
            if error is not None and error.details:
                error = ErrorBody(code=error.code, message=error.message, details=copy.deepcopy(error.details))
            return msgspec.structs.replace(argument, usage=copy.deepcopy(argument.usage), error=error)
        case dict():
            return copy.deepcopy(argument)
    return argument


def _own_request(request: callback_context.Request | None) -> callback_context.Request | None:
    """The request with a copy of its metadata, which a callback may change."""
    if request is None or not request.metadata:
        return request
    return msgspec.structs.replace(request, metadata=copy.deepcopy(request.metadata))


def _is_cancelled(error: BaseException) -> bool:
    """Whether this is the cancellation of the task that runs now (or its coroutine's end), not one from a task of user code."""
    if isinstance(error, GeneratorExit):
        return True
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _decoded(raw: Raw) -> Any:
    return msgspec.json.decode(raw) if raw != NOTHING else None


def _encoded(session: Any) -> Raw:
    return Raw(unicode.encode(session))
