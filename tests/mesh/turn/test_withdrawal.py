"""Ending a request ends what was asked on its behalf: both sides, in the turn machine (docs/architecture.md#withdrawals)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentmesh.agent import Answer, Defer, Idle, Proceed, Prompt, Undelivered
from agentmesh.backend import Response
from agentmesh.records import SendMail
from agentmesh.registry_values import Restart
from agentmesh.turn.values import Arrived, Cancel, GaveUp, Phase, Tick
from agentmesh.wire import Mail, Outcome, Withdrawal
from mesh.turn.harness import Plain, agent, error
from mesh.turn.stepping import Stepping


class Relay(Plain):
    """Keeps each request open, tells `first` of it, tells `second` once that has answered, and answers then."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if response.text.startswith("PLAIN"):
            return Idle(state)
        self.tell("first", response.text, tag=ref)
        self.tell("logger", "untagged")
        self.tell("archive", "detached", tag=f"d{ref}", detached=True)
        return Defer(state)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        if isinstance(event, Undelivered):
            return Idle([*state, ["undelivered", event.effect["target"], event.error.code]])
        if not isinstance(event, Answer):
            self.reply(event["reply"], event.get("text"), error=event.get("error"))
            return Idle(state)
        if event.agent == "first" and event.outcome.ok:
            self.tell("second", "go on", tag=event.tag)
        return Idle([*state, [event.agent, event.outcome.text or (event.outcome.error and event.outcome.error.code)]])


def withdrawn(bench: Stepping) -> dict[str, str]:
    """By agent: the origin of what was withdrawn from it."""
    found = [e for e in bench.effects(SendMail) if e.lane == "peer-answer" and e.outcome is None]
    assert len({(e.to, e.event["withdraws"]) for e in found}) == len(found), "nothing is withdrawn twice"
    return {e.to: e.event["withdraws"] for e in found}


def origin_to(bench: Stepping, to: str) -> str:
    (found,) = [o for o, e in bench.performed.items() if isinstance(e, SendMail) and e.to == to and e.lane == "peer-inbox"]
    return found


def ended(bench: Stepping) -> None:
    assert bench.core.ledger.delegated == {} and bench.core.withdrawals == ()
    bench.rested()


# --- the asking side: questions of a turn -----------------------------------------------------------------------------
WAYS = ("interrupt", "watchdog", "fail", "cancel", "stop", "withdrawal", "end_by")


@pytest.mark.case(350)
@pytest.mark.parametrize("way", WAYS)
def test_a_turn_that_ends_otherwise_withdraws_its_questions_in_its_record(way: str) -> None:
    bench = Stepping()
    asked = {"sender": "boss", "origin": "1.9.0", "lane": "peer-inbox"} if way == "withdrawal" else {}
    ref = bench.prompt("work", end_by=bench.now + 30, **asked)
    bench.ask("w1", agent="a1")
    bench.ask("w2", agent="a2")
    bench.answer_wait("w1", "one")
    assert withdrawn(bench) == {}
    end(bench, way, ref)
    assert withdrawn(bench) == {"a2": bench.request("w2")[0]}, "what has answered is left alone"
    assert not bench.outcomes[ref].ok
    if way != "stop":
        record = msgspec.json.decode(bench.journal[-1][1]) if bench.kinds[-1] == "turn" else None
        assert record is None or [e["t"] for e in record["effects"]].count("mail") == 1


def end(bench: Stepping, way: str, ref: str) -> None:
    match way:
        case "interrupt":
            assert bench.interrupt() == {"interrupted": True, "withdrawn": [{"agent": "a2", "origin": bench.request("w2")[0]}]}
        case "watchdog":
            bench.watchdog()
        case "fail":
            bench.fail()
        case "cancel":
            bench.feed(Cancel(ref, "c", tree=True))
            assert bench.answers["c"]["cancelled"]
        case "stop":
            bench.stop()
        case "withdrawal":
            withdraw(bench, "1.9.0")
        case "end_by":
            bench.tick(bench.now + 31)
            assert bench.code(ref) == "expired"


@pytest.mark.case(351)
def test_an_answer_lets_go_of_what_is_still_open() -> None:
    bench = Stepping()
    ref = bench.prompt("work")
    bench.ask("w1")
    bench.finish("done without it")
    assert bench.answer(ref) == "done without it" and withdrawn(bench) == {}
    ended(bench)


@pytest.mark.case(352)
@pytest.mark.parametrize("answered", [True, False])
def test_a_withdrawn_question_comes_back_once_and_says_what_it_cost(answered: bool) -> None:
    bench = Stepping()
    bench.prompt("work")
    bench.ask("w1")
    origin = bench.request("w1")[0]
    bench.interrupt()
    assert bench.core.ledger.delegated[origin].withdrawn
    outcome = Outcome(agent="helper", ref="5", ok=answered, text="late" if answered else None, usage={"input_tokens": 7})
    outcome = outcome if answered else msgspec.structs.replace(outcome, error=error("cancelled"))
    for _ in range(2):
        mail = bench.post("peer-answer", event=msgspec.to_builtins(outcome), sender="helper", tag=origin, for_life="life-1")
        bench.feed(Arrived((mail,)))
    assert bench.core.ledger.usage["delegated"]["tokens"] == 7, "once, although it came twice"
    ended(bench)


@pytest.mark.case(350)
def test_the_withdrawal_is_open_until_it_is_stored_over_takeovers() -> None:
    bench = Stepping()
    bench.prompt("work")
    bench.ask("w1")
    bench.auto_done = False
    bench.interrupt()
    (entry,) = [e.effect for e in bench.core.ledger.effects.values() if isinstance(e.effect, SendMail) and e.effect.event]
    bench.kill()
    assert entry in [e.effect for e in bench.undone.values()]
    bench.do_effects()
    assert withdrawn(bench) == {"helper": bench.request("w1")[0]}


def test_an_interrupt_that_dies_before_its_record_withdraws_nothing() -> None:
    bench = Stepping()
    bench.prompt("work")
    bench.ask("w1")
    bench.auto_commit = False
    bench.interrupt()
    bench.kill()
    assert withdrawn(bench) == {} and bench.phase() is Phase.TURN
    bench.auto_commit = True
    bench.answer_wait("w1")
    bench.finish()


def test_a_retry_withdraws_the_questions_of_the_failed_try() -> None:
    bench = Stepping(agent(handle_error=lambda self, ref, error, state: Prompt("again", state)))
    ref = bench.prompt("work")
    bench.ask("w1")
    first = bench.request("w1")[0]
    bench.fail()
    assert withdrawn(bench) == {"helper": first} and ref not in bench.outcomes
    bench.finish("done")
    assert bench.answer(ref) == "done"


@pytest.mark.case(76)
@pytest.mark.parametrize("way", ["interrupt", "cancel", "withdrawal", "end_by"])
def test_what_handle_error_prompts_then_is_no_retry(way: str) -> None:
    bench = Stepping(agent(handle_error=lambda self, ref, error, state: Prompt("tidy up", state)))
    asked = {"sender": "boss", "origin": "1.9.0", "lane": "peer-inbox"} if way == "withdrawal" else {}
    ref = bench.prompt("work", end_by=bench.now + 30, **asked)
    bench.ask("w2", agent="a2")
    end(bench, way, ref)
    assert not bench.outcomes[ref].ok
    assert bench.prompts[-1] == "tidy up" and bench.finish() != ref, "it runs for nobody, and nothing ends it"
    ended_of = bench.core.ledger.delegated
    assert all(one.withdrawn for one in ended_of.values())


def test_a_crashed_turns_questions_go_with_its_prompt() -> None:
    """It waits for its restart with the steps of its turn, and is cancelled then."""
    bench = Stepping(agent(handle_response=lambda self, ref, response, state: 1 / 0), max_attempts=2)
    bench.prompt("work")
    bench.ask("w1")
    bench.finish()
    bench.ask("w1")
    assert withdrawn(bench) == {}
    bench.finish()
    assert withdrawn(bench) == {"helper": bench.request("w1")[0]}


# --- the asking side: what callbacks tell -----------------------------------------------------------------------------
@pytest.mark.case(353)
@pytest.mark.parametrize("way", ["cancel", "reply", "stop", "deadline"])
def test_what_was_told_on_behalf_of_an_open_request_is_withdrawn_with_it(way: str) -> None:
    bench = Stepping(Relay)
    ref = bench.prompt("work", deadline=bench.now + 40)
    bench.finish()
    assert {one.agent for one in bench.core.ledger.delegated.values()} == {"first", "logger"}
    first = origin_to(bench, "first")
    match way:
        case "cancel":
            bench.feed(Cancel(ref, "c", tree=True))
        case "reply":
            bench.event({"reply": ref, "error": "no"})
        case "stop":
            bench.stop()
        case "deadline":
            bench.now += 41
            bench.fire(f"_deadline-{ref}")
    assert withdrawn(bench) == {"first": first, "logger": origin_to(bench, "logger")}, "what is detached is not"
    if way == "stop":
        return
    assert {o: one.withdrawn for o, one in bench.core.ledger.delegated.items()} == {first: True}
    answer(bench, "first", ref, "cancelled")
    assert bench.state[-1] == ["first", "cancelled"]
    ended(bench)


def answer(bench: Stepping, sender: str, tag: str, said: str) -> None:
    bad = said in ("cancelled", "stopped")
    outcome = Outcome(agent=sender, ref="3", ok=not bad, text=None if bad else said, error=error(said) if bad else None)
    bench.event(msgspec.to_builtins(outcome), "peer-notify", sender=sender, tag=tag, origin=f"1.{bench.seq + 900}.0")


@pytest.mark.case(353)
def test_what_is_told_on_an_answer_is_on_behalf_too_down_the_chain() -> None:
    bench = Stepping(Relay)
    ref = bench.prompt("work", end_by=bench.now + 99)
    bench.finish()
    answer(bench, "first", ref, "ok")
    (told,) = bench.mails("second")
    assert (told.request, told.root, told.end_by) == (ref, f"coder/{ref}", bench.now + 99)
    bench.feed(Cancel(ref, "c", tree=True))
    assert bench.answers["c"] == {"cancelled": True, "withdrawn": [
        {"agent": "logger", "origin": origin_to(bench, "logger")}, {"agent": "second", "origin": origin_to(bench, "second")},
    ]}  # fmt: skip
    assert set(withdrawn(bench)) == {"logger", "second"}


@pytest.mark.case(354)
def test_nothing_more_is_asked_on_behalf_of_a_request_that_has_ended() -> None:
    bench = Stepping(Relay)
    ref = bench.prompt("work")
    bench.finish()
    bench.feed(Cancel(ref, "c", tree=True))
    answer(bench, "first", ref, "it was on its way")
    assert bench.mails("second") == []
    assert bench.state[-2:] == [["first", "it was on its way"], ["undelivered", "second", "cancelled"]]
    ended(bench)


@pytest.mark.case(351)
def test_after_an_answer_what_was_told_goes_on_and_so_does_what_follows() -> None:
    bench = Stepping(Relay)
    ref = bench.prompt("work")
    bench.finish()
    bench.event({"reply": ref, "text": "done"})
    assert bench.answer(ref) == "done" and bench.core.ledger.delegated == {}
    answer(bench, "first", ref, "ok")
    assert [e.request for e in bench.mails("second")] == [None] and withdrawn(bench) == {}


def test_what_an_answered_turn_tells_is_on_behalf_of_nobody() -> None:
    bench = Stepping(agent(handle_response=lambda self, ref, response, state: (self.tell("peer", "x", tag="t"), Idle(state))[1]))
    bench.prompt("work", end_by=bench.now + 9)
    bench.finish()
    (told,) = bench.mails("peer")
    assert (told.request, told.end_by, told.root) == (None, None, None) and bench.core.ledger.delegated == {}


def test_what_could_not_be_delivered_is_not_kept() -> None:
    bench = Stepping(Relay)
    bench.auto_done = False
    bench.prompt("work")
    bench.finish()
    origin = next(o for o, e in bench.undone.items() if isinstance(e.effect, SendMail) and e.effect.to == "first")
    assert origin in bench.core.ledger.delegated
    bench.undone.pop(origin)
    bench.feed(GaveUp(origin, error("not_found")))
    assert origin not in bench.core.ledger.delegated


def test_a_withdrawn_question_that_cannot_be_delivered_has_ended() -> None:
    bench = Stepping()
    bench.auto_done = False
    bench.prompt("work")
    bench.ask("w1")
    bench.interrupt()
    (origin,) = bench.core.ledger.delegated
    bench.undone.pop(origin)
    bench.feed(GaveUp(origin, error("not_found")))
    ended(bench)


# --- the asked side ---------------------------------------------------------------------------------------------------
def withdraw(bench: Stepping, origin: str, *, deliver: bool = True, sender: str = "boss") -> Mail:
    body = msgspec.to_builtins(Withdrawal(withdraws=origin, why=error("interrupted")))
    mail = bench.post("peer-answer", event=body, sender=sender, origin=f"1.{bench.seq + 500}.0", for_life="life-1")
    if deliver:
        bench.feed(Arrived((mail,)))
    return mail


def asked(bench: Stepping, origin: str, text: str = "work", **fields: Any) -> str:
    """A question of boss's turn."""
    return bench.prompt(text, lane="peer-inbox", sender="boss", origin=origin, tag=origin, path=("boss",), **fields)


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
    assert request.end_by == request.deadline == bench.wait("w1").deadline == bench.now + 10
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
