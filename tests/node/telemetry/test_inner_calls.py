"""Model calls and tool runs of an attempt: their own ids while they run, told once, by their steps or by the turn's end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry import propagate

from agentmesh import semconv
from agentmesh.backend import Event
from agentmesh.ledger_entries import Inner
from agentmesh.steps import UnjournaledSteps
from agentmesh.trace.context import TraceContext, inner_span_id
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.inner_calls import CUT, MOST, InnerCalls, inner_of_step, take
from agentmesh_node.telemetry.tracing import Here, Tracing

CONTEXT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
TOOL = inner_span_id(CONTEXT.span_id, "execute_tool", "c1")


class Clock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        self.at += 1
        return self.at


class Noting(UnjournaledSteps):
    def __init__(self) -> None:
        super().__init__()
        self.inner: list[Inner | None] = []

    async def take(self, step: Any) -> None:
        self.inner.append(inner_of_step())
        await super().take(step)


def calls() -> InnerCalls:
    return InnerCalls(CONTEXT, Clock())


def events(*given: Event) -> InnerCalls:
    found = calls()
    for event in given:
        found.observe(event)
    return found


def test_a_tool_run_is_current_under_its_own_id_and_its_step_has_it() -> None:
    async def main() -> None:
        found, steps = calls(), Noting()
        entered = Tracing().enter(CONTEXT, {}, Here("coder", "Coder", found))
        with tracing.execute_tool("search", "c1", target="worker") as run:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            assert carrier["traceparent"].split("-")[2] == TOOL
            assert tracing.environment()["TRACEPARENT"] == carrier["traceparent"]
        assert [inner.id for inner in found.without_step] == [TOOL]
        await take(steps, {"step": 1}, run)
        assert steps.inner == [run.inner]
        assert run.inner is not None
        assert (run.inner.began, run.inner.ended) == (102.0, 103.0)
        assert run.inner.attributes[semconv.TRANSFER_TARGET] == "worker"
        assert found.without_step == ()
        await take(steps, {"step": 2}, None)
        assert steps.inner[1:] == [None]
        Tracing().leave(entered)

    asyncio.run(main())


def test_a_call_that_is_cut_off_says_so() -> None:
    found = calls()
    entered = Tracing().enter(CONTEXT, {}, Here("coder", "Coder", found))
    tracing.chat("anthropic", "m-1")
    with pytest.raises(asyncio.CancelledError), tracing.execute_tool("search", "c1", target=None):
        raise asyncio.CancelledError
    assert [(inner.op, inner.error) for inner in found.without_step] == [("chat", CUT), ("execute_tool", CUT)]
    Tracing().leave(entered)


def test_without_an_attempt_nothing_is_noted() -> None:
    async def main() -> None:
        call = tracing.chat("anthropic", "m-1")
        call.tokens("m-1", {"input_tokens": 1})
        call.failed("boom")
        call.end()
        with tracing.execute_tool("search", "c1", target=None) as run:
            assert (call.inner, run.inner, tracing.ended_call()) == (None, None, None)
        tracing.answered("openai", "m-1", {})
        steps = Noting()
        await take(steps, 1, run)
        assert steps.taken == (1,)

    asyncio.run(main())


def test_calls_that_a_backend_makes_itself_are_told_by_its_events() -> None:
    found = events(
        Event("usage", {"input_tokens": 5, "output_tokens": 2, "model": "m-1"}),
        Event("tool_use", {"id": "c1", "name": "Bash", "input": {"command": "secret"}}),
        Event("tool_result", {"id": "c1", "ok": False, "text": "secret"}),
        Event("tool_use", {"id": "c0", "name": "Old", "input": {}}, replayed=True),
        Event("usage", {"input_tokens": 9, "output_tokens": 5, "cache_read_input_tokens": 4, "model": "m-1"}),
        Event("usage", {"input_tokens": 9, "output_tokens": 5, "cache_read_input_tokens": 4, "model": "m-1", "cost_usd": 1}),
    )
    first, tool, second = found.without_step
    assert (tool.id, tool.name, tool.error) == (TOOL, "Bash", "error")
    assert (first.attributes[semconv.INPUT_TOKENS], second.attributes[semconv.INPUT_TOKENS]) == (5, 8)
    assert (second.op, second.attributes[semconv.OUTPUT_TOKENS]) == ("chat", 3)
    assert first.ended <= tool.began < tool.ended <= second.began + 1 <= second.ended
    assert "secret" not in repr(found.without_step)


def test_a_call_that_the_mesh_makes_is_not_told_by_its_events_again() -> None:
    found = events(Event("tool_use", {"id": "c1", "name": "search", "input": {}}))
    entered = Tracing().enter(CONTEXT, {}, Here("coder", "Coder", found))
    call = tracing.chat("anthropic", "m-1")
    call.end()
    with tracing.execute_tool("search", "c1", target=None) as run:
        found.observe(Event("tool_result", {"id": "c1", "ok": False, "text": ""}))
    found.observe(Event("usage", {"input_tokens": 5, "output_tokens": 2, "model": "m-1"}))
    assert list(found.without_step) == [call.inner, run.inner]
    assert run.inner is not None
    assert run.inner.error == ""
    call.kept()
    run.kept()
    found.observe(Event("tool_use", {"id": "c1", "name": "search", "input": {}}))  # it may come late
    found.observe(Event("tool_result", {"id": "c1", "ok": True, "text": ""}))
    assert len(found.without_step) == 0
    Tracing().leave(entered)


def test_the_newest_calls_are_told_of_very_many() -> None:
    found = calls()
    for number in range(MOST + 10):
        found.tool("search", f"c{number}").end()
    assert len(found.without_step) == MOST
    assert found.without_step[-1].attributes[semconv.TOOL_CALL_ID] == f"c{MOST + 9}"
