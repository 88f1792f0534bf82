"""Ids that a provider repeats, and text that it cannot encode: the loop takes both in its stride, also over a takeover."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentmesh.agent import Agent
from agentmesh.backend import Event
from agentmesh.steps import UnjournaledSteps
from agentmesh.tools import tool
from agentmesh_node.tools import Call
from agentmesh_node.tools.loop_steps import ModelAnswer
from node.tools.test_loop import DiedError, Dying, Lines, loop, ran, read, says, wants
from support import run


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


# --- ids that a provider repeats --------------------------------------------------------------------------------------
REPEATED = (wants(("1", "look"), ("1", "pay")), wants(("1", "look"), ("", "pay"), ("", "look")), says("bought"))


def told_ids(events: list[Event], kind: str) -> list[str]:
    return [event.data["id"] for event in events if event.kind == kind]


def test_calls_whose_ids_repeat_or_are_empty_are_calls_of_their_own() -> None:
    model, history = Lines(*REPEATED), list[Any]()
    events = run(read(loop(model), history))
    assert ran == {"look": 3, "pay": 2}
    assert len(set(told_ids(events, "tool_use"))) == 5
    assert sorted(told_ids(events, "tool_use")) == sorted(told_ids(events, "tool_result"))
    assert history[2] == ["results", "1=seen 1", "1=paid"], "the model gets its own ids back, in order"
    assert history[4] == ["results", "1=seen 2", "=paid", "=seen 3"]


@pytest.mark.parametrize("at", range(9))
def test_a_takeover_does_not_mix_up_calls_whose_ids_repeat(at: int) -> None:
    whole: list[Any] = []
    run(read(loop(Lines(*REPEATED)), whole))
    ran.clear()
    first, history = Dying(at=at), list[Any]()
    with pytest.raises(DiedError):
        run(read(loop(Lines(*REPEATED)), [], first))
    run(read(loop(Lines(*REPEATED)), history, Dying(first.taken)))
    assert ran["pay"] <= 2
    assert [message[0] for message in history] == [message[0] for message in whole]
    if at in (0, 3, 4, 8):
        assert ran == {"look": 3, "pay": 2}, "every result that was committed is used, and for its own call"


def test_a_journal_from_before_ids_were_distinct_is_read_in_the_order_of_its_results() -> None:
    old = [
        {"step": "answer", "message": ["model", "look:1"], "calls": [{"id": "1", "name": "look", "input": {}}]},
        {"step": "result", "result": {"id": "1", "name": "look", "ok": True, "text": "old 1"}},
        {"step": "answer", "message": ["model", "pay:1"], "calls": [{"id": "1", "name": "pay", "input": {}}]},
        {"step": "intent", "id": "1"},
        {"step": "result", "result": {"id": "1", "name": "pay", "ok": True, "text": "old 2"}},
        {"step": "answer", "message": ["model", "pay:1"], "calls": [{"id": "1", "name": "pay", "input": {}}]},
        {"step": "intent", "id": "1"},
    ]
    history: list[Any] = []
    answers = (wants(("1", "look")), wants(("1", "pay")), wants(("1", "pay")), says("bought"))
    run(read(loop(Lines(*answers)), history, Dying(old)))
    assert history[2] == ["results", "1=old 1"]
    assert history[4] == ["results", "1=old 2"]
    assert "unknown" in history[6][1], "the third call may have been fired: it is not made again"
    assert ran == {}


# --- text that UTF-8 cannot hold --------------------------------------------------------------------------------------
@pytest.mark.case(400)
def test_an_answer_with_lone_surrogates_goes_on_as_valid_text_and_a_call_with_one_is_not_made() -> None:
    made = []

    @tool
    async def echo(text: str) -> str:
        made.append(text)
        return text

    class Echoing(Agent[Any]):
        tools = (echo,)

    calls = (Call("1", "echo", {"text": "\ud83d\ude00\udfffz"}), Call("2", "echo", {"text": "\ud83d\ude00z"}))
    odd = ModelAnswer(["model", "a\ud800"], "a\ud800", calls=calls, stop="tool_use")
    history: list[Any] = []
    steps = UnjournaledSteps(key="t")
    events = run(read(loop(Lines(odd, says("done")), Echoing), history, steps))
    assert events[-1].kind == "result"
    assert history[1] == ["model", "a\ufffd"]
    assert history[2][1].startswith("1=This call was not made")
    assert history[2][2] == "2=\U0001f600z"
    assert made == ["\U0001f600z"]
    msgspec.json.encode(history)
    msgspec.json.encode(list(steps.taken))
