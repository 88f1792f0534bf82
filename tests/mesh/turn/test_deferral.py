"""Requests kept open beyond their turn: cases 200 and 446 to 449."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from agentmesh.agent import Answer, Closed, Defer, Halt, Idle, Prompt
from agentmesh.backend import Response
from agentmesh.errors import BackendError
from agentmesh.ledger import open_requests
from agentmesh.records import Caller, CancelTimer, Change, Deferred, Notice, SetTimer, decode_record
from agentmesh.turn.deferral import EXCLUSIVE_S
from agentmesh.turn.values import Phase, Reply
from agentmesh.wire import Outcome, PromptBody
from mesh.turn.harness import Plain, Rig

pytestmark = pytest.mark.case(200)


class Desk(Plain):
    """Defers every request; events `["reply", ref, text]`, `["fail", ref]`, `["halt"]` and `["prompt", text]` say what to do."""

    exclusive = False

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if self.request.label == "synthesis":
            self.reply(state[0], response.text)
            return Idle(state)
        return Defer([*state, ref], exclusive=self.exclusive)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        match event:
            case ["reply", ref, text]:
                self.reply(ref, text)
            case ["fail", ref]:
                self.reply(ref, error=BackendError("no"))
            case ["halt"]:
                return Halt(state)
            case ["prompt", text]:
                return Prompt(text, state, label="synthesis")
        return Idle(state)


class Exclusive(Desk):
    exclusive = True


def deferring(cls: type[Desk] = Desk, **fields: Any) -> tuple[Rig, str]:
    bench = Rig(cls)
    ref = bench.prompt("a", **fields)
    bench.finish()
    assert ref not in bench.outcomes
    return bench, ref


def test_the_reply_given_turns_later_is_the_outcome() -> None:
    bench, ref = deferring(reply_to="_INBOX.1")
    bench.prompt("b")
    bench.finish()
    bench.event(["reply", ref, "at last"])
    assert bench.answer(ref) == "at last"
    assert bench.outcomes[ref].turn == 1


def test_an_error_is_a_reply_too() -> None:
    bench, ref = deferring()
    bench.event(["fail", ref])
    assert bench.code(ref) == "backend_error"


def test_the_first_reply_wins_within_a_record_and_over_records() -> None:
    class Twice(Desk):
        def handle_event(self, event: Any, state: list[Any]) -> Any:
            self.reply(event, "first")
            self.reply(event, "second")
            return Idle(state)

    bench, ref = deferring(Twice)
    bench.event(ref)
    bench.event(ref)
    assert bench.answer(ref) == "first"


def test_a_reply_to_an_unknown_request_is_ignored() -> None:
    bench, ref = deferring()
    bench.event(["reply", "99", "x"])
    assert bench.outcomes == {} and ref in bench.core.ledger.deferred


def test_it_survives_takeovers() -> None:
    bench, ref = deferring(reply_to="_INBOX.1")
    bench.kill()
    bench.auto_commit = False
    bench.event(["reply", ref, "x"])
    bench.auto_commit = True
    bench.kill()  # the reply had not committed: the event is handled again
    assert bench.answer(ref) == "x"
    bench.kill()
    assert bench.core.ledger.deferred == {}


def test_a_reply_in_the_deferring_callback_itself_answers() -> None:
    class Eager(Desk):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            self.reply(ref, "at once")
            return Defer(state)

    bench = Rig(Eager)
    ref = bench.prompt("a", deadline=5000.0)
    bench.finish()
    assert bench.answer(ref) == "at once"
    assert bench.core.ledger.deferred == {} and bench.core.ledger.timers == {}


def test_the_deadline_answers_expired_and_a_later_reply_is_ignored() -> None:
    bench, ref = deferring(deadline=1060.0)
    timer = f"_deadline-{ref}"
    assert bench.effects(SetTimer) == [SetTimer(id=timer, due=1060.0)]
    bench.kill()
    bench.now = 1060.0
    bench.fire(timer)
    assert bench.code(ref) == "expired"
    bench.event(["reply", ref, "late"])
    assert bench.core.ledger.timers == {} and bench.core.ledger.deferred == {}
    assert bench.effects(CancelTimer) == [], "a timer that fired need not be cancelled"


def test_a_reply_before_the_deadline_removes_its_timer() -> None:
    bench, ref = deferring(deadline=1060.0)
    origin = bench.core.ledger.timers[f"_deadline-{ref}"].origin
    bench.event(["reply", ref, "x"])
    assert bench.effects(CancelTimer) == [CancelTimer(id=f"_deadline-{ref}")]
    bench.fire(f"_deadline-{ref}", origin)  # it had fired already
    assert bench.answer(ref) == "x"


def test_stop_answers_stopped() -> None:
    bench, ref = deferring()
    bench.stop()
    assert bench.code(ref) == "stopped"


def test_exclusive_holds_back_prompts_but_neither_events_nor_self_prompts() -> None:
    bench, ref = deferring(Exclusive)
    second = bench.prompt("b")
    assert bench.task is None and bench.queued == 1
    assert bench.facts("mailbox_queued") == [{"depth": 1}]
    bench.event(["note"])
    bench.kill()
    assert bench.task is None
    bench.event(["prompt", "synth"])
    assert bench.running().prompt == "synth"
    assert bench.running().request.label == "synthesis"
    bench.finish()
    assert bench.answer(ref) == "SYNTH"
    assert bench.running().prompt == "b"
    bench.stop()
    assert bench.code(second) == "stopped"


def test_without_exclusive_a_second_prompt_runs() -> None:
    bench, _ = deferring()
    bench.prompt("b")
    assert bench.running().prompt == "b"


def test_a_prompt_held_back_expires_and_can_be_cancelled() -> None:
    bench, _ = deferring(Exclusive)
    late, other = bench.prompt("b", deadline=1010.0), bench.prompt("c")
    bench.tick(bench.wakes[-1])
    assert bench.code(late) == "expired"
    assert bench.cancel(other) == {"cancelled": True}


def test_a_chained_turn_that_defers_answers_nobody_and_holds_nothing_back() -> None:
    class Chained(Exclusive):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            return Prompt("chained", state) if response.text == "A" else Defer(state, exclusive=True)

    bench = Rig(Chained)
    bench.prompt("a")
    bench.finish()
    bench.finish()
    assert bench.core.ledger.deferred == {}


class Coordinator(Exclusive):
    """Asks two workers, prompts itself with what they said, and answers its caller with the synthesis."""

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if self.request.label == "synthesis":
            self.reply(state[0], response.text)
            return Idle([])
        for worker in ("w1", "w2"):
            self.tell(worker, response.text, tag=worker)
        return Defer([ref], exclusive=True)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        assert isinstance(event, Answer)
        state = [*state, event.outcome.text]
        return Prompt(" ".join(state[1:]), state, label="synthesis") if len(state) == 3 else Idle(state)


@pytest.mark.case(216)
def test_a_coordinator_asks_gathers_and_answers_over_takeovers() -> None:
    bench = Rig(Coordinator)
    ref = bench.prompt("question", reply_to="_INBOX.1")
    bench.finish()
    for number, worker in enumerate(("w1", "w2")):
        (asked,) = bench.mails(worker)
        assert asked.prompt == PromptBody(prompt="QUESTION") and asked.tag == worker
        bench.kill()
        outcome = Outcome(agent=worker, ref="1", ok=True, text=f"from {worker}")
        body = {"agent": worker, "ref": "1", "ok": True, "text": outcome.text}
        bench.event(body, "peer-notify", sender=worker, origin=f"1.{number}.0", tag=worker)
        bench.event(body, "peer-notify", sender=worker, origin=f"1.{number}.0", tag=worker)  # a repetition
    assert bench.running().prompt == "from w1 from w2"
    bench.kill()
    bench.finish()
    assert bench.answer(ref) == "FROM W1 FROM W2"
    assert bench.core.ledger.awaiting == {}


# --- closed from outside ----------------------------------------------------------------------------------------------
class Told(Desk):
    """A desk that notes what it is told of closed requests."""

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        return Idle([*state, [event.ref, event.how]]) if isinstance(event, Closed) else super().handle_event(event, state)


class ToldExclusive(Told):
    exclusive = True


def reply(bench: Rig, ref: str, text: str = "from outside", token: str = "y") -> Any:
    bench.feed(Reply(ref=ref, text=text, token=token))
    return bench.answers.get(token)


@pytest.mark.case(447)
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("how", ["replied", "cancelled", "expired"])
def test_who_ends_a_deferred_request_from_outside_tells_its_agent(how: str, exclusive: bool) -> None:
    bench, ref = deferring(ToldExclusive if exclusive else Told, deadline=1060.0)
    match how:
        case "replied":
            assert reply(bench, ref) == {"replied": True} and bench.answer(ref) == "from outside"
        case "cancelled":
            assert bench.cancel(ref) == {"cancelled": True} and bench.code(ref) == "cancelled"
        case _:
            bench.now = 1060.0
            bench.fire(f"_deadline-{ref}")
            assert bench.code(ref) == "expired"
    assert bench.state == [ref, [ref, how]]
    assert bench.core.ledger.deferred == {} and bench.core.ledger.timers == {} and bench.core.ledger.notices == ()
    bench.event(["reply", ref, "late"])
    assert reply(bench, ref, token="z") == {"replied": False} and bench.cancel(ref, "x") == {"cancelled": False}
    assert len(bench.state) == 2


@pytest.mark.case(447)
def test_an_agent_that_handles_no_events_is_told_nothing() -> None:
    class Deaf(Plain):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            return Defer(state)

    bench = Rig(Deaf)
    ref = bench.prompt("a")
    bench.finish()
    kinds = bench.kinds
    assert reply(bench, ref) == {"replied": True} and bench.answer(ref) == "from outside"
    assert bench.kinds == [*kinds, "control"]


@pytest.mark.case(447)
@pytest.mark.parametrize("how", ["replied", "cancelled"])
def test_it_can_be_closed_in_mid_turn_and_while_a_callback_replies_itself(how: str) -> None:
    bench, ref = deferring(Told)
    bench.prompt("b")
    bench.hold.add("handle_event")
    bench.event(["reply", ref, "by the agent"])
    bench.finish()
    assert bench.phase() is Phase.HANDLING
    bench.hold.clear()
    answer = reply(bench, ref) if how == "replied" else bench.cancel(ref)
    assert answer == {how: True}, "the callback that runs may yet reply, and comes second"
    bench.release()
    assert bench.outcomes[ref].ok is (how == "replied") and bench.state[-1] == [ref, how]
    bench.kill()
    assert bench.state[-1] == [ref, how] and ref not in bench.core.ledger.deferred


@pytest.mark.case(447)
def test_a_request_that_the_running_callback_has_closed_is_not_closed_again() -> None:
    bench, ref = deferring(Told, deadline=1060.0)
    bench.prompt("b")
    bench.hold.add("handle_event")
    bench.now = 1060.0
    bench.fire(f"_deadline-{ref}")
    bench.event(["note"])
    bench.finish()
    assert bench.phase() is Phase.HANDLING and ref in bench.core.ledger.deferred
    assert reply(bench, ref) == {"replied": False}
    bench.hold.clear()
    bench.release()
    assert bench.code(ref) == "expired"


@pytest.mark.case(447)
def test_closing_an_exclusive_request_lets_the_prompts_that_waited_run() -> None:
    bench, ref = deferring(ToldExclusive)
    second = bench.prompt("b")
    assert bench.task is None
    bench.cancel(ref)
    assert bench.running().request.ref == second and bench.state[-1] == [ref, "cancelled"]


def test_a_build_that_does_not_know_of_closing_tells_of_an_effect() -> None:
    bench, ref = deferring(Told)
    reply(bench, ref)
    (notice,) = [n for _, body in bench.journal for n in decode_record(body).change.notices or ()]
    assert structs.replace(notice, closed=None) == Notice(effect={"kind": "deferred", "target": ref}, error=notice.error)
    assert notice.error.code == "replied"


@pytest.mark.case(447)
def test_one_that_its_asker_withdraws_is_closed_too() -> None:
    bench, ref = deferring(Told, lane="peer-inbox", sender="boss", origin="1.7.0")
    bench.event({"withdraws": "1.7.0"}, "peer-answer", sender="boss", origin="1.8.0", tag="1.7.0")
    assert bench.code(ref) == "cancelled" and bench.state[-1] == [ref, "withdrawn"] and bench.core.ledger.deferred == {}


# --- bounds -----------------------------------------------------------------------------------------------------------
@pytest.mark.case(448)
@pytest.mark.parametrize(
    ("exclusive", "defer_s", "deadline", "until"),
    [
        (False, None, None, None),
        (False, 60.0, None, 1060.0),
        (False, 60.0, 1010.0, 1010.0),
        (False, 60.0, 5000.0, 1060.0),
        (True, None, None, 1000.0 + EXCLUSIVE_S),
        (True, None, 5000.0, 5000.0),
        (True, 60.0, None, 1060.0),
    ],
)
def test_a_deferred_request_is_open_for_so_long(
    exclusive: bool, defer_s: float | None, deadline: float | None, until: float | None
) -> None:
    bench = Rig(ToldExclusive if exclusive else Told, defer_s=defer_s)
    ref = bench.prompt("a", deadline=deadline)
    bench.finish()
    entry = bench.core.ledger.deferred[ref]
    assert (entry.since, entry.until) == (1000.0, until)
    timers = bench.core.ledger.timers
    assert [timer.due for timer in timers.values()] == ([] if until is None else [until])
    if until is None:
        return
    bench.kill()
    bench.now = until
    bench.fire(f"_deadline-{ref}")
    error = bench.error(ref)
    assert error.code == "expired" and ("open_s" in error.details) is (until != deadline)
    assert bench.state[-1] == [ref, "expired"] and bench.core.ledger.timers == {}


@pytest.mark.case(448)
def test_a_reply_removes_the_timer_of_the_bound() -> None:
    bench, ref = deferring(Exclusive)
    bench.event(["reply", ref, "x"])
    assert bench.core.ledger.timers == {} and bench.effects(CancelTimer) == [CancelTimer(id=f"_deadline-{ref}")]


@pytest.mark.case(448)
@pytest.mark.parametrize("exclusive", [False, True])
def test_requests_that_an_older_build_has_deferred_count_from_this_builds_first_record(exclusive: bool) -> None:
    bench, ref = deferring(Told)
    old = Deferred(caller=Caller(ref=ref), turn=1, exclusive=exclusive)
    bench._store(bench._record("rest", change=Change(deferred={ref: old})))
    bench.now = 9000.0
    bench.kill()
    entry = bench.core.ledger.deferred[ref]
    until = 9000.0 + EXCLUSIVE_S if exclusive else None
    assert (entry.since, entry.until) == (9000.0, until)
    assert [timer.due for timer in bench.core.ledger.timers.values()] == ([until] if exclusive else [])
    kinds = bench.kinds
    bench.now = 9500.0
    bench.kill()
    assert bench.core.ledger.deferred[ref] == entry and bench.kinds == [*kinds, "activated"], "once"


# --- a second one -----------------------------------------------------------------------------------------------------
@pytest.mark.case(449)
def test_a_second_exclusive_request_is_an_error_that_names_the_first() -> None:
    class Again(ToldExclusive):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            return Defer([*state, ref], exclusive=True)

    bench, ref = deferring(Again)
    bench.event(["prompt", "synthesis"])
    bench.finish()
    turn = bench.core.ledger.history[-1]
    assert turn.error is not None and turn.error.code == "bad_return" and turn.error.details == {"open": ref}
    assert f"request {ref} is open" in turn.error.message
    assert bench.state == [ref] and list(bench.core.ledger.deferred) == [ref]
    assert reply(bench, ref) == {"replied": True}


@pytest.mark.case(449)
def test_one_that_follows_the_reply_to_the_first_is_none() -> None:
    class Handing(ToldExclusive):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            if state:
                self.reply(state[0], "at last")
            return Defer([ref], exclusive=True)

    bench, ref = deferring(Handing)
    bench.event(["prompt", "synthesis"])
    bench.finish()
    assert bench.answer(ref) == "at last" and bench.core.ledger.history[-1].error is None
    assert bench.core.ledger.deferred == {}, "nobody waits for a prompt of its own"


# --- seen -------------------------------------------------------------------------------------------------------------
@pytest.mark.case(446)
def test_what_is_open_is_shown_the_oldest_first() -> None:
    bench, first = deferring(Told, deadline=1060.0, sender="boss", lane="peer-inbox", origin="1.1.0")
    bench.now = 1010.0
    second = bench.prompt("b")
    bench.finish()
    (one, two) = open_requests(bench.core.ledger)
    assert (one.ref, one.sender, one.since, one.exclusive) == (first, "boss", "1970-01-01T00:16:40.000000Z", False)
    assert one.deadline == "1970-01-01T00:17:40.000000Z"
    assert (two.ref, two.sender, two.deadline) == (second, None, None)
