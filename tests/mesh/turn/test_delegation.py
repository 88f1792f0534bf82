"""Ending a request ends what was asked on its behalf: the side of the agent that asks (docs/architecture.md#withdrawals)."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.agent import Idle, Prompt
from agentmesh.records import SendMail
from agentmesh.turn.delegation import MAX_WHY
from agentmesh.turn.values import Arrived, Cancel, GaveUp, Phase
from agentmesh.wire import Outcome
from mesh.turn.harness import agent, error
from mesh.turn.stepping import Stepping
from mesh.turn.withdrawing import Relay, answer, end, ended, origin_to, withdrawn

# --- questions of a turn -----------------------------------------------------------------------------
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


# --- what callbacks tell -----------------------------------------------------------------------------
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


def test_a_withdrawal_says_why_in_few_words() -> None:
    bench = Stepping()
    bench.prompt("work")
    bench.ask("w1")
    bench.fail("backend_error", "x" * 9999)
    (mail,) = [e for e in bench.mails("helper") if e.event is not None]
    assert mail.event["why"] == {"code": "backend_error", "message": "x" * MAX_WHY}


@pytest.mark.case(354)
def test_what_was_told_for_a_request_that_ends_meanwhile_is_not_sent() -> None:
    """The `Answer` is being handled, beside other events of one record, when the request is cancelled in a record of its own."""
    bench = Stepping(Relay, hold=("handle_event",))
    ref = bench.prompt("work")
    bench.finish()
    answer(bench, "first", ref, "ok")
    bench.event({"reply": "none", "text": ""})
    bench.release()
    assert bench.held, "the second event of the same record is being handled"
    bench.feed(Cancel(ref, "c", tree=True))
    assert bench.code(ref) == "cancelled"
    bench.hold.clear()
    bench.release()
    assert bench.mails("second") == [] and ["undelivered", "second", "cancelled"] in bench.state
    ended(bench)
