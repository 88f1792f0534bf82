"""Running user coroutines so that code that blocks the loop is reported by name.

An `async` callback runs on the node's loop, as do all other agents. The time from each of its suspensions to the next is measured
here: one over the limit is reported with agent, callback and duration.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from agentmesh.edge.clock import SYSTEM

BLOCK_LIMIT_S = 0.1
"""Longest time without a suspension that is not reported, in seconds."""

type Report = Callable[[str, float], None]


@types.coroutine
def timed(
    awaitable: Awaitable[Any], what: str, report: Report, monotonic: Callable[[], float] = SYSTEM.monotonic
) -> Generator[Any, Any, Any]:
    """Await `awaitable`; call `report(what, seconds)` whenever it runs longer than the limit without a suspension."""
    steps = awaitable.__await__()
    value: Any = None
    error: BaseException | None = None
    while True:
        began = monotonic()
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
            spent = monotonic() - began
            if spent > BLOCK_LIMIT_S:
                report(what, spent)
        try:
            value, error = (yield waiting_for), None
        except BaseException as caught:  # noqa: BLE001 - thrown into the awaitable, cancellation included
            error = caught
