"""An attempt in which a backend's turn runs, and what is told of the calls in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh.records import Inner
from agentmesh.steps import UnjournaledSteps
from agentmesh.trace.context import TraceContext
from agentmesh_node.telemetry.inner_calls import InnerCalls, inner_of_step
from agentmesh_node.telemetry.tracing import Here, Tracing

CONTEXT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


class Attempted:
    """The calls of one attempt."""

    def __init__(self) -> None:
        self.calls = InnerCalls(CONTEXT, lambda: 1.0)
        self.of_steps: list[Inner] = []

    def told(self, events: Iterable[Event]) -> set[tuple[str, str, str]]:
        """Operation, name and error of all calls, each told once. `events` are the turn's, as a node watches them."""
        for event in events:
            self.calls.observe(event)
        inner = [*self.of_steps, *self.calls.without_step]
        assert len({one.id for one in inner}) == len(inner)
        return {(one.op, one.name, one.error) for one in inner}


@contextmanager
def attempted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempted]:
    """Turns that run in this block run in an attempt."""
    found = Attempted()
    take = UnjournaledSteps.take

    async def noting(self: UnjournaledSteps, step: Any) -> None:
        inner = inner_of_step()
        if inner is not None:
            found.of_steps.append(inner)
        await take(self, step)

    monkeypatch.setattr(UnjournaledSteps, "take", noting)
    entered = Tracing().enter(CONTEXT, {}, Here("coder", "Coder", found.calls))
    try:
        yield found
    finally:
        Tracing().leave(entered)
