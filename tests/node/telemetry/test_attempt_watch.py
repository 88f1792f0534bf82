"""An attempt that lasts says that it began; a short one does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentmesh_node.telemetry.attempt_watch import LASTS_S, LATE_S, AttemptWatch


class Clock:
    """Time that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, action))

    def go(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, action in due:
            action()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch(clock: Clock, told: list[Any]) -> AttemptWatch:
    return AttemptWatch(told.append, monotonic=lambda: clock.now, later=clock.later)


@pytest.mark.case(541)
def test_one_that_lasts_is_told_once_and_one_that_has_ended_is_not(clock: Clock) -> None:
    told: list[Any] = []
    watching = watch(clock, told)
    watching.watch(lambda: "lasts")  # type: ignore[arg-type,return-value]
    clock.go(LASTS_S / 2)
    watching.watch(lambda: None)
    watching.watch(lambda: "later")  # type: ignore[arg-type,return-value]
    assert not told and len(clock.timers) == 1, "one timer serves all"
    clock.go(LASTS_S / 2)
    assert told == ["lasts"]
    clock.go(LASTS_S / 2)
    clock.go(1.0)
    assert told == ["lasts", "later"] and not clock.timers


def test_a_process_that_stood_still_looks_once_more_what_has_come_meanwhile(clock: Clock) -> None:
    told: list[Any] = []
    runs = True
    watching = watch(clock, told)
    watching.watch(lambda: "frozen" if runs else None)  # type: ignore[arg-type,return-value]
    clock.go(LASTS_S + LATE_S + 1)
    runs = False
    clock.go(1.0)
    clock.go(1.0)
    assert not told and not clock.timers
