"""Copies of this process, made by fork: a snapshot of a simulated world, and of all that led to it.

The simulation is one thread in one event loop, so a copy goes on exactly as this process would have gone on. Each copy takes a
turning of its own, reports one value, and vanishes without running anything that other code has registered for the end.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any


class CopyFailed(Exception):
    """A copy ended without a value. The text is its traceback, as far as it had one."""


class Forks[K, V]:
    """The copies of one process. Keys name them, values are what they report."""

    def __init__(self, jobs: int) -> None:
        """`jobs`: how many processes run at once, the original included."""
        self._jobs = jobs
        self._running: deque[tuple[K, int, int]] = deque()
        self._reported: list[tuple[K, V | CopyFailed]] = []
        self._pipe: int | None = None
        """In a copy: where it writes its value."""

    def fork(self, key: K) -> bool:
        """Make a copy, inside a coroutine. True in the copy, False in the original, which waits while too many run.

        A copy makes no copies: in it this is always False.
        """
        if self._pipe is not None:
            return False
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
            self._running.append((key, child, reading))
            while len(self._running) >= self._jobs:
                self._await_oldest()
            return False
        os.close(reading)
        self._pipe = writing
        asyncio._set_running_loop(loop)  # a fork resets it, since most loops share their selector with the original
        return True

    def run(self, work: Callable[[], V]) -> V:
        """What `work`, which makes copies of itself by `fork`, returns in the original. A copy reports it and ends."""
        try:
            value: V | CopyFailed = work()
        except BaseException:
            if self._pipe is None:
                raise
            value = CopyFailed(traceback.format_exc())
        if self._pipe is not None:
            self._report(self._pipe, value)
        assert not isinstance(value, CopyFailed)
        return value

    def leave(self, value: V) -> None:
        """In a copy: report `value` and vanish, without the clean-up behind it. In the original: nothing."""
        if self._pipe is not None:
            self._report(self._pipe, value)

    def reported(self) -> list[tuple[K, V | CopyFailed]]:
        """What each copy has reported, in the order in which they were made."""
        while self._running:
            self._await_oldest()
        return self._reported

    def _await_oldest(self) -> None:
        key, child, reading = self._running.popleft()
        with os.fdopen(reading, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(child, 0)
        self._reported.append((key, _loaded(data, status)))

    def _report(self, pipe: int, value: Any) -> None:
        try:
            with os.fdopen(pipe, "wb") as writer:
                pickle.dump(value, writer)
        finally:
            os._exit(0)


def _loaded(data: bytes, status: int) -> Any:
    try:
        return pickle.loads(data)
    except (EOFError, pickle.UnpicklingError):
        return CopyFailed(f"it ended with {os.waitstatus_to_exitcode(status)} and reported nothing")
