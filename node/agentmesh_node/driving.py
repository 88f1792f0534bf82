"""Carries an owner's inputs through the turn machine: one at a time, in order, and without a task where nothing must be awaited.

While a callback runs or a record is in flight, what arrives waits. The acknowledgement of a record goes on with its agent in the
very step in which it is read from the socket (`Transport.call`), so no task has to be woken between it and the caller's answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agentmesh.decisions import NONE
from agentmesh.errors import Fenced, StoreLost, Unavailable
from agentmesh.turn import step
from agentmesh.turn.values import Append, Call, Command, Committed, Core, Input, KillTurn, Phase, Raised, Returned
from agentmesh.wire import ErrorBody
from agentmesh_node.appending import Appender, Ending
from agentmesh_node.claiming import Lost
from agentmesh_node.services import Services

if TYPE_CHECKING:
    from agentmesh_node.owner import Owner

log = logging.getLogger("agentmesh.node")

STOP_GRACE_S = 5.0
"""How long a running callback may hold up a stop before it is cancelled."""

type Deed = Callable[[Owner, Any], None]


class Driver:
    """The loop of one owner."""

    def __init__(self, owner: Owner, services: Services, perform: Mapping[type, Deed]) -> None:
        """`perform` has the commands that are performed at once; the others are awaited."""
        self.core: Core | None = None
        self.appender = Appender(services, owner.name, committed=0)
        self.task: asyncio.Task[None] | None = None
        """What awaits something now."""
        self.busy = False
        """Whether an input is being handled."""
        self._owner = owner
        self._perform_now = perform
        self._now = services.now
        self._loop = asyncio.get_running_loop()
        self._title = f"owner {owner.name}"
        self._queue: deque[Input] = deque()
        self._calling = False
        self._overdue = False

    def feed(self, item: Input) -> None:
        """Take an input: at once, or behind what is being handled."""
        if self.busy or self.core is None:
            self._queue.append(item)
            return
        self.busy = True
        self._owner.stir()
        if self._queue:
            self._queue.append(item)
            item = self._queue.popleft()
        self._advance(item)

    def _advance(self, item: Input | None) -> None:
        """Handle `item`, and what waits behind it, as far as nothing must be awaited."""
        try:
            while item is not None:
                left = self._step(item)
                if left is not None:
                    if left:
                        self._await(self._perform(left))
                    return
                item = self._queue.popleft() if self._queue else None
        except Exception:
            log.exception("owner failed", extra={"agent": self._owner.name})
            self._handled(Lost("a defect", final=False))
            return
        self._handled(None)

    def _handled(self, lost: Lost | None) -> None:
        """Nothing is being handled any more."""
        self.busy = False
        if lost is not None:
            self._owner.end(lost)
        elif self.core is not None and self.core.phase is Phase.OVER and not self._queue:
            self._owner.end(None)

    def _step(self, item: Input) -> list[Command] | None:
        """One input: perform what can be performed at once.

        Returns: what must be awaited, with what follows it; None if there is nothing; an empty list while a record is on its way,
            whose end goes on by itself.
        """
        assert self.core is not None
        self.core, commands = step(self.core, item, self._now())
        for command in commands:
            perform = self._perform_now.get(type(command))
            if perform is None:
                # The first of its kind, so the first that is equal to it.
                return [] if command is commands[-1] and self._flies(command) else commands[commands.index(command) :]
            perform(self._owner, command)
        return None

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
        if isinstance(end, Committed):
            self._end_span(command)
            self._advance(end)
        else:
            self._await(self._settle(command, end))

    async def _settle(self, command: Append, end: Ending) -> bool:
        committed = await end()
        self._end_span(command)
        return await self._perform([], committed)

    def _end_span(self, command: Append) -> None:
        runner = self._owner.runner
        if command.turn is not None and runner is not None:
            runner.end_span(command.turn.error.code if command.turn.error else None)

    # --- what is awaited --------------------------------------------------------------------------------------------
    def _await(self, work: Coroutine[Any, Any, bool]) -> None:
        task = asyncio.Task(self._drive(work), loop=self._loop, name=self._title, eager_start=True)
        if not task.done():
            self.task = task

    async def _drive(self, work: Coroutine[Any, Any, bool]) -> None:
        """Do `work`, which says whether it leaves a record on its way."""
        lost: Lost | None = None
        try:
            if await work:
                return
        except Lost as error:
            lost = error
        except (Fenced, StoreLost, Unavailable) as error:
            lost = Lost.by(error)
        except asyncio.CancelledError:
            self.busy = False
            raise
        except Exception:
            log.exception("owner failed", extra={"agent": self._owner.name})
            lost = Lost("a defect", final=False)
        finally:
            self.task = None
        self._handled(lost)

    async def _perform(self, commands: list[Command], following: Input | None = None) -> bool:
        """Perform commands of which some are awaited, and what their ends, `following`, and the inputs that wait bring forth.

        Returns: whether a record is on its way at the end, whose end goes on by itself.
        """
        while True:
            for command in commands:
                if isinstance(command, Call):
                    following = await self._call(command)
                elif isinstance(command, Append):
                    assert self.core is not None
                    following = await self.appender.append(command, self.core)
                    self._end_span(command)
                elif isinstance(command, KillTurn):
                    await self._owner.kill_turn()
                else:
                    self._perform_now[type(command)](self._owner, command)
            if following is None and self._queue and not self._owner.closed:
                following = self._queue.popleft()
            if following is None:
                return False
            left = self._step(following)
            if left is not None and not left:
                return True
            commands, following = left or [], None

    async def _call(self, command: Call) -> Input:
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
