"""Carries an owner's inputs through the turn machine: one at a time, in order, and without a task where nothing must be awaited.

While a callback runs or a record is in flight, what arrives waits. The acknowledgement of a record goes on with its agent in the
very step in which it is read from the socket (`Transport.call`), so no task has to be woken between it and the caller's answer.
What costs something is done in rounds with what other agents have to do (`run_queue`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agentmesh.callback_results import NONE
from agentmesh.errors import Fenced, StoreLost, Unavailable
from agentmesh.turn import advance
from agentmesh.turn.values import (
    Append,
    Command,
    Committed,
    Core,
    Emit,
    Input,
    KillTurn,
    Perform,
    Phase,
    Raised,
    Returned,
    RunCallback,
)
from agentmesh.wire import ErrorBody
from agentmesh_node.owner.claim import OwnershipLost
from agentmesh_node.owner.journal_writer import Ending, JournalWriter
from agentmesh_node.services import Services

if TYPE_CHECKING:
    from agentmesh_node.owner.owner import Owner

log = logging.getLogger("agentmesh.node")

STOP_GRACE_S = 5.0
"""How long a running callback may hold up a stop before it is cancelled."""

DEFECT = OwnershipLost("a defect", final=False)

type Deed = Callable[[Owner, Any], None]


class OwnerLoop:
    """The loop of one owner."""

    def __init__(self, owner: Owner, services: Services, perform: Mapping[type, Deed]) -> None:
        """`perform` has the commands that are performed at once; the others are awaited."""
        self.core: Core | None = None
        self.appender = JournalWriter(services, owner.name, committed=0)
        self.task: asyncio.Task[None] | None = None
        """What awaits something now."""
        self.busy = False
        """Whether an input is being handled."""
        self._owner = owner
        self._perform_now = perform
        self._now = services.now
        self._rounds = services.rounds
        self._loop = asyncio.get_running_loop()
        self._title = f"owner {owner.name}"
        self._queue: deque[Input] = deque()
        self._calling = False
        self._overdue = False

    def feed(self, item: Input) -> None:
        """Take an input: in its turn, and behind what is being handled."""
        if self.busy or self.core is None:
            self._queue.append(item)
            return
        self.busy = True
        self._owner.stir()
        if self._queue:
            self._queue.append(item)
            item = self._queue.popleft()
        self._rounds.put(self._take, item)

    def _take(self, item: Input) -> None:
        """Carry an input into the machine."""
        if self._owner.closed:
            return
        assert self.core is not None
        try:
            self.core, commands = advance(self.core, item, self._now())
            self._begin(commands)
        except Exception:
            log.exception("owner failed", extra={"agent": self._owner.name})
            self._lose(DEFECT)

    def _begin(self, commands: list[Command]) -> None:
        """Perform commands: facts at once, what is behind them in its turn. With none left, go on with what waits."""
        for index, command in enumerate(commands):
            if type(command) is not Emit:
                self._rounds.put(self._go_on, commands[index:])
                return
            self._perform_now[Emit](self._owner, command)
        self._next()

    def _go_on(self, commands: list[Command]) -> None:
        """Perform the first of `commands`, and begin with the others; or leave all that is to be awaited to a task."""
        if self._owner.closed:
            return
        command, *others = commands
        perform = self._perform_now.get(type(command))
        try:
            if type(command) is Perform and self.appender.stalled:
                self._await(self._perform_checked(commands))
            elif perform is not None:
                perform(self._owner, command)
                self._begin(others)
            elif others or not self._flies(command):
                self._await(self._perform(commands))
        except Exception:
            log.exception("owner failed", extra={"agent": self._owner.name})
            self._lose(DEFECT)

    def _next(self) -> None:
        """An input is handled: the next one, or rest."""
        if self._queue and not self._owner.closed:
            self._rounds.put(self._take, self._queue.popleft())
            return
        self.busy = False
        if self.core is not None and self.core.phase is Phase.OVER:
            self._owner.end(None)

    def _lose(self, lost: OwnershipLost) -> None:
        self.busy = False
        self._owner.end(lost)

    # --- records ----------------------------------------------------------------------------------------------------
    def _flies(self, command: Command) -> bool:
        """Whether `command`, which has nothing behind it that would have to wait for it, is a record that is on its way now."""
        if type(command) is not Append:
            return False
        assert self.core is not None
        return self.appender.append_soon(command, self.core, partial(self._appended, command))

    def _appended(self, command: Append, end: Committed | Ending) -> None:
        """The record that was on its way stands, or its fate must be found out."""
        if self._owner.closed:
            return
        try:
            if isinstance(end, Committed):
                self._end_span(command)
                self._rounds.put(self._take, end)
            else:
                self._await(self._settle(command, end))
        except Exception:
            log.exception("owner failed", extra={"agent": self._owner.name})
            self._lose(DEFECT)

    async def _settle(self, command: Append, end: Ending) -> Committed:
        committed = await end()
        self._end_span(command)
        return committed

    def _end_span(self, command: Append) -> None:
        runner = self._owner.runner
        if command.turn is not None and runner is not None:
            runner.end_span(command.turn.error.code if command.turn.error else None)

    # --- what is awaited --------------------------------------------------------------------------------------------
    def _await(self, work: Coroutine[Any, Any, Input | None]) -> None:
        task = asyncio.Task(self._drive(work), loop=self._loop, name=self._title, eager_start=True)
        if not task.done():
            self.task = task

    async def _drive(self, work: Coroutine[Any, Any, Input | None]) -> None:
        """Do `work`, and go on with the input that it ends in."""
        try:
            following = await work
        except OwnershipLost as error:
            self._lose(error)
        except (Fenced, StoreLost, Unavailable) as error:
            self._lose(OwnershipLost.by(error))
        except asyncio.CancelledError:
            self.busy = False
            raise
        except Exception:
            log.exception("owner failed", extra={"agent": self._owner.name})
            self._lose(DEFECT)
        else:
            if following is not None:
                self._rounds.put(self._take, following)
            else:
                self._next()
        finally:
            self.task = None

    async def _perform(self, commands: list[Command]) -> Input | None:
        """Perform commands of which some are awaited, in order. Returns the input that the last one ended in."""
        following: Input | None = None
        for command in commands:
            if isinstance(command, RunCallback):
                following = await self._call(command)
            elif isinstance(command, Append):
                assert self.core is not None
                following = await self.appender.append(command, self.core)
                self._end_span(command)
            elif isinstance(command, KillTurn):
                await self._owner.kill_turn()
            else:
                self._perform_now[type(command)](self._owner, command)
        return following

    async def _perform_checked(self, commands: list[Command]) -> Input | None:
        """Effects after a stall: only if no other owner has taken over meanwhile (case 204)."""
        await self.appender.check_fence()
        return await self._perform(commands)

    async def _call(self, command: RunCallback) -> Input:
        runner = self._owner.runner
        if runner is None:
            return Returned(NONE)
        self._calling = True
        try:
            return await runner.call(command)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._overdue or task is None:
                raise
            # Cancelled by `hurry` and by nobody else: the callback ends, the owner goes on.
            self._overdue = False
            task.uncancel()
            return Raised(ErrorBody(code="timeout", message=f"{command.hook} held up the stop for {STOP_GRACE_S:g} s"))
        finally:
            self._calling = False

    def hurry(self) -> None:
        """While the agent stops, no callback may take longer than the grace."""
        if self._calling and self.task is not None:
            self._overdue = True
            self.task.cancel()
        if self.core is None or self.core.phase is not Phase.OVER:
            self._owner.later(STOP_GRACE_S, self.hurry)
