"""interrupt, watchdog, crash, errors and decisions: cases 64 to 79."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw

from agentmesh.agent import Halt, Idle, Prompt
from agentmesh.turn import state_of
from agentmesh.turn.values import Interrupt, Phase, Watchdog
from mesh.turn.harness import Plain, Rig, agent, error


@pytest.mark.case(64)
def test_interrupt_kills_the_task_and_answers_interrupted() -> None:
    bench = Rig()
    ref = bench.prompt("a")
    assert bench.interrupt() == {"interrupted": True}
    assert bench.task is None and "kill" in bench.trail
    assert bench.code(ref) == "interrupted" and state_of(bench.core) == "idle"


@pytest.mark.case(65)
@pytest.mark.parametrize("decision", ["halt", "prompt"])
def test_handle_error_sees_the_interruption_and_decides(decision: str) -> None:
    seen: list[str] = []

    def decide(self: Any, ref: str, error: Any, state: Any) -> Any:
        seen.append(error.code)
        return Halt(state) if decision == "halt" else Prompt("again", state)

    bench = Rig(agent(handle_error=decide))
    ref = bench.prompt("a")
    bench.interrupt()
    assert seen == ["interrupted"]
    assert bench.code(ref) == "interrupted", "an interruption ends the request at once"
    assert bench.halted() is (decision == "halt")
    if decision == "prompt":
        assert bench.running().request.ref != ref
        bench.finish()
        assert list(bench.outcomes) == [ref]


@pytest.mark.case(66)
def test_interrupt_on_an_idle_agent_does_nothing() -> None:
    bench = Rig(agent(handle_error=lambda self, ref, error, state: Halt(state)))
    records = len(bench.journal)
    assert bench.interrupt() == {"interrupted": False}
    assert (bench.phase(), len(bench.journal), bench.halted()) == (Phase.IDLE, records, False)


def test_interrupt_of_another_ref_touches_nothing() -> None:
    bench = Rig()
    ref = bench.prompt("a")
    assert bench.interrupt("other", ref="99") == {"interrupted": False}
    assert bench.task is not None
    assert bench.interrupt("mine", ref=ref) == {"interrupted": True}
    assert bench.code(ref) == "interrupted"


@pytest.mark.case(67)
def test_after_an_interrupt_the_next_prompt_runs() -> None:
    bench = Rig()
    bench.prompt("a")
    following = bench.prompt("b")
    bench.interrupt()
    bench.finish()
    assert bench.answer(following) == "B"


@pytest.mark.case(68)
def test_an_interrupt_emits_the_error_telemetry() -> None:
    bench = Rig()
    ref = bench.prompt("a")
    bench.interrupt()
    assert [(f["ref"], f["reason"]) for f in bench.facts("prompt_error")] == [(ref, "interrupted")]


@pytest.mark.case(69)
def test_a_turn_that_outlives_the_watchdog_is_killed() -> None:
    seen: list[str] = []

    def keep(self: Any, ref: str, error: Any, state: Any) -> Any:
        seen.append(error.code)
        return Idle(state)

    bench = Rig(agent(handle_error=keep), watchdog_s=5.0)
    ref = bench.prompt("a")
    bench.watchdog()
    assert bench.task is None and "kill" in bench.trail
    assert bench.code(ref) == "timeout" and seen == ["timeout"]


def test_what_a_killed_turn_has_spent_is_in_its_outcome_and_counts() -> None:
    for kill in (Interrupt(usage={"input_tokens": 7}), Watchdog(1, usage={"input_tokens": 7})):
        bench = Rig()
        ref = bench.prompt("a")
        bench.feed(kill)
        assert bench.outcomes[ref].usage == {"input_tokens": 7}
        assert bench.core.work.usage == {"input_tokens": 7}


@pytest.mark.case(70)
def test_the_watchdog_is_ten_minutes_and_starts_again_with_each_turn() -> None:
    bench = Rig(agent(handle_response=lambda self, ref, response, state: Prompt("on", state)))
    bench.prompt("a")
    old = bench.running().number
    bench.finish()
    assert [turn.watchdog_s for turn in bench.turns] == [600.0, 600.0]
    bench.feed(Watchdog(old))
    assert bench.task is not None, "the watchdog of an earlier turn killed this one"


@pytest.mark.case(71)
@pytest.mark.case(72)
def test_a_task_that_crashed_is_reported_and_the_agent_survives() -> None:
    bench = Rig()
    ref = bench.prompt("a")
    bench.fail("task_crashed", "KeyError: 'x'")
    assert bench.error(ref) == error("task_crashed", "KeyError: 'x'")
    assert bench.backoffs == []
    following = bench.prompt("b")
    bench.finish()
    assert bench.answer(following) == "B"


@pytest.mark.case(74)
@pytest.mark.case(75)
@pytest.mark.parametrize("code", ["backend_error", "no_terminal_event"])
def test_the_reason_reaches_the_caller_and_handle_error(code: str) -> None:
    seen: list[Any] = []

    def keep(self: Any, ref: str, error: Any, state: Any) -> Any:
        seen.append((ref, error.code, error.message))
        return Idle(state)

    bench = Rig(agent(handle_error=keep))
    ref = bench.prompt("a")
    bench.fail(code, "why")
    assert bench.error(ref) == error(code, "why")
    assert seen == [(ref, code, "why")]


# --- retries --------------------------------------------------------------------------------------------------------
class Retrying(Plain):
    """Tries a failed request again."""

    def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
        return Prompt("again", [*state, ref])

    def post_turn(self, outcome: Any, ref: str, state: list[Any]) -> Any:
        return [*state, "ok" if outcome.ok else outcome.error.code]


@pytest.mark.case(76)
def test_a_retry_keeps_ref_and_caller_and_gives_one_outcome() -> None:
    bench = Rig(Retrying)
    ref = bench.prompt("a", reply_to="_INBOX.1", stream_to="_INBOX.2")
    bench.fail()
    assert ref not in bench.outcomes
    assert bench.running().request.ref == ref and bench.running().stream_to == "_INBOX.2"
    bench.fail("timeout")
    bench.finish()
    assert bench.answer(ref) == "AGAIN"
    assert bench.prompts == ["a", "again", "again"]
    assert bench.state == [ref, "backend_error", ref, "timeout", "AGAIN", "ok"]


@pytest.mark.case(76)
def test_a_retry_survives_a_takeover_with_its_caller() -> None:
    bench = Rig(Retrying)
    ref = bench.prompt("a", reply_to="_INBOX.1")
    bench.prompt("b")
    bench.fail()
    bench.kill()
    assert bench.running().request.ref == ref
    bench.drain()
    assert bench.answer(ref) == "AGAIN"
    assert bench.prompts == ["a", "again", "again", "b"]


@pytest.mark.case(76)
def test_a_retry_of_a_chained_turn_still_answers_nobody() -> None:
    class Chained(Retrying):
        def handle_response(self, ref: str, response: Any, state: list[Any]) -> Any:
            return Prompt("chained", state) if response.text == "A" else Idle(state)

    bench = Rig(Chained)
    ref = bench.prompt("a")
    bench.finish()
    bench.fail()
    bench.drain()
    assert bench.prompts == ["a", "chained", "again"]
    assert list(bench.outcomes) == [ref]


def test_a_retry_keeps_metadata_and_sender() -> None:
    bench = Rig(Retrying)
    bench.prompt("a", lane="peer-inbox", sender="boss", origin="1.1.0")
    bench.fail()
    assert bench.running().request.sender == "boss"


def test_an_interrupted_retry_ends_the_request() -> None:
    bench = Rig(Retrying)
    ref = bench.prompt("a")
    bench.fail()
    bench.interrupt()
    assert bench.code(ref) == "interrupted"


@pytest.mark.case(77)
def test_with_the_default_handle_error_the_next_prompt_runs() -> None:
    bench = Rig()
    bench.prompt("a")
    following = bench.prompt("b")
    bench.fail()
    bench.finish()
    assert bench.answer(following) == "B" and bench.state == ["B"]


@pytest.mark.case(78)
@pytest.mark.parametrize("wrong", ["raise", "return"])
def test_a_failing_handle_error_means_stay_idle(wrong: str) -> None:
    def bad(self: Any, ref: str, error: Any, state: list[Any]) -> Any:
        state.append("trace")
        if wrong == "raise":
            raise RuntimeError("boom")
        return "nonsense"

    bench = Rig(agent(handle_error=bad))
    ref = bench.prompt("a")
    bench.fail("backend_error", "original")
    assert bench.error(ref) == error("backend_error", "original")
    assert bench.state == [] and bench.phase() is Phase.IDLE and bench.backoffs == []


@pytest.mark.case(79)
def test_which_state_handle_error_sees() -> None:
    seen: list[Any] = []

    def keep(self: Any, ref: str, error: Any, state: list[Any]) -> Any:
        seen.append((error.code, state))
        return Idle(state)

    bench = Rig(agent(handle_error=keep))
    for code in ("backend_error", "no_terminal_event"):  # what the stream built is kept
        bench.prompt("a")
        bench.fail(code, state=Raw(f'["{code}"]'.encode()))
    bench.prompt("a")
    bench.fail("task_crashed")  # a crash leaves the state of the dispatch
    bench.prompt("a")
    bench.interrupt()
    bench.prompt("a")
    bench.watchdog()
    last = ["no_terminal_event"]
    assert seen == [
        ("backend_error", ["backend_error"]),
        ("no_terminal_event", last),
        ("task_crashed", last),
        ("interrupted", last),
        ("timeout", last),
    ]


# --- session --------------------------------------------------------------------------------------------------------
@pytest.mark.case(90)
@pytest.mark.case(91)
def test_a_session_is_kept_from_turn_to_turn() -> None:
    bench = Rig()
    bench.prompt("a")
    bench.finish(session=Raw(b'"s1"'))
    bench.prompt("b")
    assert bytes(bench.running().session) == b'"s1"'
    bench.finish()
    bench.prompt("c")
    assert bytes(bench.running().session) == b'"s1"'


@pytest.mark.case(92)
@pytest.mark.parametrize("end", ["interrupt", "watchdog", "crash", "terminal"])
def test_the_session_after_a_turn_that_failed(end: str) -> None:
    bench = Rig()
    bench.prompt("a")
    bench.finish(session=Raw(b'"before"'))
    bench.prompt("b")
    if end == "terminal":
        bench.fail("backend_error", session=Raw(b'"of prompt/2"'))
    elif end == "crash":
        bench.fail("task_crashed")
    else:
        getattr(bench, end)()
    bench.prompt("c")
    assert bytes(bench.running().session) == (b'"of prompt/2"' if end == "terminal" else b'"before"')
