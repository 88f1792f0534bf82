"""An event loop whose clock is a number, and processes that live in it.

Nothing here waits: when no callback is ready, the clock jumps to the next timer. One thread, no sockets, so the order of
everything follows from the program and its random seed.

A *process* is whatever runs in a context that bears its mark: tasks, timers and callbacks inherit it. A frozen one has its
callbacks put aside, as SIGSTOP does it; those of a dead one are dropped, so it vanishes in mid-step, as with SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from heapq import heapify, heappop, heappush
from typing import Any

_NEAR_S = 2.0
"""Timers that are due later are not sorted yet: most bound a request, and are cancelled long before."""
MAX_STEPS = 2_000_000
"""Callbacks of one run: more means that something spins."""
_ROUNDS = 8
"""How often what still runs is cancelled in the end: clean-up waits for other clean-up."""

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("sim_process", default=None)


def process_name() -> str:
    """The process in which this is called."""
    process = _process.get()
    return "" if process is None else process.name


class Deadlock(Exception):
    """Nothing is ready and no timer is set: whatever is awaited never comes."""


class Process:
    """Callbacks that live and die together."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self.parked: deque[_Handle] = deque()
        self._loop = loop
        loop.processes.append(self)
        self.context = copy_context()
        self.context.run(_process.set, self)

    def spawn[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this process."""
        return self._loop.create_task(work, name=self.name, context=self.context.copy())

    def freeze(self) -> None:
        """Halt. What becomes due waits for `thaw`; the clock goes on."""
        self.frozen = True

    def thaw(self) -> None:
        """Go on with what has become due meanwhile, in that order."""
        self.frozen = False
        self._loop.take(self.parked)
        self.parked = deque()

    def kill(self) -> None:
        """Vanish. Nothing of it runs any more."""
        self.dead = True
        self._loop.bury(self)


def current_process() -> Process | None:
    """The process that runs now; None for the world itself."""
    return _process.get()


class _Future(asyncio.Future[Any]):
    """Sets of futures are iterated in an order that must not depend on memory addresses."""

    __slots__ = ("number",)
    number: int

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Task(asyncio.Task[Any]):
    """As `_Future`."""

    def __init__(self, *args: Any, loop: SimLoop, **kwargs: Any) -> None:
        self._number = next(loop.numbers)
        loop.tasks.append(weakref.ref(self))
        super().__init__(*args, loop=loop, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Handle(asyncio.Handle):
    """As the one of asyncio, made and cancelled without a thought of its debug mode: a run makes some ten thousand."""

    __slots__ = ()

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None) -> None:
        self._context = copy_context() if context is None else context
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def cancel(self) -> None:
        self._callback = None
        self._args = ()

    def cancelled(self) -> bool:
        return self._callback is None

    _cancelled = property(cancelled)

    def __repr__(self) -> str:
        return f"<{self._callback!r} of {self._args!r}>"


class _TimerHandle(_Handle, asyncio.TimerHandle):
    """As `_Handle`."""

    __slots__ = ()

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._callback = callback
        self._args = args
        self._when = when


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `time` begins at 0."""

    _ready: deque[_Handle]

    def __init__(self) -> None:
        super().__init__()
        self._timers: list[tuple[float, int, _TimerHandle]] = []
        """A heap. Tuples are compared by the interpreter itself, handles by a method: that alone is a tenth of a run."""
        self._far: list[tuple[float, int, _TimerHandle]] = []
        """Those that are due at `_horizon` or later, in no order."""
        self._horizon = _NEAR_S
        self._timer_count = 0
        self.now = 0.0
        self.steps = 0
        self.processes: list[Process] = []
        self.numbers = itertools.count(1)
        self.tasks: list[weakref.ref[asyncio.Task[Any]]] = []
        """All that were ever made, of this loop alone: asyncio's own set holds what earlier runs have left behind, too."""
        self._dead: list[asyncio.Task[Any]] = []
        self.defects: list[str] = []
        """What callbacks and forgotten tasks have raised."""
        self.set_exception_handler(self._note)
        self.set_task_factory(_make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future.number = next(self.numbers)
        return future

    def bury(self, process: Process) -> None:
        """Keep the tasks of a dead process: to collect them would run what they have in `finally`."""
        self._dead += [task for task in self._pending() if task.get_context().get(_process) is process]

    def _pending(self) -> list[asyncio.Task[Any]]:
        tasks = [task for known in self.tasks if (task := known()) is not None and not task.done()]
        self.tasks = [weakref.ref(task) for task in tasks]
        return tasks

    def take(self, handles: deque[_Handle]) -> None:
        """Run what was put aside, behind what is ready."""
        self._ready.extend(handles)

    def call_soon[*Ts](
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # there is one thread

    def call_at[*Ts](
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = _TimerHandle(when, callback, args, context)
        self._timer_count += 1
        if when < self._horizon:
            heappush(self._timers, (when, self._timer_count, handle))
        else:
            self._far.append((when, self._timer_count, handle))
        return handle

    def call_later[*Ts](
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        when = self.now + delay  # as `call_at`: half of all callbacks come from here
        handle = _TimerHandle(when, callback, args, context)
        self._timer_count += 1
        if when < self._horizon:
            heappush(self._timers, (when, self._timer_count, handle))
        else:
            self._far.append((when, self._timer_count, handle))
        return handle

    def run_in_executor[*Ts, T](self, executor: object, function: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Call `function` at once: a thread would end whenever it likes."""
        future = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            future.set_exception(error)
        return future

    def call_next(self, process: Process, callback: Callable[..., object], *args: object) -> None:
        """Have `process` call `callback` as soon as it can. At once, if nothing else is ready: as `call_soon` would have it."""
        if self._ready or process.frozen or process.dead:
            self.call_soon(callback, *args, context=process.context)
        else:
            process.context.run(callback, *args)

    def _run_once(self) -> None:
        """All that becomes due, until the loop is told to stop."""
        ready, timers = self._ready, self._timers
        while True:
            if ready or self._stopping:  # type: ignore[attr-defined]
                self._run_round()
            else:
                self._run_next_timer(timers)
            if self.steps > MAX_STEPS:
                raise Deadlock(f"{MAX_STEPS} steps: something spins")
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _run_next_timer(self, timers: list[tuple[float, int, _TimerHandle]]) -> None:
        """Nothing is ready: the time of the next timer comes at once. Nearly always it is the only one of that time."""
        while timers and timers[0][2]._callback is None:  # it was cancelled
            heappop(timers)
        if not timers:
            self._look_farther()
            return
        when, _, handle = heappop(timers)
        self.now = max(self.now, when)
        if timers and timers[0][0] <= self.now:
            self._ready.append(handle)
        else:
            self._call(handle)

    def _look_farther(self) -> None:
        """All timers before the horizon are over: sort the next ones in."""
        self._far = [timer for timer in self._far if timer[2]._callback is not None]
        if not self._far:
            raise Deadlock("nothing is ready and no timer is set")
        self._horizon = min(self._far)[0] + _NEAR_S
        near = [timer for timer in self._far if timer[0] < self._horizon]
        self._far = [timer for timer in self._far if timer[0] >= self._horizon]
        heapify(near)
        self._timers[:] = near

    def _run_round(self) -> None:
        """All that is ready, and the timers that are due. What becomes ready meanwhile belongs to the next round."""
        ready, timers = self._ready, self._timers
        while timers and timers[0][0] <= self.now:
            ready.append(heappop(timers)[2])
        for _ in range(len(ready)):
            self._call(ready.popleft())

    def _call(self, handle: _Handle) -> None:
        if handle._callback is None:
            return  # it was cancelled
        self.steps += 1
        context = handle._context
        process = context.get(_process)
        if process is not None and (process.frozen or process.dead):
            process.parked.append(handle)  # of a dead one it is kept for `finish`: a task whose wake-up is lost cannot end
            return
        try:
            context.run(handle._callback, *handle._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio has it: whatever a callback raises is reported
            self.call_exception_handler({"message": f"Exception in callback {handle!r}", "exception": error})

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.defects.append(f"{context.get('message')}: {error!r}" if error is not None else str(context.get("message")))

    # What BaseEventLoop leaves to loops that have sockets.
    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def finish(self) -> None:
        """Cancel all that still runs, the tasks of dead and frozen processes too, and close. What fails now is no defect."""
        self.set_exception_handler(lambda *_: None)
        for _, _, handle in (*self._timers, *self._far):
            if handle._context.get(_process) is not None:
                handle.cancel()
        for process in self.processes:
            process.dead = False
            process.thaw()
        for _ in range(_ROUNDS):  # let every task begin: one that never did would leave its coroutine unused
            self.run_until_complete(asyncio.sleep(0))
        for _ in range(_ROUNDS):
            tasks = sorted(self._pending(), key=hash)
            for task in tasks:
                task.cancel()
            if not tasks:
                break
            self.run_until_complete(asyncio.wait(tasks, timeout=10.0))
        self._dead.clear()
        self.close()


def _make_task(loop: SimLoop, work: Coroutine[Any, Any, Any], **kwargs: Any) -> asyncio.Task[Any]:
    return _Task(work, loop=loop, **kwargs)


def run_sim[T](main: Callable[[SimLoop], Coroutine[Any, Any, T]], *, collect: bool = True) -> T:
    """Run `main` to its end on a loop of its own; every other task is cancelled then.

    `collect`: free what the run leaves behind. A process that ends after some runs need not: that is a tenth of each.
    """
    loop = SimLoop()
    previous = asyncio._get_running_loop()
    assert previous is None
    plain_task = asyncio.Task
    asyncio.Task = _Task  # type: ignore[misc, assignment]  # for those that are made eagerly, past the loop's factory
    gc.disable()  # or what is collected, and with it what is run in `finally`, would depend on the past of this interpreter
    if collect:
        gc.freeze()  # what was there before need not be looked through: beside a test suite that is most of it
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.finish()
        asyncio.Task = plain_task  # type: ignore[misc]
        if collect:
            gc.enable()
            gc.collect()
            gc.unfreeze()
