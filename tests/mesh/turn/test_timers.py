"""Timers, cancel, and what else changes the ledger while a turn runs: cases 231 to 236 and 245."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Halt, Idle, Prompt, Timer
from agentmesh.backend import Response
from agentmesh.records import CancelTimer, SetTimer
from agentmesh.turn.values import AskTimer, DropTimer, EffectsDone, GaveUp, Interrupt, Phase
from mesh.turn.agents import Chatty, Halting
from mesh.turn.harness import Plain, Rig, error


# --- timers ---------------------------------------------------------------------------------------------------------------
class Clock(Plain):
    """Events are calls: `["set", id, seconds, every]`, `["cancel", id]`. Notes the timers that come."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if response.text == "CANCEL":
            self.cancel_timer("t")
        if response.text == "REPLACE":
            self.notify_after(500, "new", id="t")
        return Idle(state)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        match event:
            case Timer():
                return Idle([*state, [event.id, event.event, event.due, event.missed]])
            case ["set", timer_id, seconds, every]:
                self.notify_after(seconds, "e", id=timer_id, every=every)
            case ["cancel", timer_id]:
                self.cancel_timer(timer_id)
        return Idle(state)


@pytest.mark.case(231)
def test_a_timer_comes_once_also_after_a_takeover() -> None:
    bench = Rig(Clock)
    bench.event(["set", "t", 60, None])
    assert bench.effects(SetTimer) == [SetTimer(id="t", due=1060.0, event="e")]
    origin = bench.core.ledger.timers["t"].origin
    bench.kill()
    bench.fire("t")
    bench.fire("t", origin)
    assert bench.state == [["t", "e", 1060.0, 0]] and bench.core.ledger.timers == {}


@pytest.mark.case(232)
def test_a_replaced_or_cancelled_timer_that_had_fired_is_not_delivered() -> None:
    bench = Rig(Clock)
    bench.event(["set", "t", 60, None])
    old = bench.core.ledger.timers["t"].origin
    bench.event(["set", "t", 90, None])
    bench.fire("t", old)
    assert bench.state == [] and bench.core.ledger.timers["t"].due == 1090.0
    new = bench.core.ledger.timers["t"].origin
    bench.event(["cancel", "t"])
    assert bench.core.ledger.timers == {} and bench.effects(CancelTimer) == [CancelTimer(id="t")]
    bench.fire("t", new)
    assert bench.state == []


@pytest.mark.case(232)
@pytest.mark.case(234)
@pytest.mark.parametrize("answer", ["CANCEL", "REPLACE", "NOTHING"])
def test_a_timer_cancelled_or_replaced_by_the_turn_in_which_it_fired_is_not_delivered(answer: str) -> None:
    bench = Rig(Clock)
    bench.event(["set", "t", 60, 60])
    bench.prompt("a")
    bench.fire("t")
    assert bench.state == [], "deferred like any event"
    bench.finish(answer)
    assert bench.state == ([["t", "e", 1060.0, 0]] if answer == "NOTHING" else [])
    due = {"CANCEL": None, "REPLACE": 1500.0, "NOTHING": 1120.0}[answer]
    assert [entry.due for entry in bench.core.ledger.timers.values()] == ([] if due is None else [due])


@pytest.mark.case(233)
def test_a_repeating_timer_keeps_its_rhythm_and_merges_what_was_missed() -> None:
    bench = Rig(Clock)
    bench.event(["set", "t", 10, 10])
    bench.now = 1010.5
    bench.fire("t")
    bench.kill()
    assert bench.core.ledger.timers["t"].due == 1020.0
    bench.now = 1047.0
    bench.fire("t")
    assert bench.state == [["t", "e", 1010.0, 0], ["t", "e", 1020.0, 2]]
    assert bench.core.ledger.timers["t"].due == 1050.0


@pytest.mark.case(234)
def test_a_timer_is_handled_while_halted() -> None:

    bench = Rig(type("HaltedClock", (Clock,), {"handle_response": Halting.handle_response}))
    bench.event(["set", "t", 10, None])
    bench.prompt("halt")
    bench.finish()
    assert bench.halted()
    bench.fire("t")
    assert bench.state[-1] == ["t", "e", 1010.0, 0]


@pytest.mark.case(236)
@pytest.mark.parametrize("in_turn", [False, True])
def test_timers_set_and_cancelled_from_outside(in_turn: bool) -> None:
    bench = Rig(Clock)
    if in_turn:
        bench.prompt("a")
    bench.feed(AskTimer(SetTimer(id="t", due=1060.0, event=1), "set"))
    assert bench.answers["set"]["set"] is True and "t" in bench.core.ledger.timers
    bench.feed(DropTimer("t", "drop"), DropTimer("t", "again"))
    assert bench.answers["drop"] == {"cancelled": True} and bench.answers["again"] == {"cancelled": False}
    bench.drain()
    assert bench.core.ledger.timers == {}


# --- cancel ---------------------------------------------------------------------------------------------------------------
@pytest.mark.case(245)
@pytest.mark.parametrize("landed", [False, True])
def test_cancel_in_mid_turn_takes_out_the_waiting_prompt_only(landed: bool) -> None:
    bench = Rig(Chatty)
    running, waiting, last = bench.prompt("a"), bench.prompt("b"), bench.prompt("c")
    assert bench.cancel(running, "c1") == {"cancelled": False}
    assert bench.cancel("99", "c2") == {"cancelled": False}
    bench.auto_commit = False
    assert bench.cancel(waiting, "c3") is None
    bench.auto_commit = True
    if landed:
        bench.kill(landed=True)
    else:
        bench.commit()
        assert bench.answers["c3"] == {"cancelled": True}
        bench.kill()
    assert bench.code(waiting) == "cancelled"
    bench.drain()
    assert (bench.answer(running), bench.answer(last)) == ("A", "C"), "the running prompt was lost with the cancelled one"
    assert bench.core.ledger.taken == {} and bench.core.ledger.positions == {"inbox": 3}


@pytest.mark.case(245)
def test_cancel_of_a_retry_that_waits() -> None:
    class Retrying(Chatty):
        def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
            return Prompt("again", state)

        def handle_event(self, event: Any, state: list[Any]) -> Any:

            return Halt(state)

    bench = Rig(Retrying)
    ref = bench.prompt("a")
    bench.event("halt")
    bench.fail()
    assert bench.cancel(ref) == {"cancelled": True}
    assert bench.code(ref) == "cancelled" and bench.core.ledger.next is None


# --- records in mid-turn ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("item", ["end", "interrupt", "watchdog", "cancel", "stop"])
def test_what_arrives_while_a_record_of_mid_turn_is_under_way_waits_for_it(item: str) -> None:
    bench = Rig()
    running, second, third = bench.prompt("a"), bench.prompt("b"), bench.prompt("c")
    bench.auto_commit = False
    bench.cancel(second)
    if item == "end":
        bench.finish()
    elif item == "cancel":
        assert bench.cancel(third, "c2") is None
    elif item == "interrupt":
        assert bench.interrupt() is None
    else:
        getattr(bench, item)()
    assert running not in bench.outcomes and bench.phase() is Phase.TURN
    bench.auto_commit = True
    bench.commit()
    bench.drain()
    codes = {"end": None, "cancel": None, "interrupt": "interrupted", "watchdog": "timeout", "stop": "stopped"}
    outcome = bench.outcomes[running]
    assert (outcome.error.code if outcome.error else None) == codes[item]
    assert bench.code(second) == "cancelled"
    assert (bench.code(third) if not bench.outcomes[third].ok else None) == {"cancel": "cancelled", "stop": "stopped"}.get(item)


def test_a_crash_after_a_record_of_mid_turn_keeps_that_record() -> None:
    class Crashing(Chatty):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            if response.text == "CRASH":
                raise RuntimeError("boom")
            return Idle(state)

    bench = Rig(Crashing, max_attempts=2)
    crash, second, third = bench.prompt("crash"), bench.prompt("b"), bench.prompt("c")
    bench.cancel(second)
    bench.feed(AskTimer(SetTimer(id="t", due=1060.0), "t"))
    bench.drain()
    assert bench.code(crash) == "failed" and bench.code(second) == "cancelled" and bench.outcomes[third].ok
    assert "t" in bench.core.ledger.timers
    assert bench.core.ledger.taken == {} and bench.core.ledger.positions["inbox"] == 3


@pytest.mark.case(67)
def test_two_interrupts_put_by_together_kill_one_turn() -> None:
    bench = Rig()
    running, second, third = bench.prompt("a"), bench.prompt("b"), bench.prompt("c")
    bench.auto_commit = False
    bench.cancel(second)
    bench.feed(Interrupt("i1"), Interrupt("i2"))
    bench.auto_commit = True
    bench.commit()
    assert bench.answers["i1"] == {"interrupted": True} and bench.answers["i2"] == {"interrupted": False}
    assert bench.code(running) == "interrupted"
    bench.finish()
    assert bench.answer(third) == "C", "the interrupt hit the turn behind the one that it meant"


# --- found by the model -------------------------------------------------------------------------------------------------
@pytest.mark.case(206)
@pytest.mark.parametrize("takeover", [False, True])
def test_a_repetition_whose_original_runs_or_waits_neither_expires_nor_is_cancelled(takeover: bool) -> None:
    """Found by `test_any_interleaving`: the sender heard two outcomes of one request."""
    bench = Rig()
    fields: dict[str, Any] = {"lane": "peer-inbox", "sender": "p", "origin": "1.5.0", "tag": "t", "deadline": 1010.0}
    running, copy = bench.prompt("a", **fields), bench.prompt("a", **fields)
    bench.tick(1010.0)
    assert bench.cancel(copy) == {"cancelled": False}
    assert bench.outcomes == {}
    if takeover:
        bench.kill()
        assert bench.code(running) == "expired"
    else:
        bench.finish()
        assert bench.answer(running) == "A"
    assert list(bench.outcomes) == [running] and len(bench.mails("p")) == 1


@pytest.mark.case(217)
def test_an_effect_that_was_done_is_not_given_up_any_more() -> None:
    bench = Rig(Chatty)
    bench.auto_done = False
    bench.prompt("a")
    bench.finish()
    (origin,) = bench.core.ledger.awaiting
    bench.feed(EffectsDone((origin,)), GaveUp(origin, error("not_found")))
    assert bench.state == ["A"] and origin in bench.core.ledger.awaiting
