"""Calls that timed out, or whose outcome is unknown, and that the model makes again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agentmesh.agent import Agent
from agentmesh.tools import Done, NotDone, ToolCall, agent_tool, tool
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.tools import Call, Result
from agentmesh_node.tools.loop_steps import ModelAnswer
from agentmesh_node.tools.open_calls import OpenCalls, open_calls
from node.tools.test_kept_exchanges import kept, read, talk, wants
from node.tools.test_loop import DiedError, Dying, Lines, says
from support import run

fired: list[str] = []
"""The keys under which money was sent."""
asked: list[str] = []
"""The keys that were asked after."""
PAY = ModelAnswer(["model", "pay"], calls=(Call("1", "pay", {"to": "ann"}),), stop="tool_use", model="lines-1")


@pytest.fixture(autouse=True)
def _nothing_sent() -> None:
    fired.clear()
    asked.clear()


def slow(effect: Any = "once", *says: Any, hangs: int = 1) -> type[Agent[Any]]:
    """An agent whose `pay` sends the money and hangs then, the first so many times. `says`: what can be told of it, in turn."""
    told = list(says)

    async def tell(key: str) -> Any:
        asked.append(key)
        return told.pop(0) if len(told) > 1 else told[0]

    @tool(effect=effect, reconcile=tell if says else None, timeout_s=0.05)
    async def pay(to: str, call: ToolCall) -> str:
        fired.append(call.key)
        if len(fired) <= hangs:
            await asyncio.Event().wait()
        return f"paid {to}"

    return type("Slow", (Agent,), {"tools": (pay,)})


def results(history: Sequence[Any]) -> list[str]:
    """What the model was told of its calls."""
    return [text for message in history if message[0] == "results" for text in message[1:]]


# --- in one turn ------------------------------------------------------------------------------------------------------
@pytest.mark.case(584)
def test_a_once_tool_that_timed_out_is_asked_what_became_of_it() -> None:
    history, _ = talk(wants(("1", "ann")), says("done"), earlier=[], agent=slow("once", Done("paid after all")))
    assert results(history) == ["1=paid after all"]
    assert fired == asked == ["t1/1"]


@pytest.mark.case(583)
def test_a_once_call_that_is_made_again_after_it_timed_out_is_the_same_call() -> None:
    twice = [wants(("1", "ann")), wants(("2", "ann")), says("done")]
    history, _ = talk(*twice, earlier=[], agent=slow("once", None, Done("paid after all")))
    assert "Whether it took effect is unknown" in results(history)[0]
    assert results(history)[1:] == ["2=paid after all"]
    assert fired == ["t1/1"] and asked == ["t1/1", "t1/1"]


@pytest.mark.case(583)
def test_one_that_was_not_done_keeps_its_key_when_it_is_made_again() -> None:
    history, _ = talk(
        wants(("1", "ann")), wants(("2", "ann")), wants(("3", "ann")), says("done"), earlier=[], agent=slow("once", NotDone())
    )
    assert results(history)[0].endswith("was cancelled. It has not taken effect.")
    assert results(history)[1:] == ["2=paid ann", "3=paid ann"]
    assert fired == ["t1/1", "t1/1", "t1/3"], "what reached the receiver late after all is no second payment"


@pytest.mark.case(583)
def test_one_of_which_nobody_can_tell_is_not_fired_again_by_the_next_call() -> None:
    three = [wants(("1", "ann")), wants(("2", "ann")), wants(("3", "ann")), says("done")]
    history, _ = talk(*three, earlier=[], agent=slow())
    first, second, third = results(history)
    assert "unknown" in first and "was not made again" in second and third == "3=paid ann"
    assert fired == ["t1/1", "t1/3"], "a model that was told twice means another call"


@pytest.mark.case(583)
def test_an_idempotent_call_is_made_again_under_its_key() -> None:
    twice = [wants(("1", "ann")), wants(("2", "ann")), wants(("3", "bob")), says("done")]
    history, _ = talk(*twice, earlier=[], agent=slow("idempotent"))
    assert results(history)[1:] == ["2=paid ann", "3=paid bob"]
    assert fired == ["t1/1", "t1/1", "t1/3"]


def test_two_equal_calls_of_one_answer_are_two() -> None:
    history, _ = talk(wants(("1", "ann"), ("2", "ann")), says("done"), earlier=[], agent=slow())
    assert sorted(fired) == ["t1/1", "t1/2"] and len(results(history)) == 2


def test_other_arguments_are_another_call() -> None:
    talk(wants(("1", "ann")), wants(("2", "bob")), says("done"), earlier=[], agent=slow())
    assert fired == ["t1/1", "t1/2"]


# --- over takeovers and tries -------------------------------------------------------------------------------------------
@pytest.mark.case(583)
@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("committed", [True, False], ids=["after the step", "before the step"])
def test_whichever_owner_makes_it_again_it_is_the_same_call(at: int, committed: bool) -> None:
    answers, agent = (wants(("1", "ann")), wants(("2", "ann")), says("done")), slow("once", None)
    steps = Dying(at=at, committed=committed)
    history: list[Any] = []
    try:
        run(read(Lines(*answers), agent, history=history, taken=steps))
    except DiedError:
        history.clear()
        run(read(Lines(*answers), agent, history=history, taken=Dying(steps.taken)))
    assert history[-1] == ["model", "done"] and len(results(history)) == 2
    assert fired in ([], ["t/1"]), "nobody can tell what became of the first: it is not fired again"


@pytest.mark.case(583)
@pytest.mark.parametrize("error", ["timeout", "unknown_outcome"])
def test_another_try_of_the_request_goes_on_with_it(error: str) -> None:
    ended = {"step": "result", "result": {"id": "1", "name": "pay", "ok": False, "text": "?", "error": error}}
    taken = ({"step": "answer", "message": ["model", "x"], "calls": [{"id": "1", "name": "pay", "input": {"to": "ann"}}]},)
    earlier = kept((*taken, {"step": "intent", "id": "1", "key": "k1"}, ended), retried=True)
    history, _ = talk(wants(("7", "ann")), wants(("8", "ann")), says("done"), earlier=[earlier], agent=slow("once", NotDone()))
    assert fired[0] == "k1" and asked[0] == "k1"
    assert history[-1] == ["model", "done"]


class Asking(Dying):
    """Steps of a turn whose questions time out."""

    async def ask(self, wait: str, agent: str, prompt: str, **how: Any) -> Outcome:
        return Outcome(agent=agent, ref="", ok=False, error=ErrorBody(code="timeout", message="no answer"))


def test_a_question_to_an_agent_that_is_asked_again_is_another() -> None:
    agent = type("Asker", (Agent,), {"tools": (agent_tool("helper", timeout_s=0.01),)})
    (name,) = [item.spec.name for item in (agent_tool("helper"),)]
    calls = [ModelAnswer(["model", "x"], calls=(Call(id, name, {"prompt": "p"}),), stop="tool_use") for id in ("1", "2")]
    steps = Asking()
    history: list[Any] = []
    run(read(Lines(*calls, says("done")), agent, history=history, taken=steps))
    assert [text[:2] for text in results(history)] == ["1=", "2="]
    assert "intent" not in {step["step"] for step in steps.taken}


# --- by itself --------------------------------------------------------------------------------------------------------
def end(error: str | None) -> Result:
    return Result("1", "pay", error is None, "", error)


def test_what_is_open() -> None:
    calls, call = OpenCalls(), Call("1", "pay", {"to": "ann"})
    for error in (None, "raised", "bad_input", "budget_exceeded"):
        calls.ended(call, "k", end(error))
        calls.next_answer()
        assert calls.meet(call) is None
    calls.ended(call, "k1", end("timeout"))
    assert calls.meet(call) is None, "the model has not been told"
    calls.next_answer()
    for _ in range(3):  # each time it was made
        found = calls.meet(Call("9", "pay", {"to": "ann"}))
        assert found is not None and found.key == "k1" and calls.meet(call) is None
        calls.ended(call, "k1", end("timeout"))
        calls.next_answer()
    calls.gone_on_with(("k1",))
    calls.ended(call, "k1", end("unknown_outcome"))
    calls.next_answer()
    assert calls.meet(call) is None, "the model was told twice"


@pytest.mark.parametrize("backend", ["claude", "codex"])
def test_intents_and_results_of_earlier_owners_tell_what_is_open(backend: str) -> None:
    def intent(id: str, key: str) -> dict[str, Any]:
        named = {"id": id, "name": "pay", "input": {"to": "ann"}}
        return {"step": "intent", **named, "key": key} if backend == "claude" else {"step": "intent", "call": named, "key": key}

    def ended(id: str, error: str | None) -> dict[str, Any]:
        kind = "result" if backend == "claude" else "ran"
        return {"step": kind, "result": {"id": id, "name": "pay", "ok": error is None, "text": "", "error": error}}

    def left(*taken: dict[str, Any]) -> list[str]:
        keys = frozenset(step["key"] for step in taken if "key" in step)
        return [one.key for one in open_calls((), taken, "t1", keys)]

    assert left(intent("1", "k1")) == [], "its owner goes on with that one itself"
    assert left(intent("1", "k1"), ended("1", "timeout")) == ["k1"]
    assert left(intent("1", "k1"), ended("1", "unknown_outcome")) == ["k1"]
    assert left(intent("1", "k1"), ended("1", "timeout"), intent("2", "k1")) == []
    assert left(intent("1", "k1"), ended("1", "timeout"), intent("2", "k1"), ended("2", "unknown_outcome")) == []
    assert left(intent("1", "k1"), ended("1", "timeout"), intent("2", "k1"), ended("2", "timeout")) == ["k1"]
    assert left(intent("1", "k1"), ended("1", None)) == []
