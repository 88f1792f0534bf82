"""Start, init, pre_run: cases 1 to 12 as far as the machine decides them."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Idle, Init
from agentmesh.turn import state_of
from agentmesh.turn.values import Phase, Unreadable
from mesh.turn.harness import Rig, agent, error


def boom(*_: Any) -> Any:
    raise RuntimeError("boom")


@pytest.mark.case(1)
def test_a_started_agent_is_idle() -> None:
    bench = Rig()
    assert (state_of(bench.core), bench.queued, bench.core.active, bench.halted()) == ("idle", 0, None, False)


@pytest.mark.case(5)
def test_options_arrive_unchanged_in_init_agent() -> None:
    bench = Rig(agent(init_agent=lambda self, options: Init([options])), options={"a": {"b": [1, None]}})
    assert bench.state == [{"a": {"b": [1, None]}}]


@pytest.mark.case(6)
@pytest.mark.parametrize(("hook", "code"), [("init_agent", "init_failed"), ("start_session", "backend_start_failed")])
def test_errors_of_agent_and_backend_are_told_apart(hook: str, code: str) -> None:
    bench = Rig(agent(**{hook: boom}))
    assert bench.phase() is Phase.OVER
    assert bench.reason().code == code


@pytest.mark.case(7)
def test_a_wrong_return_of_init_agent_shows_its_type() -> None:
    bench = Rig(agent(init_agent=lambda self, options: 42))
    assert bench.reason().code == "init_failed"
    assert "int" in bench.reason().message


def test_an_init_that_failed_calls_no_terminate_agent() -> None:
    bench = Rig(agent(init_agent=boom, terminate_agent=lambda self, reason, state: None))
    assert bench.calls == ["init_agent"]


@pytest.mark.case(8)
def test_init_emits_a_change_from_nothing_to_idle() -> None:
    assert Rig().facts("state_changed") == [{"from": None, "to": "idle"}]


@pytest.mark.case(9)
def test_pre_run_runs_once_before_any_turn_and_its_state_is_kept() -> None:
    bench = Rig(agent(pre_run=lambda self, state: [*state, "ready"]), hold=("pre_run",))
    bench.prompt("a")
    assert bench.prompts == [], "a turn began before pre_run"
    bench.release()
    bench.drain()
    bench.kill()
    assert bench.calls.count("pre_run") == 1
    assert bench.state == ["ready", "A"]


@pytest.mark.case(10)
def test_a_slow_pre_run_delays_neither_the_start_nor_loses_mail() -> None:
    bench = Rig(
        agent(pre_run=lambda self, state: state, handle_event=lambda self, event, state: Idle([*state, event])),
        hold=("pre_run",),
    )
    assert bench.shown() == "running", "start_agent would still wait"
    ref = bench.prompt("a")
    bench.event("e")
    bench.release()
    bench.drain()
    assert bench.answer(ref) == "A"
    assert bench.state == ["e", "A"]


@pytest.mark.case(11)
def test_an_error_from_pre_run_stops_the_agent() -> None:
    reasons: list[Any] = []
    bench = Rig(
        agent(
            pre_run=lambda self, state: ValueError("no disk"),
            terminate_agent=lambda self, reason, state: reasons.append(reason),
        )
    )
    assert bench.phase() is Phase.OVER
    assert [(r.code, "no disk" in r.message) for r in reasons] == [("pre_run_failed", True)]


@pytest.mark.case(12)
def test_a_raising_pre_run_stops_the_agent() -> None:
    reasons: list[Any] = []
    bench = Rig(agent(pre_run=boom, terminate_agent=lambda self, reason, state: reasons.append(reason)))
    assert bench.phase() is Phase.OVER
    assert [(r.code, "boom" in r.message) for r in reasons] == [("pre_run_crashed", True)]


def test_pre_run_runs_again_where_it_had_not_committed() -> None:
    bench = Rig(agent(pre_run=lambda self, state: [*state, "ready"]), hold=("pre_run",))
    bench.kill()
    bench.release()
    assert bench.state == ["ready"]
    assert bench.calls.count("init_agent") == 1


def test_init_agent_runs_again_where_it_had_not_committed() -> None:
    bench = Rig(hold=("start_session",))
    bench.kill()
    bench.release()
    assert bench.calls.count("init_agent") == 2
    assert bench.phase() is Phase.IDLE


def test_activate_agent_runs_each_time_a_process_takes_the_agent_up() -> None:
    bench = Rig(agent(activate_agent=lambda self, state: self.notify("peer", len(state))))
    bench.prompt("a")
    bench.drain()
    bench.kill()
    assert bench.calls.count("activate_agent") == 2
    assert [mail.event for mail in bench.mails("peer")] == [0, 1]


def test_a_session_repaired_on_resume_is_journaled() -> None:
    bench = Rig(agent(resume_session=lambda self: "repaired"))
    bench.kill()
    assert bytes(bench.core.ledger.session) == b'"repaired"'
    assert bench.phase() is Phase.IDLE


def test_a_state_that_cannot_be_read_loses_nothing_and_is_visible() -> None:
    bench = Rig(hold=("resume_session",))
    ref = bench.prompt("a")
    bench.kill()
    bench.held.clear()
    bench.feed(Unreadable(error("bad_state", "field x")))
    assert bench.phase() is Phase.FAILED and ref not in bench.outcomes
    assert bench.shown() == "failed"
    bench.hold.clear()
    assert bench.resume() == {"resumed": True}
    bench.drain()
    assert bench.answer(ref) == "A"
