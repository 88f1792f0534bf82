"""Cases of the mesh that the machine alone decides: durability, dedupe by origin, dead letters, deadlines, timers, cancel."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw

from agentmesh.agent import Idle, Proceed, Prompt
from agentmesh.backend import Response
from agentmesh.records import Bury, Resolve, SendMail, StartAgent
from agentmesh.turn.values import Arrived, GaveUp, Rest
from agentmesh.wire import PromptBody
from mesh.turn.agents import Chatty, Halting, log_event
from mesh.turn.harness import Rig, agent, error


# --- takeovers ------------------------------------------------------------------------------------------------------
@pytest.mark.case(202)
@pytest.mark.case(205)
def test_a_turn_cut_short_runs_again_with_the_state_before_it() -> None:
    bench = Rig(agent(pre_turn=lambda self, prompt, state: Proceed(prompt, [*state, "pre"])))
    ref = bench.prompt("a")
    bench.kill()
    assert bench.prompts == ["a", "a"]
    bench.finish()
    assert bench.answer(ref) == "A" and bench.state == ["pre", "A"]


@pytest.mark.case(201)
@pytest.mark.case(203)
@pytest.mark.parametrize("landed", [False, True])
def test_a_record_whose_fate_the_owner_never_learnt_has_one_outcome(landed: bool) -> None:
    bench = Rig(Chatty)
    ref = bench.prompt("a")
    bench.auto_commit = False
    bench.finish()
    bench.auto_commit = True
    bench.kill(landed=landed)
    bench.drain()
    assert bench.answer(ref) == "A"
    assert bench.state == ["A"] and len(bench.mails("peer")) == 1
    assert len(bench.turns) == (1 if landed else 2)


@pytest.mark.case(203)
def test_effects_that_no_record_calls_done_are_done_again_by_the_next_owner() -> None:
    bench = Rig(Chatty)
    bench.auto_done = False
    bench.prompt("a")
    bench.finish()
    first = dict(bench.undone)
    bench.kill()
    assert bench.undone == first and len(first) == 2, "origins must not change"
    bench.do_effects()
    bench.kill()  # done, but no record has said so
    assert bench.undone == first
    bench.do_effects()
    bench.prompt("b")
    bench.finish()
    assert not set(first) & set(bench.core.ledger.effects)


@pytest.mark.case(205)
def test_state_halt_chain_and_session_survive_a_takeover() -> None:

    bench = Rig(Halting)
    bench.prompt("chain")
    bench.event("halt")
    bench.finish(session=Raw(b'"s9"'))
    bench.kill()
    assert bench.halted() and bench.state == ["chain", "event halt"]
    bench.resume()
    assert bench.running().prompt == "chained" and bytes(bench.running().session) == b'"s9"'


def test_snapshots_change_nothing() -> None:
    plain, often = Rig(Chatty), Rig(Chatty, snapshot_records=2)
    for bench in (plain, often):
        for n in range(7):
            bench.prompt(str(n))
            bench.event(n)
            bench.finish()
        bench.kill()
    assert often.state == plain.state and often.outcomes == plain.outcomes
    assert len(often.journal) <= 3 < len(plain.journal)
    assert [t.number for t in often.core.ledger.history] == list(range(1, 8))


def test_a_snapshot_is_due_by_bytes_too() -> None:
    bench = Rig(snapshot_bytes=1000)
    for _ in range(10):
        bench.prompt("x" * 400)
        bench.finish()
    assert len(bench.journal) <= 3


# --- mail of agents ---------------------------------------------------------------------------------------------------
@pytest.mark.case(206)
@pytest.mark.case(207)
def test_repeated_mail_of_an_agent_is_handled_once() -> None:
    bench = Rig(agent(handle_event=log_event))
    first = bench.prompt("a", lane="peer-inbox", sender="p", origin="1.5.0")
    again = bench.prompt("a", lane="peer-inbox", sender="p", origin="1.5.0")
    bench.drain()
    bench.event("e", "peer-notify", sender="p", origin="1.5.1")
    bench.event("e", "peer-notify", sender="p", origin="1.5.1")
    bench.event("e", "peer-notify", sender="q", origin="1.5.1")
    assert bench.prompts == ["a"] and list(bench.outcomes) == [first] and again not in bench.outcomes
    assert bench.state == ["A", "e", "e"]


@pytest.mark.case(206)
def test_an_old_repetition_does_not_make_the_agent_forget_newer_origins() -> None:
    bench = Rig()
    for origin in ("1.10.0", "1.11.0", "1.10.0", "1.11.0"):
        bench.prompt(origin, lane="peer-inbox", sender="p", origin=origin)
    bench.drain()
    assert bench.prompts == ["1.10.0", "1.11.0"]


@pytest.mark.case(206)
@pytest.mark.parametrize("how", ["cancel", "expire"])
@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize("halted", [False, True])
def test_mail_taken_out_of_order_neither_hides_older_mail_nor_comes_back(how: str, takeover: bool, halted: bool) -> None:

    bench = Rig(Halting)
    if halted:
        bench.event("halt")
    else:
        bench.prompt("running")
    older = bench.prompt("older", lane="peer-inbox", sender="p", origin="1.10.0")
    newer = bench.prompt("newer", lane="peer-inbox", sender="p", origin="1.11.0", deadline=1010.0)
    if how == "cancel":
        bench.cancel(newer)
    else:
        bench.tick(1010.0)
    assert bench.code(newer) == {"cancel": "cancelled", "expire": "expired"}[how]
    if takeover:
        bench.kill()
    again = bench.prompt("newer", lane="peer-inbox", sender="p", origin="1.11.0")
    bench.resume()
    bench.drain()
    third = bench.prompt("newer", lane="peer-inbox", sender="p", origin="1.11.0")
    bench.drain()
    assert bench.answer(older) == "OLDER"
    assert again not in bench.outcomes and third not in bench.outcomes
    assert bench.core.ledger.origins == {"p/peer-inbox": "1.11.0"}, "the passed origins were not merged"
    assert bench.core.ledger.taken == {}


@pytest.mark.case(219)
def test_the_sender_of_an_event_and_of_a_prompt_is_shown() -> None:
    seen: list[Any] = []

    class Curious(Chatty):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            seen.append(self.request.sender)
            return Idle(state)

    bench = Rig(Curious)
    bench.event("e", "peer-notify", sender="p", origin="1.1.0")
    bench.event("e")
    bench.prompt("a", lane="peer-inbox", sender="p", origin="1.1.1")
    bench.finish()
    bench.prompt("b")
    bench.finish()
    assert bench.state == [["p", "e"], [None, "e"]] and seen == ["p", None]


def test_an_answer_that_no_running_turn_waits_for_is_dropped() -> None:
    bench = Rig(agent(handle_event=log_event))
    bench.event({"ok": True}, "peer-answer", sender="p", origin="1.1.0")
    assert bench.state == [] and bench.core.ledger.positions["peer-answer"] == 1


def test_mail_meant_for_another_life_is_not_handled() -> None:
    bench = Rig(agent(handle_event=log_event))
    bench.event("e", for_life="other")
    assert bench.state == [] and bench.code(bench.prompt("a", for_life="other")) == "stopped"


# --- dead letters, deadlines --------------------------------------------------------------------------------------------
@pytest.mark.case(244)
def test_a_malformed_prompt_or_event_becomes_a_dead_letter() -> None:
    bench = Rig(agent(handle_event=log_event))
    mail = bench.post("inbox", problem="the prompt is not UTF-8 text", reply_to="_INBOX.1")
    bench.feed(Arrived((mail,)))
    bench.event(None, problem="the event is not UTF-8 text")
    assert bench.code(mail.ref) == "bad_request"
    assert [(b.lane, b.seq) for b in bench.effects(Bury)] == [("inbox", 1), ("notify", 2)]
    assert bench.state == [] and bench.task is None


@pytest.mark.case(213)
def test_a_prompt_past_its_deadline_is_answered_expired_without_a_turn() -> None:
    bench = Rig()
    bench.prompt("running")
    late, after = bench.prompt("late", deadline=1001.0), bench.prompt("after", deadline=1002.0)
    bench.now = 1001.5
    bench.finish()
    assert bench.code(late) == "expired" and bench.running().prompt == "after"
    bench.finish()
    assert bench.outcomes[after].ok


@pytest.mark.parametrize("how", ["deadlines", "cancels"])
def test_prompts_that_end_together_each_have_their_outcome_though_one_behind_them_went_first(how: str) -> None:
    bench = Rig()
    bench.prompt("runs")
    peers = {"lane": "peer-inbox", "sender": "p"}
    early = [bench.prompt(f"e{n}", origin=f"1.{n}.0", deadline=1001.0, **peers) for n in (1, 2, 3)]
    last = bench.prompt("last", origin="1.4.0", **peers)
    assert bench.cancel(last, "first") == {"cancelled": True}
    if how == "deadlines":
        bench.tick(1002.0)
    else:
        assert all(bench.cancel(ref, ref) == {"cancelled": True} for ref in early)
    assert {bench.code(ref) for ref in early} == {"expired" if how == "deadlines" else "cancelled"}
    assert bench.code(last) == "cancelled"
    bench.finish()
    assert bench.core.ledger.taken == {} and bench.core.ledger.positions["peer-inbox"] == int(last)


@pytest.mark.case(213)
@pytest.mark.parametrize("while_", ["running", "halted", "failed"])
def test_a_waiting_caller_hears_of_its_deadline_when_it_passes(while_: str) -> None:

    bench = Rig(Halting)
    if while_ == "running":
        bench.prompt("a")
    else:
        bench.event("halt")
    ref = bench.prompt("late", deadline=1001.0)
    assert bench.wakes == [1001.0]
    bench.tick(1001.0)
    assert bench.code(ref) == "expired"


def test_prompts_turned_away_before_one_born_of_an_event() -> None:
    bench = Rig(agent(handle_event=lambda self, event, state: Prompt(event, state)))
    bench.prompt("running")
    late = bench.prompt("late", deadline=1001.0)
    bench.event("born")
    bench.now = 1001.0
    bench.finish()
    assert bench.code(late) == "expired" and bench.running().prompt == "born"


# --- effects ------------------------------------------------------------------------------------------------------------
@pytest.mark.case(216)
def test_nothing_is_sent_unless_the_record_commits() -> None:
    bench = Rig(Chatty)
    bench.auto_commit = False
    bench.feed()
    bench.drain()
    bench.prompt("a")
    bench.finish()
    assert bench.order == []
    bench.commit()
    assert [type(e) for e in bench.order] == [Resolve, SendMail]


@pytest.mark.case(217)
@pytest.mark.parametrize("when", ["idle", "in a turn", "in a callback", "committing", "halted"])
def test_an_effect_that_cannot_be_done_comes_back_as_undelivered(when: str) -> None:
    bench = Rig(Chatty)
    bench.auto_done = False
    bench.prompt("a")
    bench.finish()
    origin = next(o for o, e in bench.undone.items() if isinstance(e.effect, SendMail))
    assert list(bench.core.ledger.awaiting) == [origin]
    bench.auto_done = True
    bench.undone.pop(origin)
    if when != "idle":
        bench.prompt("b")
    if when == "in a callback":
        bench.hold.add("handle_response")
        bench.finish()
    if when == "committing":
        bench.auto_commit = False
        bench.finish()
    gave_up = GaveUp(origin, error("not_found"))
    bench.feed(gave_up, gave_up)
    bench.auto_commit = True
    bench.hold.clear()
    bench.drain()
    assert bench.state.count(["peer", "1", "not_found"]) == 1
    assert origin not in bench.core.ledger.effects and origin not in bench.core.ledger.awaiting
    bench.kill()
    assert bench.state.count(["peer", "1", "not_found"]) == 1


@pytest.mark.case(217)
def test_a_notice_survives_a_takeover_before_it_is_handled() -> None:
    bench = Rig(Chatty)
    bench.auto_done = False
    bench.prompt("a")
    bench.finish()
    origin = next(o for o, e in bench.undone.items() if isinstance(e.effect, SendMail))
    bench.undone.pop(origin)
    bench.auto_done = True
    bench.prompt("b")
    bench.feed(GaveUp(origin, error("not_found")))
    bench.kill()
    assert bench.state == ["A", ["peer", "1", "not_found"]]


@pytest.mark.case(217)
def test_a_taken_name_comes_back_too() -> None:
    def start(self: Any, ref: str, response: Response, state: list[Any]) -> Any:
        self.start_agent("w1", kind="Worker")
        return Idle(state)

    bench = Rig(type("Starter", (Chatty,), {"handle_response": start}))
    bench.auto_done = False
    bench.prompt("a")
    bench.finish()
    origin = next(o for o, e in bench.undone.items() if isinstance(e.effect, StartAgent))
    bench.feed(GaveUp(origin, error("already_started")))
    assert bench.state == [["w1", None, "already_started"]]


def test_with_too_many_open_effects_no_prompt_begins_until_some_are_done() -> None:
    bench = Rig(Chatty, max_effects=3)
    bench.auto_done = False
    for n in range(3):
        bench.prompt(str(n))
    bench.finish()
    bench.finish()
    assert bench.task is None and bench.queued == 1
    bench.do_effects()
    assert bench.running().prompt == "2"


# --- rest -------------------------------------------------------------------------------------------------------------------
def test_an_idle_agent_rests_once_and_not_with_work() -> None:
    bench = Rig(Chatty)
    bench.prompt("a")
    bench.feed(Rest())
    assert bench.kinds[-1] != "rest"
    bench.finish()
    bench.feed(Rest(), Rest())
    assert bench.kinds[-2:] == ["turn", "rest"]
    assert bench.core.ledger.effects == {}


def test_an_agent_with_an_open_effect_does_not_rest() -> None:
    bench = Rig()
    bench.auto_done = False
    bench.prompt("a")
    bench.finish()
    bench.feed(Rest())
    assert bench.kinds[-1] == "turn"


def test_mail_fed_twice_is_handled_once() -> None:
    bench = Rig(agent(handle_event=log_event))
    mail = bench.post("inbox", prompt=PromptBody(prompt="a"))
    event = bench.post("notify", event="e")
    bench.feed(Arrived((mail, event)), Arrived((mail, event)))
    bench.feed(Arrived((mail,)))
    bench.drain()
    bench.feed(Arrived((mail, event)))
    assert bench.prompts == ["a"] and bench.state == ["e", "A"]
