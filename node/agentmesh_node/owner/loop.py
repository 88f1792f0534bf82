"""Feeds an owner's inputs to the turn machine: one at a time, in order, and without a task if nothing must be awaited.

While a record is in flight further inputs wait, except for an interrupt, which the machine answers at once. A callback runs
beside the inputs, as a prompt task does, so that it can be cancelled. The acknowledgement of a record is handled in the loop
callback that reads it from the socket (`Transport.call`), so no task has to be woken between it and the caller's answer. Work
that costs time is queued together with that of other agents (`run_queue`).

The parts of an owner get this loop, and none gets the owner: the loop has what nearly all of them need, namely the machine's
state, `feed`, and timers that end with the owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from msgspec import structs

from agentmesh.callback_results import NONE
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import Fenced, StoreLost, Unavailable
from agentmesh.ledger_entries import TurnInfo
from agentmesh.turn import advance
from agentmesh.turn.values import (
    Append,
    CancelCallback,
    Command,
    Committed,
    Core,
    CutShort,
    Emit,
    Input,
    Interrupt,
    KillTurn,
    Perform,
    Phase,
    Returned,
    RunCallback,
    TurnAttempt,
)
from agentmesh_node.formats import Formats
from agentmesh_node.owner.claim import OwnershipLost
from agentmesh_node.owner.journal_writer import Ending, JournalWriter
from agentmesh_node.run_queue import RunShare

log = logging.getLogger("agentmesh.node")

STOP_GRACE_S = 5.0
"""How long a running callback may hold up a stop before it is cancelled."""
LOOK_S = 0.01
"""How often a condition is checked that nothing signals."""

DEFECT = OwnershipLost("a defect", final=False)

type Handlers = Mapping[type, Callable[[Any], None]]
"""The handlers of commands that need no waiting, by the type of the command."""
type Machine = Callable[[Core, Input, float], tuple[Core, list[Command]]]


class UserCode(Protocol):
    """Runs the agent's code (`turns.runner.Runner`)."""

    async def call(self, command: RunCallback) -> Input:
        """Run a callback to its end. Raises nothing but cancellation."""

    @property
    def turn_task(self) -> asyncio.Task[None] | None:
        """The prompt task, if one was started."""


class OwnerLoop:
    """The loop of one owner. `begin`, then `feed`; `close`."""

    def __init__(
        self,
        name: str,
        *,
        writer: JournalWriter,
        work: RunShare,
        now: Callable[[], float],
        user_code: UserCode | None,
        formats: Formats,
        machine: Machine = advance,
        on_turn: Callable[[TurnInfo], None] | None = None,
        on_lasting: Callable[[TurnAttempt], None] = lambda attempt: None,
    ) -> None:
        """
        Args:
            work: the agent's share of the node's run queue.
            user_code: None if the node does not serve the agent's kind: then its callbacks decide nothing.
            formats: which records all processes read (`Core.writes`).
            on_turn: called when a record is committed that ends a turn.
            on_lasting: called when a callback of an attempt does not end at once, where turns are traced.
        """
        self.name = name
        """The agent's name."""
        self.core: Core | None = None
        """The turn machine's state of the agent; None until `begin`."""
        self.writer = writer
        self._on_turn = on_turn
        self.closed = False
        """Whether this owner has stopped acting."""
        self.task: asyncio.Task[None] | None = None
        """The task that awaits something now, if there is one."""
        self.busy = False
        """Whether an input is being handled."""
        self.callback: asyncio.Task[None] | None = None
        """The callback that runs now, unless it ends without a wait."""
        self.work = work
        """Where work is put that costs time."""
        self._now = now
        self._user_code = user_code
        self._machine = machine
        self._formats = formats
        self._handlers: Handlers
        self._kill_turn: Callable[[], Awaitable[None]]
        self._on_input: Callable[[], None]
        self._on_end: Callable[[OwnershipLost | None], None]
        self._loop = asyncio.get_running_loop()
        self._title = f"owner {name}"
        self._inputs: deque[Input] = deque()
        self._on_lasting = on_lasting
        self._timers: set[asyncio.TimerHandle] = set()
        self.appending = False
        """Whether a record is on its way to the journal."""
        self._cancelled: asyncio.Task[None] | None = None
        """The callback that was told to end."""

    def begin(
        self,
        core: Core,
        handlers: Handlers,
        *,
        kill_turn: Callable[[], Awaitable[None]],
        on_input: Callable[[], None],
        on_end: Callable[[OwnershipLost | None], None],
    ) -> None:
        """Handle inputs from now on. Inputs that have come already are handled first, when the next one comes.

        Args:
            core: the state that the machine begins with.
            handlers: perform the commands that need no waiting; the others are awaited here.
            kill_turn: ends the running turn and its watchdog.
            on_input: called when an input comes while none is handled.
            on_end: called when the owner ends: with the reason, or with None if the agent's life is over.
        """
        self.core = core
        self._handlers = handlers
        self._kill_turn = kill_turn
        self._on_input = on_input
        self._on_end = on_end

    async def close(self) -> None:
        """Handle nothing more; cancel what is under way."""
        if not self.closed:
            self.closed = True
            self.work.leave()
        for handle in self._timers:
            handle.cancel()
        await cancel_and_wait(self.task, within_s=STOP_GRACE_S)
        await cancel_and_wait(self.callback, within_s=STOP_GRACE_S)

    @property
    def idle(self) -> bool:
        """Whether no turn and no callback runs, and no record is in flight."""
        core = self.core
        return core is not None and core.active is None and not self.busy and self.callback is None

    async def pause(self) -> None:
        """Return when a running task has ended; if none runs, return soon."""
        turn = self._user_code.turn_task if self._user_code is not None else None
        waiting = [task for task in (self.task, self.callback, turn) if task is not None and not task.done()]
        if waiting:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(LOOK_S)

    # --- timers -----------------------------------------------------------------------------------------------------
    def later(self, seconds: float, action: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `action` after `seconds`, unless the owner is closed by then."""

        def fire() -> None:
            self._timers.discard(handle)
            if not self.closed:
                action()

        handle = self._loop.call_later(max(0.0, seconds), fire)
        self._timers.add(handle)
        return handle

    def call_off(self, handle: asyncio.TimerHandle) -> None:
        """Cancel a timer of `later`."""
        handle.cancel()
        self._timers.discard(handle)

    # --- inputs -----------------------------------------------------------------------------------------------------
    def feed(self, item: Input) -> None:
        """Handle an input: at once, within this call, or after the inputs that come first. Does nothing once closed."""
        if self.closed:
            return
        if self.busy or self.core is None:
            if self.appending and type(item) is Interrupt and not self._inputs:
                self._answer_interrupt(item)
            else:
                self._inputs.append(item)
            return
        self.busy = True
        self._on_input()
        if self._inputs:
            self._inputs.append(item)
            item = self._inputs.popleft()
        self.work.put(self._handle_input, item)

    def _answer_interrupt(self, item: Interrupt) -> None:
        """Pass an interrupt to the machine while a record is in flight: it can only be answered, or wait there.

        (A callback that runs beside the record may be hurried because of a stop.)
        """
        assert self.core is not None
        try:
            self.core, commands = self._machine(self.core, item, self._now())
            for command in commands:
                if isinstance(command, CancelCallback):
                    self._cancel_callback(command)
                else:
                    self._handlers[type(command)](command)
        except Exception:
            log.exception("owner failed", extra={"agent": self.name})
            self._fail(DEFECT)

    def _handle_input(self, item: Input) -> None:
        """Pass an input to the machine, and perform its commands."""
        if self.closed:
            return
        assert self.core is not None
        if self.core.writes != self._formats.writes:
            # What all processes read, or what the journal has already.
            self.core = structs.replace(self.core, writes=max(self._formats.writes, self.writer.version))
        try:
            self.core, commands = self._machine(self.core, item, self._now())
            self._run_commands(commands)
        except Exception:
            log.exception("owner failed", extra={"agent": self.name})
            self._fail(DEFECT)

    def _next_input(self) -> None:
        """An input is handled: go on with the next one, if there is one."""
        if self._inputs and not self.closed:
            self.work.put(self._handle_input, self._inputs.popleft())
            return
        self.busy = False
        if self.core is not None and self.core.phase is Phase.OVER:
            self._on_end(None)

    def _fail(self, lost: OwnershipLost) -> None:
        """End this owner."""
        self.busy = False
        self._on_end(lost)

    # --- commands ---------------------------------------------------------------------------------------------------
    def _run_commands(self, commands: list[Command]) -> None:
        """Perform commands: facts at once, the others through the run queue. After the last one, handle the next input."""
        for index, command in enumerate(commands):
            if type(command) is not Emit:
                self.work.put(self._run_first, commands[index:])
                return
            self._handlers[Emit](command)
        self._next_input()

    def _run_first(self, commands: list[Command]) -> None:
        """Perform the first of `commands` and go on with the others; or, if one must be awaited, leave them all to a task."""
        if self.closed:
            return
        command, *others = commands
        handler = self._handlers.get(type(command))
        try:
            if type(command) is Perform and self.writer.stalled:
                self._continue_in_task(self._run_behind_fence(commands))
            elif handler is not None:
                handler(command)
                self._run_commands(others)
            elif type(command) is RunCallback:
                self._begin_callback(command)
                self._run_commands(others)
            elif type(command) is CancelCallback:
                self._cancel_callback(command)
                self._run_commands(others)
            elif others or not self._try_append_now(command):
                self._continue_in_task(self._run_and_await(commands))
        except Exception:
            log.exception("owner failed", extra={"agent": self.name})
            self._fail(DEFECT)

    async def _run_and_await(self, commands: list[Command]) -> Input | None:
        """Perform commands, some of which are awaited, in order. Returns the input that the last awaited one ends in."""
        following: Input | None = None
        for command in commands:
            if isinstance(command, RunCallback):
                self._begin_callback(command)
            elif isinstance(command, CancelCallback):
                self._cancel_callback(command)
            elif isinstance(command, Append):
                assert self.core is not None
                self.appending = True
                following = await self.writer.append(command, self.core)
                self.appending = False
                self._tell_turn(command)
            elif isinstance(command, KillTurn):
                await self._kill_turn()
            else:
                self._handlers[type(command)](command)
        return following

    async def _run_behind_fence(self, commands: list[Command]) -> Input | None:
        """Perform effects after a stall: only if no other owner has taken over meanwhile (case 204)."""
        await self.writer.check_fence()
        return await self._run_and_await(commands)

    def _continue_in_task(self, work: Coroutine[Any, Any, Input | None]) -> None:
        task = asyncio.Task(self._continue_after(work), loop=self._loop, name=self._title, eager_start=True)
        if not task.done():
            self.task = task

    async def _continue_after(self, work: Coroutine[Any, Any, Input | None]) -> None:
        """Await `work`, and go on with the input that it ends in."""
        try:
            following = await work
        except OwnershipLost as error:
            self._fail(error)
        except (Fenced, StoreLost, Unavailable) as error:
            self._fail(OwnershipLost.by(error))
        except asyncio.CancelledError:
            self.busy = False
            raise
        except Exception:
            log.exception("owner failed", extra={"agent": self.name})
            self._fail(DEFECT)
        else:
            if following is not None:
                self.work.put(self._handle_input, following)
            else:
                self._next_input()
        finally:
            self.task = None

    # --- records ----------------------------------------------------------------------------------------------------
    def _try_append_now(self, command: Command) -> bool:
        """Append the record of `command`, which must be the last one. Returns False if it is none, or if nothing was sent."""
        if type(command) is not Append:
            return False
        assert self.core is not None
        self.appending = self.writer.append_soon(command, self.core, partial(self._on_append_end, command))
        return self.appending

    def _on_append_end(self, command: Append, end: Committed | Ending) -> None:
        """The record is committed, or its fate must be found out."""
        if self.closed:
            return
        try:
            if isinstance(end, Committed):
                self.appending = False
                self._tell_turn(command)
                self.work.put(self._handle_input, end)
            else:
                self._continue_in_task(self._settle_append(command, end))
        except Exception:
            log.exception("owner failed", extra={"agent": self.name})
            self._fail(DEFECT)

    async def _settle_append(self, command: Append, end: Ending) -> Committed:
        committed = await end()
        self.appending = False
        self._tell_turn(command)
        return committed

    def _tell_turn(self, command: Append) -> None:
        """Tell of the turn that the committed record ends, if it ends one."""
        if command.turn is not None and self._on_turn is not None:
            self._on_turn(command.turn)

    # --- callbacks --------------------------------------------------------------------------------------------------
    def _begin_callback(self, command: RunCallback) -> None:
        """Run a callback. If it ends without a wait, its end is the next input."""
        task = asyncio.Task(self._run_callback(command), loop=self._loop, name=self._title, eager_start=True)
        if not task.done():
            self.callback = task
            if isinstance(command.of, TurnAttempt):
                self._on_lasting(command.of)

    async def _run_callback(self, command: RunCallback) -> None:
        try:
            end = await self._end_of(command)
        except Exception:
            log.exception("owner failed", extra={"agent": self.name})
            self.callback = None
            self._fail(DEFECT)
            return
        if self.callback is None:
            self._inputs.appendleft(end)
        else:
            self.callback = None
            self.feed(end)

    async def _end_of(self, command: RunCallback) -> Input:
        if self._user_code is None:
            return Returned(NONE)
        try:
            return await self._user_code.call(command)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task is not self._cancelled:
                raise
            task.uncancel()
            return CutShort()

    def _cancel_callback(self, command: CancelCallback) -> None:
        running = self.callback
        if running is None:
            return
        if command.after_s:
            self.later(command.after_s, lambda: self._cut(running))
        else:
            self._cut(running)

    def _cut(self, running: asyncio.Task[None]) -> None:
        if running is self.callback:
            self._cancelled = running
            running.cancel()

    def limit_callbacks(self) -> None:
        """Bound callbacks while the agent stops: none may take longer than `STOP_GRACE_S`."""
        if self.callback is not None:
            self._cut(self.callback)
        if self.core is None or self.core.phase is not Phase.OVER:
            self.later(STOP_GRACE_S, self.limit_callbacks)
