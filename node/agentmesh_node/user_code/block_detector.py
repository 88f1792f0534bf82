"""Driving user coroutines so that a step that holds the loop can be named.

An `async` callback runs on the node's loop, between all other agents. Each of its steps, from one suspension to the next, is
timed here: a step over the limit is reported with agent, callback and duration, whatever it is blocked by.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator
from time import perf_counter
from typing import Any

BLOCK_LIMIT_S = 0.1
"""Longest step of a callback that goes unreported, in seconds."""

type Report = Callable[[str, float], None]


@types.coroutine
def timed(awaitable: Awaitable[Any], what: str, report: Report) -> Generator[Any, Any, Any]:
    """Await `awaitable`; call `report(what, seconds)` after each of its steps that takes longer than the limit."""
    steps = awaitable.__await__()
    value: Any = None
    error: BaseException | None = None
    while True:
        began = perf_counter()
        try:
            if error is not None:
                waiting_for = steps.throw(error)
            elif value is not None:
                waiting_for = steps.send(value)
            else:
                waiting_for = next(steps)
        except StopIteration as stop:
            return stop.value
        finally:
            spent = perf_counter() - began
            if spent > BLOCK_LIMIT_S:
                report(what, spent)
        try:
            value, error = (yield waiting_for), None
        except BaseException as caught:  # noqa: BLE001 - handed on into the awaitable, cancellation included
            error = caught
