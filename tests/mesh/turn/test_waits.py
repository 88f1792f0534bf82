"""Waits of a running turn in the turn machine (docs/architecture.md#waits; case 218)."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Defer, Idle, Proceed, Prompt
from agentmesh.carried import MAX_PATH
from agentmesh.records import SendMail
from agentmesh.registry_values import Restart
from agentmesh.turn.step_values import Circled, WaitLost
from agentmesh.turn.values import Arrived, GaveUp, Phase
from agentmesh.wire import ErrorBody, Outcome
from mesh.turn.agents import log_event
from mesh.turn.harness import agent, error
from mesh.turn.stepping import Stepping
from mesh.turn.test_poison import Rig as Mortal


class Both(Stepping, Mortal):
    """One whose nodes die."""


@pytest.fixture
def bench() -> Stepping:
    return Stepping(agent(handle_event=log_event))


def code(outcome: Outcome) -> str:
    assert outcome.error is not None
    return outcome.error.code


# --- request and answer -------------------------------------------------------------------------------------------------
def test_a_wait_is_a_request_and_its_answer(bench: Stepping) -> None:
    ref = bench.prompt("work")
    bench.ask("w1", prompt="look")
    origin, request = bench.request("w1")
    assert request.lane == "peer-inbox" and request.path == ("coder",) and request.deadline == bench.now + 60
    assert request.prompt is not None and request.prompt.prompt == "look"
    assert (bench.wait("w1").origin, bench.over) == (origin, {})
    mail = bench.answer_wait("w1", "found")
    assert bench.over["w1"].text == "found"
    assert bench.core.ledger.positions["peer-answer"] == mail.seq, "the record that takes it says so"
    assert "helper/peer-answer" not in bench.core.ledger.origins
    bench.finish("done")
    assert bench.answer(ref) == "done" and bench.facts("event_received") == []
    assert bench.kinds.count("step") == 2
    bench.rested()


def test_nothing_is_sent_before_the_journal_has_the_wait(bench: Stepping) -> None:
    bench.prompt("work")
    bench.auto_commit = False
    bench.ask("w1")
    assert bench.effects(SendMail) == []
    bench.commit()
    bench.request("w1")
    bench.answer_wait("w1")
    assert bench.over == {}, "nor is the answer given before the journal has it"
    bench.commit()
    assert bench.over["w1"].ok


def test_answers_overtake_events_and_come_in_any_order(bench: Stepping) -> None:
    bench.prompt("work")
    for name in ("w1", "w2", "w3"):
        bench.ask(name, agent=f"helper-{name}")
    first = bench.event("event before")
    bench.answer_wait("w3", "three")
    bench.answer_wait("w1", "one")
    bench.answer_wait("w2", "two")
    assert {name: outcome.text for name, outcome in bench.over.items()} == {"w1": "one", "w2": "two", "w3": "three"}
    assert bench.core.ledger.positions.get("notify", 0) < first.seq
    bench.finish("done")
    assert bench.state == ["done", "event before"]
    bench.rested()


def test_answers_that_come_while_a_record_is_on_its_way(bench: Stepping) -> None:
    bench.prompt("work")
    bench.ask("w1")
    bench.ask("w2")
    bench.auto_commit = False
    bench.take("a step")
    bench.answer_wait("w1")
    bench.answer_wait("w2")
    assert bench.over == {}
    bench.commit()
    bench.commit()
    assert set(bench.over) == {"w1", "w2"} and bench.appending is None
    assert bench.steps == ["a step"]


# --- takeovers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("answered", ["before", "while", "after", "never"])
def test_a_wait_outlives_its_owner(bench: Stepping, answered: str) -> None:
    ref = bench.prompt("work")
    bench.ask("w1")
    if answered == "before":
        bench.answer_wait("w1")
        assert bench.over["w1"].ok
    elif answered == "while":
        bench.answer_wait("w1", deliver=False)
    bench.kill()
    assert bench.phase() is Phase.TURN
    bench.ask("w1", prompt="the same again")
    if answered == "after":
        assert bench.over == {}
        bench.answer_wait("w1")
    elif answered == "never":
        bench.tick(bench.now + 61)
        assert code(bench.over["w1"]) == "timeout"
    assert bench.over["w1"].ok == (answered != "never")
    prompt = bench.request("w1")[1].prompt
    assert prompt is not None and prompt.prompt == "help", "there is one request: the first"
    bench.finish("done")
    assert bench.answer(ref) == "done"
    bench.rested()


def test_an_answer_that_lies_there_when_the_next_owner_begins_is_not_taken_for_an_event(bench: Stepping) -> None:
    bench.prompt("work")
    bench.ask("w1")
    bench.post("notify", event="before it")
    bench.answer_wait("w1", deliver=False)
    bench.kill()
    assert bench.core.ledger.waits["w1"].outcome is not None, "taken as soon as the turn runs, asked for again or not"
    bench.ask("w1")
    assert bench.over["w1"].ok
    bench.finish("done")
    assert bench.state == ["before it", "done"]
    bench.rested()


def test_a_request_on_its_way_when_the_owner_dies_is_not_sent_twice(bench: Stepping) -> None:
    bench.prompt("work")
    bench.auto_done = False
    bench.ask("w1")
    bench.kill()
    bench.ask("w1")
    bench.auto_done = True
    bench.do_effects()
    bench.answer_wait("w1")
    assert bench.over["w1"].ok
    bench.finish()
    bench.rested()


# --- answers to nobody --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("when", ["in the turn", "behind it", "idle"])
def test_an_answer_that_nothing_waits_for_is_dropped(bench: Stepping, when: str) -> None:
    bench.prompt("work")
    bench.ask("w1", seconds=5)
    bench.tick(bench.now + 6)
    assert code(bench.over["w1"]) == "timeout"
    if when == "in the turn":
        late = bench.answer_wait("w1", "late")
        bench.finish("done")
    else:
        if when == "behind it":
            bench.prompt("next")
        bench.finish("done")
        late = bench.answer_wait("w1", "late")
        bench.drain()
    assert code(bench.outcomes_of_waits[next(iter(bench.outcomes_of_waits))]) == "timeout"
    assert "late" not in str(bench.state)
    assert bench.core.ledger.positions["peer-answer"] == late.seq
    bench.rested()


@pytest.mark.case(581)
def test_answers_that_nobody_waits_for_do_not_keep_out_the_one_that_a_turn_waits_for(bench: Stepping) -> None:
    """Seeds 100555 and 102001: they lay in their lane until the turn's end, and the lane was full."""
    bench.prompt("first")
    bench.ask("w1")
    bench.ask("w2")
    bench.interrupt()
    origins = list(bench.core.ledger.delegated)
    assert len(origins) == 2
    bench.prompt("second")
    bench.ask("w3")
    bench.auto_commit = False
    one = bench.answer_to(origins[0], "helper", "too late")
    two = bench.answer_to(origins[1], "helper", "too late")
    assert bench.appending is not None and bench.appending.kind == "control"
    bench.auto_commit = True
    bench.commit()
    assert bench.core.ledger.positions["peer-answer"] == two.seq == one.seq + 1, "they are consumed in mid-turn"
    assert bench.core.ledger.delegated == {}
    bench.answer_wait("w3")
    assert bench.over["w3"].ok
    bench.finish()
    bench.rested()


@pytest.mark.case(581)
@pytest.mark.parametrize("when", ["pre_turn", "handle_response", "handle_event", "suspect", "restarting", "failed"])
def test_an_answer_that_nobody_waits_for_is_consumed_at_once(when: str) -> None:
    def crash(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        if response.text == "CRASH":
            raise RuntimeError("crash")
        return Idle([*state, response.text])

    restart = Restart(max=0 if when == "failed" else 5)
    hooks: dict[str, Any] = {
        "handle_response": crash,
        "handle_event": log_event,
        "pre_turn": lambda self, prompt, state: Proceed(prompt, state),
    }
    bench = Both(agent(**hooks), restart=restart, suspects_wait=True)
    bench.prompt("ask")
    bench.ask("w1", seconds=5)
    origin, _ = bench.request("w1")
    bench.tick(bench.now + 6)
    bench.finish()
    bench.hold, bench.auto_restart = {when}, when != "restarting"
    match when:
        case "failed" | "restarting":
            bench.prompt("crash")
            bench.finish()
        case "handle_event":
            bench.event("something")
        case "suspect":
            bench.prompt("deadly")
            for _ in range(4):
                bench.die()
        case _:
            bench.prompt("more")
            if when == "handle_response":
                bench.finish()
    phase = bench.phase()
    assert phase in {"deciding", "pre_turn", "handling", "suspect", "restarting", "failed"}
    late = bench.answer_to(origin, "helper", "too late")
    assert bench.phase() is phase and bench.core.ledger.positions["peer-answer"] == late.seq
    bench.hold = set()
    if when == "suspect":
        bench.clear()
    bench.drain()
    assert "too late" not in str(bench.state)


@pytest.mark.parametrize("wrong", [{"sender": "other"}, {"tag": "1.1.0"}, {"tag": None}, {"for_life": "another life"}])
def test_an_answer_must_be_to_this_request_from_whom_was_asked(bench: Stepping, wrong: dict[str, Any]) -> None:
    bench.prompt("work")
    bench.ask("w1")
    bench.answer_wait("w1", "wrong", **wrong)
    assert bench.over == {}
    bench.answer_wait("w1", "right")
    assert bench.over["w1"].text == "right"
    bench.finish("done")
    assert bench.state == ["done"]
    bench.rested()


def test_an_answer_that_comes_twice_is_taken_once(bench: Stepping) -> None:
    bench.prompt("work")
    bench.ask("w1")
    bench.ask("w2")
    bench.auto_commit = False
    bench.take("a step")
    bench.answer_wait("w1", "the answer")
    again = bench.answer_wait("w1", "the answer")
    bench.auto_commit = True
    bench.commit()
    assert bench.over["w1"].text == "the answer"
    bench.answer_wait("w1", "the answer")
    bench.answer_wait("w2")
    bench.finish()
    assert bench.core.ledger.positions["peer-answer"] > again.seq
    bench.rested()


def test_open_waits_end_with_their_turn(bench: Stepping) -> None:
    bench.prompt("work")
    bench.ask("w1")
    bench.auto_commit = False
    bench.take("a step")
    bench.answer_wait("w1")  # taken behind the step, but the turn is killed first
    bench.interrupt()
    while bench.appending is not None:
        bench.commit()
    bench.auto_commit = True
    bench.rested()
    assert bench.phase() is Phase.IDLE and bench.state == []
    assert all(seq <= bench.core.ledger.positions.get(lane, 0) for lane, seq in bench.mail)


# --- waits that cannot be answered --------------------------------------------------------------------------------------
@pytest.mark.parametrize("taken_over", [False, True])
def test_a_request_that_cannot_be_delivered_ends_its_wait(bench: Stepping, taken_over: bool) -> None:
    bench.prompt("work")
    bench.auto_done = False
    bench.ask("w1", agent="nobody")
    if taken_over:
        bench.kill()
        bench.ask("w1", agent="nobody")
    bench.refuse("w1")
    assert code(bench.over["w1"]) == "not_found"
    bench.auto_done = True
    bench.finish("done")
    assert bench.state == ["done"], "no Undelivered: the turn was told"
    bench.rested()
    assert not any(isinstance(entry.effect, SendMail) for entry in bench.core.ledger.effects.values())


def test_a_request_that_is_refused_when_its_turn_is_over_is_nobodys(bench: Stepping) -> None:
    bench.prompt("work")
    bench.auto_done = False
    bench.ask("w1", agent="nobody")
    origin = bench.wait("w1").origin
    bench.finish("done")
    bench.undone.pop(origin)
    bench.feed(GaveUp(origin, error("not_found")))
    bench.auto_done = True
    bench.do_effects()
    bench.prompt("next")
    bench.finish("again")
    assert bench.state == ["done", "again"] and origin not in bench.core.ledger.effects


def test_a_wait_has_its_time_and_so_has_its_request(bench: Stepping) -> None:
    bench.prompt("work", deadline=bench.now + 1000)
    late = bench.prompt("late", deadline=bench.now + 10)
    bench.ask("w1", seconds=10)
    bench.ask("w2", seconds=30)
    assert {bench.now + 10, bench.now + 30} <= set(bench.wakes)
    bench.tick(bench.now + 10)
    assert code(bench.over["w1"]) == "timeout" and "w2" not in bench.over
    assert bench.code(late) == "expired", "one tick serves both"
    bench.answer_wait("w2")
    bench.finish()
    bench.rested()


@pytest.mark.parametrize(
    ("body", "told"), [({"ok": False, "error": {"code": "expired"}}, "timeout"), ("nonsense", "bad_request")]
)
def test_what_else_may_come_back(bench: Stepping, body: Any, told: str) -> None:
    """The other side's clock is ahead; or what it sent is no outcome."""
    bench.prompt("work")
    bench.ask("w1")
    origin, request = bench.request("w1")
    event = {"agent": request.to, "ref": "1", **body} if isinstance(body, dict) else body
    mail = bench.post("peer-answer", event=event, sender=request.to, tag=origin)
    bench.feed(Arrived((mail,)))
    assert code(bench.over["w1"]) == told
    bench.finish()
    bench.rested()


# --- circles --------------------------------------------------------------------------------------------------------------
@pytest.mark.case(218)
@pytest.mark.parametrize(("path", "target"), [((), "coder"), (("boss",), "boss"), (("boss", "lead"), "boss"), (("a", "b"), "b")])
def test_who_waits_up_the_chain_is_not_asked(bench: Stepping, path: tuple[str, ...], target: str) -> None:
    sender = path[-1] if path else None
    lane = "peer-inbox" if path else "inbox"
    bench.prompt("work", lane=lane, sender=sender, tag="1.5.0" if path else None, origin="1.5.0" if path else None, path=path)
    bench.ask("w1", agent=target)
    assert code(bench.over["w1"]) == "cycle"
    assert bench.effects(SendMail) == []
    bench.kill()
    bench.ask("w1", agent=target)
    assert code(bench.over["w1"]) == "cycle"
    bench.finish()
    bench.rested()


def test_the_path_grows_by_the_asker_and_keeps_its_newest(bench: Stepping) -> None:
    path = tuple(f"a{n}" for n in range(MAX_PATH))
    bench.prompt("work", lane="peer-inbox", sender=path[-1], tag="1.5.0", origin="1.5.0", path=path)
    bench.ask("w1")
    assert bench.request("w1")[1].path == (*path[1:], "coder")


@pytest.mark.parametrize("path", [("boss",), ()])
def test_whoever_waits_in_mid_turn_is_answered_there(path: tuple[str, ...]) -> None:
    """A tagged `tell` never waits: it has no path, its answer is an event, and it is in no circle."""
    bench = Stepping(agent())
    bench.prompt("work", lane="peer-inbox", sender="boss", sender_life="l", tag="t", origin="1.5.0", path=path)
    if not path:
        bench.ask("w1", agent="boss")
        assert bench.over == {} and bench.request("w1")
        bench.answer_wait("w1")
    bench.finish("done")
    answer = bench.mails("boss")[-1]
    assert (answer.lane, answer.tag, answer.life) == ("peer-answer" if path else "peer-notify", "t", "l")


def test_whoever_waits_is_answered_there_also_by_a_retry_and_a_deferred_reply() -> None:
    def handle_error(self: Any, ref: str, reason: Any, state: list[Any]) -> Any:
        return Prompt("again", state)

    def handle_response(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        return Defer([*state, ref])

    def handle_event(self: Any, event: Any, state: list[Any]) -> Any:
        self.reply(state[0], "at last")
        return Idle(state)

    bench = Stepping(agent(handle_error=handle_error, handle_response=handle_response, handle_event=handle_event))
    bench.prompt("work", lane="peer-inbox", sender="boss", tag="1.5.0", origin="1.5.0", path=("boss",))
    bench.fail()
    bench.finish()
    bench.event("now")
    assert [(m.lane, m.tag, m.outcome and m.outcome.text) for m in bench.mails("boss")] == [("peer-answer", "1.5.0", "at last")]


def test_a_wait_that_closes_a_circle_ends_and_others_go_on(bench: Stepping) -> None:
    bench.prompt("work")
    bench.ask("w1")
    bench.ask("w2")
    stale = Circled("w1", "1.1.1")
    bench.feed(stale)
    assert bench.over == {}
    bench.feed(Circled("w1", bench.wait("w1").origin))
    assert code(bench.over["w1"]) == "cycle" and "w2" not in bench.over
    bench.answer_wait("w1", "too late")
    bench.answer_wait("w2", "fine")
    assert bench.over["w2"].text == "fine"
    bench.finish()
    bench.rested()


def test_backlog_of_answers_to_an_idle_agent_is_consumed(bench: Stepping) -> None:
    bench.feed(Arrived((bench.answer_to("1.3.0", "helper", "x", deliver=False),)))
    assert bench.core.ledger.positions["peer-answer"] == 1 and bench.state == []


@pytest.mark.case(450)
def test_a_wait_ends_before_the_request_that_it_is_for() -> None:
    bench = Stepping()
    bench.prompt("work", end_by=bench.now + 30)
    bench.ask("w", seconds=600)
    assert bench.wait("w").deadline == bench.now + 27
    bench.tick(bench.now + 28)
    error = bench.over["w"].error
    assert error is not None and error.code == "timeout" and bench.task is not None, "the turn is told, and goes on"


@pytest.mark.case(451)
def test_a_wait_whose_agent_cannot_get_to_it_ends_and_its_question_is_withdrawn() -> None:
    bench = Stepping()
    ref = bench.prompt("work")
    bench.ask("w")
    origin = bench.wait("w").origin
    lost = WaitLost("w", origin, ErrorBody(code="unavailable", message="helper is halted"))
    bench.feed(WaitLost("w", "9.9.9", lost.error), lost, lost)
    error = bench.over["w"].error
    assert error is not None and error.message == "helper is halted"
    (told,) = [mail.event for mail in bench.mails("helper") if mail.lane == "peer-answer"]
    assert told["withdraws"] == origin
    bench.kill()
    bench.ask("w")
    assert bench.over["w"].error == error, "its outcome stays, over a takeover too"
    bench.finish()
    assert bench.answer(ref) == "WORK"
    bench.answer_to(origin, "helper", "too late")
    assert bench.core.ledger.delegated == {}
    bench.rested()
