"""Requests kept open beyond their turn: case 200."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Answer, Defer, Halt, Idle, Prompt
from agentmesh.backend import Response
from agentmesh.errors import BackendError
from agentmesh.records import CancelTimer, SetTimer
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
