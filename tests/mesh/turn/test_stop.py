"""Stop, and crashes of the agent's own code: cases 97 to 101 and 229, and every phase in which a stop can come."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Defer, Halt, Idle, Proceed, Prompt
from agentmesh.backend import Response
from agentmesh.records import CancelTimer, Resolve
from agentmesh.registry_values import Restart
from agentmesh.turn.lifecycle import MAX_BACKOFF_S, SWEEP_BATCH
from agentmesh.turn.values import BackoffOver, Phase
from agentmesh.wire import PromptBody
from mesh.turn.harness import Plain, Rig, agent


@pytest.mark.case(97)
@pytest.mark.case(235)
def test_a_stop_ends_in_a_tombstone_that_keeps_what_belongs_to_the_name() -> None:
    bench = Rig(agent(handle_response=lambda self, ref, response, state: Idle([self.notify_after(60, "x", id="t")])))
    bench.prompt("a", lane="peer-inbox", sender="p", origin="1.7.0")
    bench.finish()
    bench.stop()
    assert bench.phase() is Phase.OVER and bench.kinds == ["tombstone"]
    assert bench.shown() == "stopped"
    ledger = bench.folded()
    assert ledger is not None and ledger.phase == "over"
    assert ledger.origins == {"p/peer-inbox": "1.7.0"} and ledger.positions == {"peer-inbox": 1}
    assert ledger.timers == {} and ledger.effects == {} and bytes(ledger.state) == b""
    assert bench.effects(CancelTimer) == [CancelTimer(id="t")], "its timer would still fire"


@pytest.mark.case(98)
@pytest.mark.case(99)
@pytest.mark.parametrize("failing", ["", "terminate_agent", "terminate_session"])
def test_a_stop_kills_the_task_then_tells_the_agent_then_the_backend(failing: str) -> None:
    reasons: list[Any] = []

    def fail(*_: Any) -> None:
        raise RuntimeError("boom")

    callbacks: dict[str, Any] = {"terminate_agent": lambda self, reason, state: reasons.append((reason.message, state))}
    if failing:
        callbacks[failing] = fail
    bench = Rig(agent(**callbacks))
    ref = bench.prompt("a")
    bench.trail.clear()
    bench.stop("enough")
    assert [t for t in bench.trail if not t.startswith("emit")] == [
        "kill",
        "terminate_agent",
        "terminate_session",
        "status stopped",
    ]
    assert bench.phase() is Phase.OVER and bench.code(ref) == "stopped"
    if failing != "terminate_agent":
        assert reasons == [("enough", [])]


def test_hands_do_not_work_in_terminate_agent() -> None:
    bench = Rig(agent(terminate_agent=lambda self, reason, state: self.notify("peer", 1)))
    bench.stop()
    assert bench.mails("peer") == [] and bench.phase() is Phase.OVER


@pytest.mark.case(100)
def test_the_name_can_be_used_again_and_the_new_life_sees_nothing_of_the_old() -> None:
    bench = Rig(agent(handle_event=lambda self, event, state: Idle([*state, event])))
    bench.prompt("a")
    bench.finish()
    incarnation = bench.core.ledger.incarnation
    bench.stop()
    late = bench.post("inbox", prompt=PromptBody(prompt="for the old one"), for_life=incarnation)
    bench.post("notify", event="for the old one", for_life=incarnation)
    bench.new_life()
    assert bench.state == [] and bench.core.ledger.turn == 0
    assert bench.code(late.ref) == "stopped"
    fresh = bench.prompt("b")
    bench.finish()
    assert bench.answer(fresh) == "B" and bench.state == ["B"]


class Keeper(Plain):
    """Defers `later`, tries errors again, and is slow everywhere."""

    def pre_turn(self, prompt: str, state: list[Any]) -> Any:
        return Proceed(prompt, state)

    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        return Defer(state) if response.text == "LATER" else Idle([*state, response.text])

    def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
        return Prompt("again", state)

    def handle_event(self, event: Any, state: list[Any]) -> Any:
        return Idle([*state, event])

    def post_turn(self, outcome: Any, ref: str, state: list[Any]) -> Any:
        return state

    def activate_agent(self, state: list[Any]) -> Any:
        pass

    def pre_run(self, state: list[Any]) -> Any:
        return state


@pytest.mark.case(101)
def test_every_unanswered_request_ends_with_stopped() -> None:
    bench = Rig(Keeper)
    deferred = bench.prompt("later", deadline=5000.0)
    bench.finish()
    retried = bench.prompt("x")
    queued = bench.prompt("y")
    bench.fail()
    unseen = bench.post("inbox", prompt=PromptBody(prompt="not delivered to the owner"))
    bench.stop()
    refs = (deferred, retried, queued, unseen.ref)
    assert [bench.code(ref) for ref in refs] == ["stopped"] * 4
    assert bench.phase() is Phase.OVER
    assert CancelTimer(id=f"_deadline-{deferred}") in bench.effects(CancelTimer)


SLOW = ("init_agent", "start_session", "activate_agent", "pre_run", "pre_turn", "handle_response", "post_turn", "handle_event")


@pytest.mark.case(98)
@pytest.mark.parametrize("hook", SLOW)
def test_a_stop_during_a_callback_waits_for_it_and_then_stops(hook: str) -> None:
    bench = Rig(Keeper, hold=(hook,))
    refs = [bench.prompt("a"), bench.prompt("b")]
    if bench.task is not None:
        bench.event("e")
        bench.finish()
    assert bench.held[0].hook == hook
    bench.stop()
    assert bench.phase() is not Phase.OVER
    bench.hold.clear()
    bench.release()
    bench.drain()
    assert bench.phase() is Phase.OVER
    assert set(bench.outcomes) == set(refs)


@pytest.mark.case(98)
@pytest.mark.parametrize("when", ["committing", "restarting", "failed", "side record", "halted", "twice"])
def test_a_stop_in_the_other_phases(when: str) -> None:
    class Weak(Keeper):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            if response.text == "HALT":
                return Halt(state)
            if response.text == "CRASH":
                raise RuntimeError("boom")
            return Idle(state)

    bench = Rig(Weak, restart=Restart(max=0 if when == "failed" else 5))
    bench.auto_restart = False
    ref = bench.prompt({"restarting": "crash", "failed": "crash", "halted": "halt"}.get(when, "a"))
    other = bench.prompt("b")
    if when in ("committing", "side record"):
        bench.auto_commit = False
    if when == "side record":
        bench.cancel(other)
    else:
        bench.finish()
    bench.stop()
    bench.stop()
    bench.auto_commit = True
    bench.drain()
    assert bench.phase() is Phase.OVER
    assert set(bench.outcomes) == {ref, other}
    assert bench.kinds == ["tombstone"]


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("after", range(4))
def test_a_stop_is_finished_by_another_owner(landed: bool, after: int) -> None:
    bench = Rig(Keeper)
    deferred = bench.prompt("later")
    bench.finish()
    refs = [deferred, bench.prompt("a"), bench.prompt("b")]
    bench.auto_commit = False
    bench.auto_done = False
    bench.stop()
    for _ in range(after):
        if bench.appending is not None:
            bench.commit()
        bench.do_effects()
    bench.auto_commit = bench.auto_done = True
    bench.kill(landed=landed)
    ended = bench.folded()
    assert ended is not None
    if ended.phase not in ("stopped", "over"):
        bench.stop()
    assert set(bench.outcomes) == set(refs)
    assert {bench.code(ref) for ref in refs} == {"stopped"}


def test_a_full_lane_is_swept_in_parts() -> None:
    bench = Rig()
    running = bench.prompt("running")
    mails = [bench.post("inbox", prompt=PromptBody(prompt=str(n))) for n in range(2 * SWEEP_BATCH + 1)]
    bench.auto_done = False
    bench.stop()
    bench.auto_done = True
    bench.do_effects()
    assert bench.phase() is Phase.OVER
    assert set(bench.outcomes) == {running, *(m.ref for m in mails)}


def test_a_repeated_prompt_in_the_sweep_gets_no_second_outcome() -> None:
    bench = Rig()
    first = bench.prompt("a", lane="peer-inbox", sender="p", origin="1.5.0", tag="t")
    again = bench.post("peer-inbox", prompt=PromptBody(prompt="a"), sender="p", origin="1.5.0", tag="t")
    bench.stop()
    assert bench.code(first) == "stopped"
    assert again.ref not in bench.outcomes
    assert len(bench.mails("p")) == 1


def test_the_tombstone_waits_for_every_effect() -> None:
    bench = Rig()
    bench.prompt("a", reply_to="_INBOX.1")
    bench.auto_done = False
    bench.stop()
    assert bench.phase() is Phase.STOPPED
    bench.do_effects()
    assert bench.phase() is Phase.OVER


# --- crashes of the agent's own code --------------------------------------------------------------------------------
class Crashing(Plain):
    def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
        if response.text.startswith("CRASH"):
            raise RuntimeError("boom")
        return Idle([*state, response.text])

    def terminate_agent(self, reason: Any, state: list[Any]) -> Any:
        pass


@pytest.mark.case(229)
def test_an_agent_that_crashes_too_often_fails_visibly_and_resume_revives_it() -> None:
    bench = Rig(Crashing, max_attempts=100, restart=Restart(max=2, within_s=60))
    ref = bench.prompt("crash")
    for _ in range(3):
        bench.finish()
    assert bench.phase() is Phase.FAILED and bench.task is None
    assert bench.shown() == "failed" and "3 times" in bench.reason().message
    waiting = bench.prompt("b")
    bench.event("kept")
    bench.kill()
    assert bench.phase() is Phase.FAILED and "resume_session" not in bench.calls[-1:]
    assert ref not in bench.outcomes
    assert bench.cancel(ref) == {"cancelled": True}
    assert bench.phase() is Phase.FAILED
    assert bench.resume() == {"resumed": True}
    assert bench.shown() == "running"
    bench.finish()
    assert bench.answer(waiting) == "B"


@pytest.mark.case(229)
def test_crashes_further_apart_than_the_window_are_forgiven() -> None:
    bench = Rig(Crashing, max_attempts=100, restart=Restart(max=2, within_s=60))
    bench.prompt("crash")
    for _ in range(10):
        bench.finish()
        bench.now += 31
    assert bench.phase() is Phase.TURN


@pytest.mark.case(229)
def test_the_default_is_five_restarts_in_a_minute_with_growing_back_off() -> None:
    bench = Rig(Crashing, max_attempts=100)
    bench.prompt("crash")
    for _ in range(6):
        bench.finish()
    assert bench.phase() is Phase.FAILED
    assert bench.backoffs == [0.1, 0.2, 0.4, 0.8, 1.6] and max(bench.backoffs) <= MAX_BACKOFF_S


def test_a_temporary_agent_ends_with_its_first_crash() -> None:
    bench = Rig(Crashing, restart=Restart(policy="temporary"))
    ref = bench.prompt("crash")
    bench.finish()
    assert bench.phase() is Phase.OVER and bench.code(ref) == "stopped"


def test_after_a_crash_the_prompt_stands_where_it_stood() -> None:
    bench = Rig(Crashing, max_attempts=2)
    first, second = bench.prompt("crash"), bench.prompt("b")
    bench.auto_restart = False
    bench.finish()
    assert bench.phase() is Phase.RESTARTING and bench.calls[-1] == "terminate_agent"
    third = bench.prompt("c")
    bench.event("e")
    bench.feed(BackoffOver())
    assert bench.running().prompt == "crash"
    bench.auto_restart = True
    bench.drain()
    assert list(bench.outcomes) == [first, second, third]
    assert bench.code(first) == "failed"


def test_a_crash_that_no_record_tells_of_yet_is_charged_once_it_is_tried_again() -> None:
    bench = Rig(Crashing, max_attempts=2)
    ref = bench.prompt("crash")
    bench.auto_commit = False
    bench.finish()
    bench.auto_commit = True
    bench.kill(landed=True)
    bench.finish()
    assert bench.code(ref) == "failed"


def test_a_chained_prompt_that_crashes_is_given_up_too() -> None:
    class Chained(Crashing):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            if response.text == "A":
                return Prompt("crash", state)
            return super().handle_response(ref, response, state)

    bench = Rig(Chained, max_attempts=2)
    bench.prompt("a")
    bench.prompt("b")
    bench.drain()
    assert bench.prompts == ["a", "crash", "crash", "b"]
    assert bench.core.ledger.next is None and bench.core.ledger.attempts == {}


def test_a_charged_prompt_that_is_cancelled_leaves_no_charge_behind() -> None:
    bench = Rig(Crashing, restart=Restart(max=0))
    ref = bench.prompt("crash")
    bench.finish()
    assert bench.core.ledger.attempts == {f"inbox:{ref}": 1}
    bench.cancel(ref)
    assert bench.code(ref) == "cancelled" and bench.core.ledger.attempts == {}


def test_an_outcome_of_the_stop_names_the_reason() -> None:
    bench = Rig()
    ref = bench.prompt("a")
    bench.stop("the operator said so")
    assert bench.error(ref).code == "stopped"
    assert len(bench.effects(Resolve)) == 1


@pytest.mark.case(97)
def test_the_fact_of_a_stop_says_why_and_at_which_turn() -> None:
    bench = Rig(Plain)
    bench.prompt("a")
    bench.finish()
    bench.stop()
    (fact,) = [e for e in bench.emits if e.kind == "stopped"]
    assert (fact.fields["reason"], fact.turn) == ("stopped", 1)
