"""Ending a request ends what was asked on its behalf: the side of the agent that was asked (docs/architecture.md#withdrawals)."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Proceed, Prompt
from agentmesh.registry_values import Restart
from agentmesh.turn.values import Arrived, Cancel, Phase, Tick
from agentmesh.turn.withdrawal import open_ref
from mesh.turn.harness import agent
from mesh.turn.stepping import Stepping
from mesh.turn.withdrawing import Relay, asked, ended, origin_to, withdraw, withdrawn


# --- what is withdrawn ---------------------------------------------------------------------------------------------------
@pytest.mark.case(355)
def test_a_withdrawn_prompt_that_waits_gets_no_turn() -> None:
    bench = Stepping()
    first = bench.prompt("runs")
    second, third = asked(bench, "1.9.0"), asked(bench, "1.9.1", "other")
    mail = withdraw(bench, "1.9.0")
    assert bench.code(second) == "cancelled" and bench.running().prompt == "runs"
    assert bench.core.ledger.positions["peer-answer"] == mail.seq
    bench.finish()
    bench.finish()
    assert (bench.answer(first), bench.answer(third)) == ("RUNS", "OTHER") and bench.prompts == ["runs", "other"]
    ended(bench)


@pytest.mark.case(355)
def test_prompts_that_are_withdrawn_each_have_their_outcome_though_one_behind_them_went_first() -> None:
    bench = Stepping()
    bench.prompt("runs")
    first, second, last = asked(bench, "1.9.0"), asked(bench, "1.9.1"), asked(bench, "1.9.2")
    withdraw(bench, "1.9.2")
    assert bench.code(last) == "cancelled"
    mails = tuple(withdraw(bench, origin, deliver=False) for origin in ("1.9.0", "1.9.1"))
    bench.feed(Arrived(mails))
    assert (bench.code(first), bench.code(second)) == ("cancelled", "cancelled")
    bench.finish()
    ended(bench)


@pytest.mark.case(355)
def test_a_withdrawn_turn_is_killed_and_its_outcome_says_what_it_cost() -> None:
    bench = Stepping()
    ref = asked(bench, "1.9.0")
    mail = withdraw(bench, "1.9.0", deliver=False)
    bench.feed(Arrived((mail,), {"input_tokens": 3}))
    assert bench.code(ref) == "cancelled" and bench.outcomes[ref].usage == {"input_tokens": 3}
    (back,) = [e for e in bench.mails("boss") if e.outcome is not None]
    assert back.lane == "peer-answer" and back.tag == "1.9.0" and back.outcome == bench.outcomes[ref]
    assert bench.core.ledger.positions["peer-answer"] == mail.seq
    assert bench.phase() is Phase.IDLE
    ended(bench)


@pytest.mark.case(355)
@pytest.mark.parametrize("origin", ["1.9.0", "1.8.0"])
def test_a_withdrawn_request_that_is_open_is_closed(origin: str) -> None:
    bench = Stepping(Relay)
    ref = asked(bench, "1.9.0")
    bench.finish()
    first = origin_to(bench, "first")
    withdraw(bench, origin)
    if origin == "1.8.0":
        assert ref in bench.core.ledger.deferred and withdrawn(bench) == {}
        return
    assert bench.code(ref) == "cancelled" and bench.core.ledger.deferred == {}
    assert withdrawn(bench)["first"] == first, "which withdraws further"


@pytest.mark.case(355)
def test_a_withdrawn_request_that_is_to_be_tried_again_is_not() -> None:
    bench = Stepping(agent(handle_error=lambda self, ref, error, state: Prompt("again", state)))
    ref = asked(bench, "1.9.0")
    bench.auto_commit = False
    bench.fail()
    withdraw(bench, "1.9.0")
    assert ref not in bench.outcomes
    bench.auto_commit = True
    bench.commit()
    assert bench.code(ref) == "cancelled" and bench.prompts == ["work"] and bench.phase() is Phase.IDLE
    ended(bench)


@pytest.mark.case(356)
@pytest.mark.parametrize("when", ["before", "after", "twice", "strange"])
def test_a_withdrawal_that_comes_too_late_or_twice_or_from_another_does_no_harm(when: str) -> None:
    bench = Stepping()
    if when == "before":
        withdraw(bench, "1.9.0")  # of a request that was never delivered
    ref = asked(bench, "1.9.0")
    match when:
        case "after":
            bench.finish()
            withdraw(bench, "1.9.0")
        case "twice":
            withdraw(bench, "1.9.0")
            withdraw(bench, "1.9.0")
        case "strange":
            withdraw(bench, "1.9.0", sender="stranger")
            assert bench.phase() is Phase.TURN
            bench.finish()
        case "before":
            bench.finish()
    assert bench.outcomes[ref].ok == (when != "twice") and len(bench.mails("boss")) == 1
    ended(bench)


@pytest.mark.case(357)
def test_the_next_owner_begins_no_call_of_what_was_withdrawn() -> None:
    bench = Stepping()
    ref = asked(bench, "1.9.0")
    bench.take("a step")
    bench.ask("w1")
    withdraw(bench, "1.9.0", deliver=False)
    bench.kill()
    assert bench.code(ref) == "cancelled" and bench.prompts == ["work"]
    assert withdrawn(bench) == {"helper": bench.request("w1")[0]}, "what its first try had asked is withdrawn, too"


@pytest.mark.case(357)
def test_no_call_begins_for_a_request_that_is_withdrawn_during_pre_turn() -> None:
    bench = Stepping(agent(pre_turn=lambda self, prompt, state: Proceed(prompt, state)), hold=("pre_turn",))
    ref = asked(bench, "1.9.0")
    withdraw(bench, "1.9.0")
    assert bench.code(ref) == "cancelled" and bench.prompts == [] and bench.core.ledger.turn == 0
    ended(bench)


@pytest.mark.case(355)
@pytest.mark.parametrize("way", ["withdrawal", "cancel", "end_by"])
@pytest.mark.parametrize("hook", ["pre_turn", "handle_response", "post_turn"])
def test_a_callback_that_could_still_answer_is_cut_short(hook: str, way: str) -> None:
    callbacks: dict[str, Any] = {
        "pre_turn": lambda self, prompt, state: Proceed(prompt, state),
        "post_turn": lambda self, outcome, ref, state: state,
    }
    bench = Stepping(agent(**callbacks), hold=(hook,))
    ref = asked(bench, "1.9.0", end_by=bench.now + 30)
    if hook != "pre_turn":
        bench.finish()
    match way:
        case "withdrawal":
            withdraw(bench, "1.9.0")
        case "cancel":
            bench.feed(Cancel(ref, "c", tree=True))
            assert bench.answers["c"] == {"cancelled": True}
        case "end_by":
            bench.tick(bench.now + 31)
    assert bench.code(ref) == ("expired" if way == "end_by" else "cancelled")
    assert bench.phase() is Phase.IDLE and bench.held == type(bench.held)()
    ended(bench)


def test_an_answer_that_is_being_committed_stands() -> None:
    bench = Stepping()
    ref = asked(bench, "1.9.0")
    bench.auto_commit = False
    bench.finish()
    withdraw(bench, "1.9.0")
    bench.feed(Cancel(ref, "c", tree=True))
    bench.auto_commit = True
    bench.commit()
    assert bench.answer(ref) == "WORK" and bench.answers["c"] == {"cancelled": False}
    ended(bench)


def test_a_withdrawal_while_a_step_is_on_its_way() -> None:
    bench = Stepping()
    ref = asked(bench, "1.9.0")
    bench.auto_commit = False
    bench.take("a step")
    withdraw(bench, "1.9.0")
    bench.auto_commit = True
    bench.commit()
    assert bench.code(ref) == "cancelled"
    ended(bench)


def test_a_copy_of_a_withdrawn_request_gets_no_outcome_of_its_own() -> None:
    bench = Stepping()
    ref, copy = asked(bench, "1.9.0"), asked(bench, "1.9.0")
    withdraw(bench, "1.9.0")
    assert bench.code(ref) == "cancelled" and copy not in bench.outcomes and bench.core.prompts == ()
    ended(bench)


@pytest.mark.case(585)
def test_nor_has_it_one_when_the_withdrawal_comes_twice_while_the_first_is_being_ended() -> None:
    """Found by the random walk: the sender was answered twice, `interrupted` and `cancelled`."""
    bench = Stepping(agent(post_turn=lambda self, outcome, ref, state: state), hold=("post_turn",))
    ref, copy = asked(bench, "1.9.0"), asked(bench, "1.9.0")
    bench.interrupt()
    for _ in range(2):
        withdraw(bench, "1.9.0")
    assert bench.held and ref not in bench.outcomes
    bench.hold.clear()
    bench.release()
    bench.drain()
    assert bench.code(ref) == "interrupted" and copy not in bench.outcomes
    assert [mail.tag for mail in bench.mails("boss")] == ["1.9.0"]
    ended(bench)


def test_a_failed_agent_lets_go_of_what_was_withdrawn() -> None:
    bench = Stepping(agent(handle_response=lambda self, ref, response, state: 1 / 0), restart=Restart(max=0), max_attempts=9)
    ref = asked(bench, "1.9.0")
    bench.finish()
    assert bench.phase() is Phase.FAILED
    withdraw(bench, "1.9.0")
    assert bench.code(ref) == "cancelled" and bench.phase() is Phase.FAILED


# --- the end of a request by its time ---------------------------------------------------------------------------------
@pytest.mark.case(358)
def test_mesh_end_by_ends_the_turn_and_bounds_its_questions() -> None:
    bench = Stepping()
    ref = bench.prompt("work", end_by=bench.now + 10)
    bench.ask("w1", seconds=60)
    request = bench.request("w1")[1]
    assert request.end_by == request.deadline == bench.wait("w1").deadline == bench.now + 9, "the turn is told before it ends"
    assert bench.now + 10 in bench.wakes
    bench.now += 11
    bench.feed(Tick({"output_tokens": 2}))
    assert bench.code(ref) == "expired" and bench.outcomes[ref].usage == {"output_tokens": 2}
    assert bench.phase() is Phase.IDLE


@pytest.mark.case(358)
def test_a_request_whose_time_is_over_is_not_tried_again() -> None:
    def again(self: Any, ref: str, error: Any, state: Any) -> Any:
        return Prompt("again", state)

    bench = Stepping(agent(handle_error=again), hold=("handle_error",))
    ref = bench.prompt("work", end_by=bench.now + 10)
    bench.fail()
    bench.now += 11
    bench.release()
    assert bench.code(ref) == "expired" and bench.prompts == ["work"]


@pytest.mark.case(213)
def test_a_deadline_is_for_the_beginning_only() -> None:
    bench = Stepping()
    ref = bench.prompt("work", deadline=bench.now + 10)
    bench.tick(bench.now + 60)
    bench.finish()
    assert bench.answer(ref) == "WORK"


# --- cancel of a tree -------------------------------------------------------------------------------------------------
@pytest.mark.case(245)
def test_cancel_ends_a_turn_only_where_it_says_so() -> None:
    bench = Stepping()
    ref = bench.prompt("work")
    assert bench.cancel(ref, "c1") == {"cancelled": False} and bench.phase() is Phase.TURN
    bench.feed(Cancel(ref, "c2", tree=True, usage={"input_tokens": 1}))
    assert bench.answers["c2"] == {"cancelled": True}
    assert bench.code(ref) == "cancelled" and bench.outcomes[ref].usage == {"input_tokens": 1}


def test_an_event_is_never_taken_for_a_withdrawal() -> None:
    bench = Stepping()
    ref = asked(bench, "1.9.0")
    bench.event({"withdraws": "1.9.0"}, "peer-notify", sender="boss", origin="1.9.1")
    assert bench.core.withdrawals == () and bench.finish() == ref


def test_whether_a_request_of_another_agent_is_open_can_be_told() -> None:
    bench = Stepping(Relay)
    running, waiting = asked(bench, "1.9.0"), asked(bench, "1.9.1")
    assert open_ref(bench.core, "boss", "1.9.0") == running and open_ref(bench.core, "boss", "1.9.1") == waiting
    assert open_ref(bench.core, "boss", "1.9.2") is None and open_ref(bench.core, "other", "1.9.0") is None
    bench.finish()
    assert open_ref(bench.core, "boss", "1.9.0") == running, "it is kept open"
    withdraw(bench, "1.9.0")
    assert open_ref(bench.core, "boss", "1.9.0") is None
