"""notify and deferral: cases 51 to 63."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Idle, Proceed, Prompt
from agentmesh.turn.dispatch import MAX_DRAIN
from agentmesh.turn.values import Arrived
from mesh.turn.agents import Halting, log_event
from mesh.turn.harness import Rig, agent


@pytest.mark.case(51)
def test_an_idle_agent_handles_an_event_at_once() -> None:
    bench = Rig(Halting)
    bench.event("note")
    assert bench.state == ["note"]
    bench.event("prompt:go")
    assert bench.running().prompt == "go"


@pytest.mark.case(52)
@pytest.mark.case(53)
@pytest.mark.case(54)
def test_events_of_a_turn_are_handled_after_it_in_order_and_lose_nothing() -> None:
    bench = Rig(agent(handle_event=log_event))
    bench.prompt("a")
    for n in range(5):
        bench.event(n)
    assert "handle_event" not in bench.calls
    bench.finish()
    assert bench.state == ["A", 0, 1, 2, 3, 4]


@pytest.mark.case(52)
@pytest.mark.parametrize("hook", ["pre_turn", "handle_response", "post_turn", "handle_event"])
def test_an_event_that_arrives_during_a_callback_waits(hook: str) -> None:
    bench = Rig(
        agent(
            pre_turn=lambda self, prompt, state: Proceed(prompt, state),
            post_turn=lambda self, outcome, ref, state: [*state, "post"],
            handle_event=log_event,
        ),
        hold=(hook,),
    )
    bench.prompt("a")
    if hook == "handle_event":
        bench.event("first")
    if hook != "pre_turn":
        bench.finish()
    assert bench.held[0].hook == hook
    bench.event("late")
    bench.hold.clear()
    bench.release()
    bench.drain()
    assert bench.state == ["A", "post", *(["first"] if hook == "handle_event" else []), "late"]


@pytest.mark.case(55)
@pytest.mark.case(56)
def test_a_prompt_of_a_deferred_event_runs_behind_the_chained_one() -> None:
    bench = Rig(Halting)
    bench.prompt("chain")
    bench.event("prompt:from event")
    bench.finish()
    bench.drain()
    assert bench.prompts == ["chain", "chained", "from event"]


@pytest.mark.case(57)
def test_a_deferred_event_halts_after_the_turn_whose_caller_is_answered() -> None:
    bench = Rig(Halting)
    ref = bench.prompt("a")
    bench.event("halt")
    bench.finish()
    assert bench.halted() and bench.answer(ref) == "A"


@pytest.mark.case(58)
def test_after_a_halt_in_the_drain_the_other_events_are_still_handled() -> None:
    bench = Rig(Halting)
    bench.prompt("a")
    bench.event("halt")
    bench.event("x")
    bench.event("y")
    bench.finish()
    assert bench.state == ["A", "event halt", "x", "y"]


@pytest.mark.case(59)
@pytest.mark.parametrize("end", ["fail", "interrupt", "watchdog"])
def test_events_are_handled_after_a_failed_turn_too(end: str) -> None:
    bench = Rig(agent(handle_event=log_event))
    bench.prompt("a")
    bench.event("e")
    getattr(bench, end)()
    assert bench.state == ["e"]


@pytest.mark.case(60)
def test_deferred_events_see_the_state_after_post_turn() -> None:
    seen: list[Any] = []

    def keep(self: Any, event: Any, state: list[Any]) -> Any:
        seen.append(list(state))
        return Idle(state)

    bench = Rig(agent(post_turn=lambda self, outcome, ref, state: [*state, "post"], handle_event=keep))
    bench.prompt("a")
    bench.event("e")
    bench.finish()
    assert seen == [["A", "post"]]


@pytest.mark.case(61)
def test_event_received_is_emitted_on_arrival() -> None:
    bench = Rig(agent(handle_event=log_event))
    bench.prompt("a")
    bench.event({"n": 1})
    assert [f["event"] for f in bench.facts("event_received")] == [{"n": 1}]
    assert "handle_event" not in bench.calls


@pytest.mark.case(62)
@pytest.mark.parametrize("in_turn", [False, True])
def test_a_raising_handle_event_keeps_the_state_and_later_events_run(in_turn: bool) -> None:
    def fussy(self: Any, event: Any, state: list[Any]) -> Any:
        state.append(event)
        self.notify("peer", event)
        if event == "bad":
            raise RuntimeError("boom")
        if event == "worse":
            return 7
        return Idle(state)

    bench = Rig(agent(handle_event=fussy))
    if in_turn:
        bench.prompt("a")
    for event in ("x", "bad", "worse", "y"):
        bench.event(event)
    if in_turn:
        bench.finish()
    assert bench.state == (["A"] if in_turn else []) + ["x", "y"]
    assert [m.event for m in bench.mails("peer")] == ["x", "y"], "a callback that failed sent something"
    assert bench.backoffs == []


@pytest.mark.case(63)
def test_without_an_override_events_are_accepted_and_ignored() -> None:
    bench = Rig()
    bench.event("e")
    bench.prompt("a")
    bench.event("f")
    bench.finish()
    assert bench.state == ["A"]
    assert bench.core.ledger.positions["notify"] == 3


def test_a_stream_of_events_cannot_keep_an_idle_agent_from_committing() -> None:
    bench = Rig(agent(handle_event=log_event))
    count = 2 * MAX_DRAIN + 3
    before = len(bench.journal)
    bench.feed(Arrived(tuple(bench.post("notify", event=n) for n in range(count))))
    assert bench.state == list(range(count))
    assert len(bench.journal) - before == 3


def test_events_that_arrive_while_deferred_ones_are_handled_do_not_hold_up_the_answer() -> None:
    bench = Rig(agent(handle_event=log_event), hold=("handle_event",))
    ref = bench.prompt("a")
    bench.event("deferred")
    bench.finish()
    bench.event("new")
    bench.release()
    assert bench.answer(ref) == "A"
    assert bench.state == ["A", "deferred"]
    bench.release()
    assert bench.state == ["A", "deferred", "new"]


def test_events_overtake_queued_prompts() -> None:
    bench = Rig(agent(handle_event=lambda self, event, state: Prompt(event, [*state, event])))
    bench.prompt("a")
    bench.prompt("b")
    bench.event("e")
    bench.finish()
    assert bench.state == ["A", "e"] and bench.running().prompt == "b"


@pytest.mark.case(51)
def test_null_is_an_event_like_any_other() -> None:
    bench = Rig(agent(handle_event=log_event))
    for event in (None, 1, None, 2):
        bench.event(event)
    assert bench.state == [None, 1, None, 2]
