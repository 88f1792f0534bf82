"""Tasks that work beside their owner and end with it.

Two rules that are easily broken: when the caller that ends a task is cancelled itself, that comes through (`await task` within
`suppress(CancelledError)` would take it for the task's), and no task can keep its owner from ending. Why these are no scopes of
anyio and no `asyncio.TaskGroup`: docs/design/018-what-recurs-stands-once.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from agentmesh.edge.failures import EDGE_ERRORS

type Task = asyncio.Task[Any]

log = logging.getLogger("agentmesh.edge")

END_S = 10.0
"""How long a task that is cancelled may take to clean up before its owner goes on without it."""

_left: set[Task] = set()
"""Tasks that did not end: the loop alone would not keep them."""


class Background:
    """One task at a time that works beside its owner, until `close`."""

    __slots__ = ("_name", "_task")

    def __init__(self, name: str) -> None:
        """`name` is what its task is called, in what is logged of it too."""
        self._name = name
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether its task has begun and not ended."""
        return self._task is not None and not self._task.done()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let `work` run in a task; the one before has ended. What it raises is reported at once, for nobody else would look."""
        assert not self.running, f"{self._name} is running"
        self._task = asyncio.get_running_loop().create_task(work, name=self._name)
        self._task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Return when no task runs, without ending it."""
        while self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    async def close(self, within_s: float = END_S) -> None:
        """End the task, as `cancel_and_wait` does. Another one may begin."""
        task, self._task = self._task, None
        await _end((task,), within_s)

    def _ended(self, task: Task) -> None:
        if self._task is task:
            self._task = None
        _report(task)


async def cancel_and_wait(*tasks: Task | None, within_s: float = END_S, heed: bool = True) -> bool:
    """Cancel `tasks`, and return when they have ended. The running one is left out: a task may end what it belongs to.

    The caller's own cancellation is raised at once; the tasks are cancelled by then, and end by themselves. What a task raises
    while it is cancelled is reported; what one that had ended before has raised is left to its owner.

    Args:
        within_s: how long they may take to end, in seconds.
        heed: False where no error of theirs is of interest: those of what a user's code did, say.

    Returns:
        Whether all have ended within `within_s` seconds. One that has not is left behind, and logged.
    """
    ended, left = await _end(tasks, within_s)
    report = _report if heed else _pass_over
    for task in ended if heed else {task for task in tasks if task is not None and task.done()}:
        report(task)
    for task in left:
        task.add_done_callback(report)
    return not left


async def wait_for(event: asyncio.Event, timeout: float) -> None:
    """Wait for `event`, at most `timeout` seconds, and clear it."""
    if not event.is_set():
        loop = asyncio.get_running_loop()
        # Loops that look again every now and then wait here: `asyncio.timeout` would cancel and raise each time.
        timer = loop.call_later(timeout, event.set) if timeout > 0 else loop.call_soon(event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()
    event.clear()


async def first_of(event: asyncio.Event, *tasks: Task) -> None:
    """Return when `event` is set or one of `tasks` has ended. What that one has raised is left to its owner."""
    told = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((told, *tasks), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(told)


async def _end(tasks: Iterable[Task | None], within_s: float) -> tuple[set[Task], set[Task]]:
    current = asyncio.current_task()
    cancelled = {task for task in tasks if task is not None and task is not current and task.cancel()}
    if not cancelled:
        return set(), set()
    ended, left = await asyncio.wait(cancelled, timeout=within_s)
    for task in left:
        _left.add(task)
        task.add_done_callback(_left.discard)
        log.error("%s does not end when it is cancelled; going on without it", task.get_name())
    return ended, left


def _report(task: Task) -> None:
    """Tell of the error that `task` has ended with. What a call to the server raises while it is cancelled is of no interest."""
    error = None if task.cancelled() else task.exception()
    if task.cancelling() and isinstance(error, EDGE_ERRORS):
        _pass_over(task)
    elif error is not None:
        context = {"message": f"{task.get_name()} has failed", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)


def _pass_over(task: Task) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.debug("%s has failed while it was cancelled: %r", task.get_name(), task.exception())
