"""Halt and resume: cases 39 to 50."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Halt, Proceed
from agentmesh.registry_values import Restart
from agentmesh.turn.values import Phase
from mesh.turn.agents import Halting
from mesh.turn.harness import Rig, agent


def halted() -> Rig:
    bench = Rig(Halting)
    bench.prompt("halt")
    bench.finish()
    return bench


@pytest.mark.case(39)
def test_a_halt_dispatches_nothing_further() -> None:
    bench = Rig(Halting)
    bench.prompt("halt")
    waiting = bench.prompt("more")
    bench.finish()
    assert bench.halted() and bench.phase() is Phase.IDLE and bench.task is None
    assert bench.queued == 1 and waiting not in bench.outcomes


@pytest.mark.case(40)
def test_resume_runs_what_waits() -> None:
    bench = halted()
    ref = bench.prompt("more")
    assert bench.resume() == {"resumed": True}
    assert not bench.halted()
    bench.finish()
    assert bench.answer(ref) == "MORE"


def test_resume_is_answered_after_its_record() -> None:
    bench = halted()
    bench.auto_commit = False
    assert bench.resume("r") is None
    bench.commit()
    assert bench.answers["r"] == {"resumed": True}


@pytest.mark.case(582)
@pytest.mark.parametrize("failed", [False, True])
def test_a_resume_that_is_asked_again_is_answered_no_sooner_than_the_first(failed: bool) -> None:
    bench = halted()
    if failed:
        bench = Rig(agent(handle_response=lambda *_: 1 / 0), restart=Restart(max=0))
        bench.prompt("crash")
        bench.finish()
        assert bench.phase() is Phase.FAILED
    bench.prompt("more")
    bench.auto_commit = False
    bench.resume("r")
    assert bench.resume("again") is None, "the agent is as it was until the record stands"
    bench.commit()
    bench.auto_commit = True
    if bench.appending is not None:
        bench.commit()
    assert bench.phase() is Phase.TURN, "and the turn that follows keeps nobody waiting"
    assert (bench.answers["r"], bench.answers["again"]) == ({"resumed": True}, {"resumed": False})


@pytest.mark.case(41)
def test_resume_without_a_halt_changes_nothing() -> None:
    bench = Rig(Halting)
    records = len(bench.journal)
    assert bench.resume("idle") == {"resumed": False}
    bench.prompt("a")
    assert bench.resume("processing") == {"resumed": False}
    assert len(bench.journal) == records
    bench.finish()
    assert not bench.halted()


def test_a_resume_that_meets_a_halt_under_way_waits_for_its_record() -> None:
    bench = Rig(Halting)
    bench.prompt("halt")
    waiting = bench.prompt("more")
    bench.auto_commit = False
    bench.finish()
    assert bench.resume("r") is None, "answered for a halt that no record shows yet"
    bench.auto_commit = True
    bench.commit()
    bench.drain()
    assert bench.answers["r"] == {"resumed": True}
    assert bench.answer(waiting) == "MORE"


@pytest.mark.case(42)
def test_events_are_handled_while_halted() -> None:
    bench = halted()
    bench.event("note")
    assert bench.state == ["halt", "note"]


@pytest.mark.case(43)
def test_a_prompt_born_of_an_event_waits_while_halted() -> None:
    bench = halted()
    bench.event("prompt:later")
    assert bench.task is None and bench.queued == 1
    bench.resume()
    assert bench.running().prompt == "later"


@pytest.mark.case(44)
def test_a_chained_prompt_survives_a_halt_in_the_drain() -> None:
    bench = Rig(Halting)
    bench.prompt("chain")
    bench.prompt("queued")
    bench.event("halt")
    bench.finish()
    assert bench.halted() and bench.task is None
    bench.kill()  # ... and a takeover
    assert bench.halted() and bench.task is None
    bench.resume()
    bench.drain()
    assert bench.prompts == ["chain", "chained", "queued"]


@pytest.mark.case(45)
def test_an_event_halts_an_idle_agent() -> None:
    bench = Rig(Halting)
    bench.event("halt")
    assert bench.halted()
    bench.prompt("a")
    assert bench.task is None


@pytest.mark.case(46)
def test_handle_error_may_halt_and_the_asker_gets_the_original_error() -> None:
    bench = Rig(agent(handle_error=lambda self, ref, error, state: Halt([*state, error.code])))
    ref = bench.prompt("a")
    bench.fail("backend_error", "quota")
    assert bench.halted() and bench.state == ["backend_error"]
    assert bench.error(ref).message == "quota"


@pytest.mark.case(47)
@pytest.mark.parametrize("by", ["response", "event", "deferred event", "pre_turn", "error"])
def test_post_run_runs_once_for_a_halt(by: str) -> None:
    class ByAnything(Halting):
        def pre_turn(self, prompt: str, state: list[Any]) -> Any:
            return Halt(state) if prompt == "refuse" else Proceed(prompt, state)

        def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
            return Halt(state)

    bench = Rig(ByAnything)
    if by == "event":
        bench.event("halt")
    elif by == "pre_turn":
        bench.prompt("refuse")
    elif by == "error":
        bench.prompt("a")
        bench.fail()
    elif by == "deferred event":
        bench.prompt("a")
        bench.event("halt")
        bench.finish()
    else:
        bench.prompt("halt")
        bench.finish()
    assert bench.halted()
    assert bench.calls.count("post_run") == 1
    assert len(bench.mails("monitor")) == 1


@pytest.mark.case(48)
def test_a_second_halt_does_not_run_post_run_again_until_a_resume() -> None:
    bench = Rig(Halting)
    bench.prompt("halt")
    bench.event("halt")
    bench.finish()
    bench.event("halt")
    assert bench.calls.count("post_run") == 1
    assert len(bench.facts("halted")) == 1
    bench.resume()
    bench.event("halt")
    assert bench.calls.count("post_run") == 2


@pytest.mark.case(49)
def test_post_run_does_not_run_on_stop() -> None:
    bench = Rig(Halting)
    bench.prompt("a")
    bench.stop()
    assert "post_run" not in bench.calls
    bench = halted()
    bench.stop()
    assert bench.calls.count("post_run") == 1


@pytest.mark.case(50)
def test_post_run_precedes_the_halted_telemetry() -> None:
    bench = halted()
    assert bench.trail.index("post_run") < bench.trail.index("emit halted")


@pytest.mark.case(50)
def test_a_raising_post_run_leaves_the_halt_complete() -> None:
    def boom(self: Any, state: Any) -> None:
        raise RuntimeError("boom")

    bench = Rig(type("Boom", (Halting,), {"post_run": boom}))
    ref = bench.prompt("halt")
    bench.event("note")
    bench.finish()
    assert bench.halted() and len(bench.facts("halted")) == 1
    assert bench.answer(ref) == "HALT"
    assert bench.state == ["halt", "note"]


def test_a_turn_killed_before_its_halt_committed_halts_once_in_the_journal() -> None:
    bench = Rig(Halting)
    ref = bench.prompt("halt")
    bench.auto_commit = False
    bench.finish()
    bench.auto_commit = True
    bench.kill()
    assert not bench.halted() and ref not in bench.outcomes
    bench.finish()
    assert bench.halted() and len(bench.mails("monitor")) == 1
