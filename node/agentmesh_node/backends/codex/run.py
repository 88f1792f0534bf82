"""One turn of Codex: a child process, its notifications as events, and steps with which another node can go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence, Set
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from agentmesh.backend import Event, Turn
from agentmesh.edge.failures import Uncertain
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BackendError, BudgetExceeded, InfrastructureError, NotFound
from agentmesh_node.backends.codex import settings
from agentmesh_node.backends.codex.homes import Home
from agentmesh_node.backends.codex.notifications import events_of, failure, in_words, is_tool, mapping, tokens
from agentmesh_node.backends.codex.own_tools import OwnToolRuns
from agentmesh_node.backends.codex.process import DECLINED, AppServer, Json, malformed, striker
from agentmesh_node.backends.codex.rollout import File, Rollout, Store, forget
from agentmesh_node.backends.codex.settings import CodexOptions
from agentmesh_node.backends.codex.steps import EarlierSteps, Saved, step_value
from agentmesh_node.backends.own_loop import OwnLoop
from agentmesh_node.backends.retries import Retries, again, told_again
from agentmesh_node.backends.shapes import Misshapen, shaped
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.inner_calls import take
from agentmesh_node.tools import Toolbox
from agentmesh_node.tools.kept_exchanges import notes
from agentmesh_node.tools.turn_bounds import Driven, TurnBounds

log = logging.getLogger("agentmesh.node")

PROVIDER = "openai"
"""Whose models Codex calls, in the telemetry conventions."""
STORE_ERRORS = (InfrastructureError, Uncertain)
"""Errors that say that the store cannot be read or written now. Other errors of the mesh are about the thread itself."""
STORE_TRIES = 5
LONGEST_LIMIT_S = 60.0
"""Longest wait for a provider that limits its requests: Codex itself does not try again then."""
STORE_WAIT_S = 0.5


class Session(msgspec.Struct, frozen=True):
    """The session value of an agent."""

    session_id: str | None = None
    """The thread's id; None before the first turn has succeeded."""
    rollout: Rollout | None = None
    old: tuple[str, ...] = ()
    """Parts that are no longer needed, to be deleted once this value is committed."""


class Ground(msgspec.Struct, frozen=True):
    """Shared by all turns of one agent."""

    options: CodexOptions
    directory: Path
    store: Store
    toolbox: Toolbox
    place: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext
    """A slot, held while Codex runs (see `agentmesh.backend.Room`)."""

    @property
    def cwd(self) -> Path:
        """The agent's working directory: the option's, else one of its own that stays on this node."""
        return Path(self.options.cwd) if self.options.cwd is not None else self.directory / "work"


class Run:
    """One turn."""

    def __init__(self, ground: Ground, session: Session, turn: Turn, made_before: Set[str] = frozenset()) -> None:
        """`made_before`: the parts that an earlier prompt of this turn has stored, in this process."""
        self._made_before = set(made_before)
        self._ground = ground
        self._options = ground.options
        self._session = session
        self._turn = turn
        self._loop = OwnLoop(turn)
        self._taken = EarlierSteps(turn.steps.taken)
        self._saved = self._taken.saved[-1] if self._taken.saved else None
        self._usage: dict[str, int] = dict(self._saved.usage) if self._saved else {}
        self._tool_calls = self._saved.tool_calls if self._saved else 0
        self._since_step: list[Event] = []
        """Events since the last step."""
        self._answer_from = 0
        """How many of them came before the newest answer of the model."""
        self._begun_answer = False
        """Whether text of that answer was given."""
        self._tools_ran = False
        """Whether a tool has run since the last step."""
        self._answers = 0
        """Answers of the model that the rollout must have."""
        self._driven = self._counts()
        self._text = ""
        self._thread = ""
        self._path = ""
        self._file: File | None = None
        self._heard = 0.0
        """When Codex last reported anything other than that it tries again."""

    def _counts(self) -> Driven:
        """What the turn was driven to by earlier owners."""
        options = self._options
        driven = Driven(TurnBounds(options.max_iterations, options.max_tool_runs, options.max_result_bytes))
        driven.iterations, driven.tool_runs = len(self._taken.saved), self._tool_calls
        for event in self._taken.events():
            if event.kind == "tool_result":
                driven.take(event.data["text"])
        return driven

    @property
    def made(self) -> set[str]:
        """The parts that this run has stored, and the prompt before it in the same turn."""
        return self._file.made | self._made_before if self._file is not None else self._made_before

    @property
    def needed(self) -> set[str]:
        """The parts that this turn may begin from."""
        rollouts = [self._session.rollout, *(saved.rollout for saved in self._taken.saved)]
        return {part for rollout in rollouts if rollout is not None for part in rollout.parts}

    async def events(self, prompt: str) -> AsyncGenerator[Event]:
        """The events of the turn, up to one terminal event."""
        for event in self._taken.events():
            yield event
        try:
            await self._loop.begin()
            async with self._ground.place():
                home = await asyncio.to_thread(Home, self._ground.directory / "homes")
                try:
                    async with aclosing(self._at_home(home, prompt)) as events:
                        async for event in events:
                            yield event
                finally:
                    await asyncio.to_thread(home.remove)
        except (BackendError, BudgetExceeded) as error:
            yield failed(error)
        finally:
            self._loop.end()

    async def _at_home(self, home: Home, prompt: str) -> AsyncGenerator[Event]:
        key = settings.key_of(self._options, os.environ)
        secrets = [key] if key is not None else []
        file = self._file = File(home.path, self._ground.store, striker(secrets))
        await self._restore(file)
        server = await self._server(home.path, secrets)
        tools = OwnToolRuns(self._ground.toolbox, self._loop.inside, self._taken, server)
        try:
            turn_id: str | None = await self._begun(server, home, prompt)
            self._answers = file.answers()

            async def attempt() -> AsyncGenerator[Event]:
                nonlocal turn_id
                # A further one goes on without a prompt: that is in the thread already.
                this, turn_id = turn_id or await self._start_turn(server, []), None
                async with aclosing(self.listen(server, tools, file, this)) as events:
                    async for event in events:
                        yield event

            retries = Retries(self._options.limit_retries + 1, LONGEST_LIMIT_S, frozenset({"rate_limited"}))
            async with aclosing(again(attempt, retries, self._turn.allowance)) as events:
                async for event in events:
                    yield event
        finally:
            await tools.close()
            await server.close()
        # This is reached only if Codex completed the turn: now that Codex has ended, its file is whole.
        yield self._result(await self._kept(file))

    # --- the beginning ------------------------------------------------------------------------------------------------
    async def _restore(self, file: File) -> None:
        """Restore the thread's file from the newest step of this turn, else from the session."""
        if self._saved is not None:
            with contextlib.suppress(NotFound):  # the step is of a try of this turn that has ended since
                await self._read(file, self._saved.rollout)
                self._thread, self._path = self._saved.session_id, self._saved.rollout.path
                return
            self._saved = None
        if self._session.session_id is None or self._session.rollout is None:
            return
        try:
            await self._read(file, self._session.rollout)
        except NotFound as error:
            raise settings.refused("session_lost", f"the thread's stored rollout is gone: {error.message}") from None
        self._thread, self._path = self._session.session_id, self._session.rollout.path

    async def _read(self, file: File, rollout: Rollout) -> None:
        try:
            await file.restore(rollout)
        except NotFound:
            raise
        except STORE_ERRORS as error:
            details = {"reason": "store_unavailable", "retryable": True, "retry_after_s": 1.0}
            raise BackendError(f"the thread's rollout cannot be read now: {error}", details=details) from None

    async def _server(self, home: Path, secrets: Sequence[str]) -> AppServer:
        env = {**settings.environment(self._options, os.environ, home), **tracing.environment()}
        program, tools = await asyncio.to_thread(settings.binary, os.environ)
        if tools is not None:
            env["PATH"] = f"{tools}:{env.get('PATH', os.defpath)}"
        cwd = self._ground.cwd
        if self._options.cwd is None:
            await asyncio.to_thread(cwd.mkdir, parents=True, exist_ok=True)
        elif not await asyncio.to_thread(cwd.is_dir):
            raise settings.refused("bad_options", f"there is no directory {cwd} on this node; make it, or change the option cwd")
        command = [program, "app-server", "--listen", "stdio://"]
        return AppServer(command, env=env, cwd=str(cwd), secrets=secrets)

    async def _begun(self, server: AppServer, home: Home, prompt: str) -> str:
        try:
            async with asyncio.timeout(self._options.start_timeout_s):
                await server.start()
                return await self._begin(server, home, prompt)
        except TimeoutError:
            limit = f"{self._options.start_timeout_s:g} s"
            details = {"reason": "start_timeout", "retryable": True}
            raise BackendError(f"Codex did not begin the turn within {limit}", details=details) from None

    async def _begin(self, server: AppServer, home: Home, prompt: str) -> str:
        """Start or resume the thread, and start the turn. Returns Codex's id of the turn."""
        params = settings.thread_params(self._options, self._ground.cwd)
        # Also for a thread that goes on: it keeps its tools, but this process may not know them yet.
        specs = await self._ground.toolbox.specs()
        if self._thread:
            told = await server.call("thread/resume", {**params, "threadId": self._thread, "excludeTurns": True})
        else:
            told = await server.call("thread/start", {**params, "dynamicTools": settings.dynamic_tools(specs)})
        thread = mapping(told.get("thread"))
        self._thread = str(thread.get("id", ""))
        path = Path(str(thread.get("path") or ""))
        if not self._thread or not path.is_relative_to(home.path):
            raise settings.refused("bad_output", "Codex did not say where it keeps the thread")
        self._path = str(path.relative_to(home.path))
        # A turn that goes on has its prompt in the thread already.
        typed = self._turn.answer_type
        demand = [typed.demand()] if typed is not None and self._schema() is None else []
        text = "\n\n".join([prompt, *notes(self._turn.kept), *demand])
        said = [] if self._saved is not None else await asyncio.to_thread(home.inputs, text, self._turn.attachments)
        notice = self._ground.toolbox.notice(self._turn)
        if said and notice is not None:
            said.append({"type": "text", "text": notice})
        return await self._start_turn(server, said)

    def _schema(self) -> Json | None:
        """The schema of the answer, as Codex's provider takes it."""
        typed = self._turn.answer_type
        return self._options.output_schema or (typed.strict if typed is not None else None)

    async def _start_turn(self, server: AppServer, said: list[Json]) -> str:
        """Start a turn of the thread. Returns Codex's id of it."""
        start: Json = {"threadId": self._thread, "input": said}
        if self._options.effort is not None:
            start["effort"] = self._options.effort
        if (schema := self._schema()) is not None:
            start["outputSchema"] = schema
        begun = await server.call("turn/start", start)
        return str(mapping(begun.get("turn")).get("id", ""))

    # --- the turn -----------------------------------------------------------------------------------------------------
    async def listen(self, server: AppServer, tools: OwnToolRuns, file: File, turn_id: str) -> AsyncGenerator[Event]:
        """The events of the turn, until Codex has completed it.

        Raises:
            BackendError: Codex gave the turn up, or ended, or broke the protocol.
        """
        self._heard = asyncio.get_running_loop().time()
        while True:
            message = await _next(server, tools)
            method, params = str(message.get("method", "")), mapping(message.get("params"))
            if "id" in message:
                await self._handle_request(server, tools, message["id"], method, params)
                continue
            if params.get("threadId") not in (None, self._thread):
                continue
            self._patience(method, params)
            if method == "error" and params.get("willRetry"):
                yield self._again(params)
                continue
            for event in _events(method, params):
                if event.kind == "tool_result":
                    self._driven.take(str(event.data["text"]))
                self._note(event)
                yield event
            if method == "item/completed":
                self._item(params)
            elif method == "thread/tokenUsage/updated" and params.get("turnId") == turn_id:
                tools_ran = self._tools_ran
                tools.next_answer()
                yield await self._answered(file, params)
                if tools_ran:
                    await self._goes_on(server, turn_id)
            elif method == "turn/completed" and mapping(params.get("turn")).get("id") == turn_id:
                self._check(mapping(params["turn"]))
                return

    async def _goes_on(self, server: AppServer, turn_id: str) -> None:
        """Check the bounds and the budget before the turn goes on, and tell the model if most of that is spent.

        Raises:
            BackendError, BudgetExceeded: the turn may not go on.
        """
        self._driven.check()
        if not self._tools_ran:  # a step has the answer and what its tools have given
            await self._loop.settled()
        self._turn.allowance.check()
        note = self._turn.allowance.note()
        if note is not None:
            said = [{"type": "text", "text": note}]
            try:
                await server.call("turn/steer", {"threadId": self._thread, "expectedTurnId": turn_id, "input": said})
            except BackendError as error:
                if error.details.get("reason") != "codex_refused":
                    raise
                log.info("codex was not told of the budget: its turn is ending", extra={"agent": self._turn.agent})

    async def _handle_request(self, server: AppServer, tools: OwnToolRuns, request: Any, method: str, params: Json) -> None:
        """Handle a request of Codex: run one of the agent's tools, or decline (nobody is there to approve anything)."""
        if method == "item/tool/call":
            tools.begin(request, params)
        elif method.endswith("/requestApproval"):
            log.info("codex asked for an approval, which was declined", extra={"agent": self._turn.agent, "request": method})
            await server.reply(request, DECLINED)
        else:
            await server.reply(request, None)

    def _patience(self, method: str, params: Json) -> None:
        """Fail the turn if Codex has tried too long to reach its provider: Codex itself tries for ever."""
        now = asyncio.get_running_loop().time()
        if not (method == "error" and params.get("willRetry")):
            self._heard = now
        elif now - self._heard >= self._options.unreachable_s:
            error = mapping(params.get("error"))
            told = in_words(str(error.get("additionalDetails") or error.get("message") or "no answer"))
            details = {"reason": "connection", "retryable": True, "retry_after_s": 30.0}
            raise BackendError(f"the model's provider cannot be reached: {told}", details=details)

    def _again(self, params: Json) -> Event:
        """The stream of an answer broke off, and Codex asks again: what it has given of the answer is void."""
        begun = self._begun_answer
        del self._since_step[self._answer_from :]
        self._begun_answer = False
        reason = str(failure(params.get("error")).details["reason"])
        return told_again(None, None, reason, restart=begun)

    def _note(self, event: Event) -> None:
        """Keep an event for the next step. Text is joined into one piece, as it is replayed later."""
        if event.kind in ("text", "thinking"):
            self._begun_answer = True
        elif event.kind in ("usage", "tool_result"):
            self._begun_answer, self._answer_from = False, len(self._since_step) + 1
        last = self._since_step[-1] if len(self._since_step) > self._answer_from else None
        if last is not None and last.kind == event.kind and event.kind in ("text", "thinking"):
            self._since_step[-1] = Event(event.kind, {"text": last.data["text"] + event.data["text"]})
        else:
            self._since_step.append(event)

    def _item(self, params: Json) -> None:
        item = mapping(params.get("item"))
        if item.get("type") == "agentMessage":
            self._text = str(item.get("text", ""))
        elif is_tool(params):
            self._tools_ran = True
            self._tool_calls += 1
            self._driven.may_run()

    async def _answered(self, file: File, params: Json) -> Event:
        """The model has answered, and its tools have run: count the answer, and commit a step if the turn goes on."""
        self._answers += 1
        self._driven.iterations += 1
        used = tokens(mapping(params.get("tokenUsage")))
        tracing.answered(PROVIDER, self._options.model or "codex", used)
        for name, count in used.items():
            self._usage[name] = self._usage.get(name, 0) + count
        event = Event("usage", {**self._usage, "model": self._options.model or "", "tool_calls": self._tool_calls})
        self._note(event)
        if self._tools_ran:
            await self._step(file)
        return event

    async def _step(self, file: File) -> None:
        """Store the thread and commit a step with its rollout. If it cannot be stored now, a takeover only repeats some work."""
        former = set(file.saved.parts)
        try:
            rollout = await file.save(self._path, counted=self._answers)
        except STORE_ERRORS as error:
            log.warning("a step of codex was not taken", extra={"agent": self._turn.agent, "error": str(error)})
            return
        if rollout is None:
            log.warning("codex lags behind in writing its rollout", extra={"agent": self._turn.agent})
            return
        saved = Saved(self._thread, rollout, tuple(self._since_step), dict(self._usage), self._tool_calls)
        await take(self._turn.steps, step_value(saved), tracing.ended_call())
        self._since_step.clear()
        self._answer_from = 0
        self._tools_ran = False
        kept = {*rollout.parts, *(self._session.rollout.parts if self._session.rollout is not None else ())}
        await forget(self._ground.store, sorted(former - kept))

    def _check(self, turn: Json) -> None:
        status = turn.get("status")
        if status == "interrupted":
            raise BackendError("Codex ended the turn early", details={"reason": "interrupted", "retryable": True})
        if status != "completed":
            error = failure(turn.get("error"))
            if error.details["reason"] == "max_tokens":
                texts = (event.data["text"] for event in self._since_step[self._answer_from :] if event.kind == "text")
                error.details["text"] = "".join(texts)
            raise error

    # --- the end ------------------------------------------------------------------------------------------------------
    async def _kept(self, file: File) -> Session:
        """Store the thread, and return the session after the turn.

        Raises:
            BackendError: it cannot be stored.
        """
        for tries in range(1, STORE_TRIES + 1):
            try:
                rollout = await file.save(self._path)
            except STORE_ERRORS as error:
                if tries == STORE_TRIES:
                    details = {"reason": "store_unavailable", "retryable": True, "retry_after_s": 5.0}
                    raise BackendError(f"the thread cannot be stored: {error}", details=details) from None
                await asyncio.sleep(STORE_WAIT_S * tries)
            else:
                break
        assert rollout is not None
        before = self._session.rollout.parts if self._session.rollout is not None else ()
        taken = tuple(part for saved in self._taken.saved for part in saved.rollout.parts)
        # What was old before this turn is gone, unless this is a second prompt of the turn: it may still be needed then.
        older = self._session.old if self._turn.committed is not None else ()
        unneeded = {*older, *before, *taken} - set(rollout.parts)
        return Session(self._thread, rollout, tuple(sorted(unneeded)))

    def _result(self, session: Session) -> Event:
        data: Json = {"session_id": session.session_id, "thread": msgspec.to_builtins(session)}
        return Event.result(self._text, **data)


def _events(method: str, params: Json) -> list[Event]:
    """The events for a notification.

    Raises:
        BackendError: it has not the form that it should have.
    """
    try:
        return [shaped(event) for event in events_of(method, params)]
    except Misshapen as error:
        raise malformed(str(error)) from None


async def _next(server: AppServer, tools: OwnToolRuns) -> Json:
    """The next message of the child, unless a tool's run has failed first."""
    if tools.failed.done():
        tools.failed.result()
    reading = asyncio.ensure_future(server.next())
    try:
        await asyncio.wait((reading, tools.failed), return_when=asyncio.FIRST_COMPLETED)
        if tools.failed.done():
            tools.failed.result()
        return await reading
    finally:
        await cancel_and_wait(reading)


def failed(error: BackendError | BudgetExceeded) -> Event:
    """The terminal event for an error: its reason and hints are the data."""
    more = {name: value for name, value in error.details.items() if name != "reason"}
    return Event.error(str(error.details.get("reason", error.code)), message=error.message, code=error.code, **more)
