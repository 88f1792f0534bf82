"""Steps of a running turn in the turn machine (docs/architecture.md#steps; case 215)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from agentmesh.agent import Idle, Proceed, Prompt, Skip
from agentmesh.records import decode_record
from agentmesh.turn import steps as machine_steps
from agentmesh.turn.step_values import TakeStep
from agentmesh.turn.values import Phase, Stop
from agentmesh.wire import PromptBody
from mesh.turn.harness import agent, error
from mesh.turn.stepping import Stepping
from mesh.turn.test_poison import Rig as Mortal


@pytest.fixture
def bench() -> Stepping:
    return Stepping()


# --- taking ---------------------------------------------------------------------------------------------------------
def test_a_step_is_a_record_of_its_own(bench: Stepping) -> None:
    bench.prompt("work")
    bench.auto_commit = False
    first = bench.take({"n": 1})
    assert first not in bench.taken, "not before the journal has it"
    bench.commit()
    assert bench.taken[first].steps == 1
    second = bench.take(None)
    bench.commit()
    assert bench.taken[second].steps == 2
    records = [decode_record(body) for _, body in bench.journal if decode_record(body).kind == "step"]
    assert [list(msgspec.structs.asdict(r.change)["steps"]) for r in records] == [["0"], ["1"]], "each says only what is new"
    bench.auto_commit = True
    bench.finish()
    bench.rested()


def test_steps_that_are_taken_at_once_share_a_record(bench: Stepping) -> None:
    bench.prompt("work")
    bench.auto_commit = False
    tokens = [bench.take(n) for n in range(4)]
    bench.commit()
    assert list(bench.taken) == tokens[:1]
    bench.commit()
    assert list(bench.taken) == tokens and bench.steps == [0, 1, 2, 3]
    assert bench.kinds.count("step") == 2


@pytest.mark.case(215)
def test_the_next_owner_gets_the_steps(bench: Stepping) -> None:
    ref = bench.prompt("work")
    key = bench.running().key
    bench.take("one")
    bench.take({"two": [2]})
    bench.kill()
    assert bench.given() == ["one", {"two": [2]}]
    assert bench.running().key == key, "the turn keeps its name"
    bench.take("three")
    bench.kill()
    assert bench.given() == ["one", {"two": [2]}, "three"]
    bench.finish("done")
    assert bench.answer(ref) == "done"
    bench.rested()
    bench.prompt("other")
    assert bench.given() == [] and bench.running().key != key


@pytest.mark.case(580)
@pytest.mark.parametrize("input_", ["mail", "a prompt of its own"])
def test_a_turn_that_has_taken_steps_goes_on_before_an_earlier_prompt_that_nobody_had_heard_of(input_: str) -> None:
    """Seed 101992: the earlier one had its turn between, was given the answer that this one waits for, and dropped its steps."""
    bench = Stepping(agent(handle_event=lambda self, event, state: Prompt("mine", state) if event == "go" else Idle(state)))
    earlier = bench.post("inbox", prompt=PromptBody(prompt="earlier"))  # its copy is lost
    if input_ == "mail":
        bench.prompt("begun", lane="peer-inbox", sender="boss", origin="1.9.0")
    else:
        bench.event("go")
    began = bench.running()
    bench.take("one")
    bench.ask("w1")
    bench.answer_to(bench.request("w1")[0], "helper", "found", deliver=False)
    for _ in range(2):
        bench.kill()
        assert (bench.running().key, bench.given()) == (began.key, ["one"])
        bench.ask("w1")
        assert bench.over["w1"].text == "found"
    bench.finish()
    assert bench.running().prompt == "earlier" and bench.given() == []
    bench.finish()
    assert bench.answer(earlier.ref) == "EARLIER"
    bench.rested()


@pytest.mark.parametrize("landed", [True, False])
def test_a_step_on_its_way_when_the_node_dies_is_there_or_is_not(bench: Stepping, landed: bool) -> None:
    bench.prompt("work")
    bench.take("one")
    bench.auto_commit = False
    bench.take("two")
    bench.auto_commit = True
    bench.kill(landed=landed)
    assert bench.given() == (["one", "two"] if landed else ["one"])


def test_another_try_after_a_crash_of_the_agents_code_gets_the_steps() -> None:
    crashes = iter([True, False])

    def handle_response(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        if next(crashes):
            raise RuntimeError("once")
        return super(type(self), self).handle_response(ref, response, state)

    bench = Stepping(agent(handle_response=handle_response))
    ref = bench.prompt("work")
    bench.take("one")
    bench.finish("first")
    assert bench.given() == ["one"]
    bench.finish("second")
    assert bench.answer(ref) == "second"
    bench.rested()


def test_a_chained_prompt_has_steps_as_well(bench: Stepping) -> None:
    class Chain:
        left = 1

    def handle_response(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        Chain.left -= 1
        return Prompt("go on", state) if Chain.left >= 0 else Idle(state)

    bench = Stepping(agent(handle_response=handle_response))
    bench.prompt("begin")
    bench.take("of the first")
    bench.finish()
    assert (bench.running().prompt, bench.given()) == ("go on", [])
    bench.take("of the second")
    bench.kill()
    assert (bench.running().prompt, bench.given()) == ("go on", ["of the second"])
    bench.finish()
    bench.rested()


def test_the_prompt_stays_what_pre_turn_had_made_of_it() -> None:
    tries: list[int] = []

    def pre_turn(self: Any, prompt: str, state: list[Any]) -> Any:
        tries.append(1)
        return Proceed(f"{prompt} try {len(tries)}", state)

    bench = Stepping(agent(pre_turn=pre_turn))
    bench.prompt("work")
    bench.kill()
    assert bench.running().prompt == "work try 2", "without a step the prompt is rewritten anew"
    bench.take("one")
    bench.kill()
    assert len(tries) == 3 and bench.running().prompt == "work try 2"


def test_a_step_that_is_too_large_is_refused(bench: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_steps, "MAX_STEP_BYTES", 100)
    monkeypatch.setattr(machine_steps, "MAX_STEPS_BYTES", 250)
    bench.prompt("work")
    refused = bench.taken[bench.take("x" * 101)]
    assert refused.error is not None and refused.error.code == "too_large"
    for _ in range(2):
        assert bench.taken[bench.take("y" * 90)].error is None
    full = bench.taken[bench.take("z" * 90)]
    assert full.error is not None and "250" in full.error.message
    assert bench.taken[bench.take("small")].steps == 3
    bench.finish()
    bench.rested()


# --- turns that end otherwise -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["interrupt", "watchdog", "fail", "stop"])
def test_however_a_turn_ends_its_steps_go(bench: Stepping, end: str) -> None:
    ref = bench.prompt("work")
    bench.take("one")
    match end:
        case "interrupt":
            bench.interrupt()
        case "watchdog":
            bench.watchdog()
        case "fail":
            bench.fail()
        case "stop":
            bench.stop()
    assert ref in bench.outcomes
    bench.rested()


@pytest.mark.parametrize("end", ["interrupt", "stop", "finish"])
def test_steps_that_a_turn_leaves_behind_are_not_the_next_ones(bench: Stepping, end: str) -> None:
    """The turn ends while a record is on its way, and more steps wait behind that."""
    bench.prompt("work")
    bench.prompt("next")
    bench.auto_commit = False
    bench.take("one")
    number = bench.running().number
    if end == "finish":
        bench.finish()
    elif end == "stop":
        bench.feed(Stop(error("stopped")))
    else:
        bench.interrupt()
    bench.feed(TakeStep(number, "late", Raw(b"2")))
    while bench.appending is not None:
        bench.commit()
    bench.feed(TakeStep(number, "later", Raw(b"3")))
    assert bench.taken.keys() == {"step0"} and bench.steps == []
    bench.auto_commit = True
    if end != "stop":
        assert (bench.running().prompt, bench.given()) == ("next", [])
        bench.finish()
    bench.rested()


def test_an_input_that_pre_turn_skips_at_the_next_try_leaves_no_steps() -> None:
    skips = iter([False, True, False])

    def pre_turn(self: Any, prompt: str, state: list[Any]) -> Any:
        return Skip(state) if next(skips) else Proceed(prompt, state)

    bench = Stepping(agent(pre_turn=pre_turn))
    ref = bench.prompt("work")
    bench.take("one")
    bench.kill()
    assert bench.code(ref) == "pre_turn_skipped"
    bench.rested()
    bench.prompt("other")
    assert bench.given() == []


@pytest.mark.parametrize("how", ["expired", "cancelled"])
def test_an_input_that_is_not_tried_again_leaves_no_steps(how: str) -> None:
    bench = Stepping()
    ref = bench.prompt("work", deadline=bench.now + 10)
    bench.take("one")
    bench.hold.add("resume_session")
    if how == "expired":
        bench.now += 20
    bench.kill()
    if how == "cancelled":
        assert bench.cancel(ref) == {"cancelled": True}, "also while the backend resumes its session"
    bench.hold.clear()
    bench.release()
    assert bench.code(ref) == how
    bench.rested()


def test_an_input_that_crashes_the_agent_too_often_leaves_no_steps() -> None:
    def handle_response(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        raise RuntimeError("always")

    bench = Stepping(agent(handle_response=handle_response), max_attempts=2)
    ref = bench.prompt("work")
    bench.take("one")
    bench.finish()
    assert bench.given() == ["one"]
    bench.finish()
    assert bench.code(ref) == "failed"
    bench.rested()


# --- among other things -------------------------------------------------------------------------------------------------
def test_events_control_and_steps_in_one_turn(bench: Stepping) -> None:
    """Records of other kinds in mid-turn keep the steps, and a step keeps what they said."""
    ref = bench.prompt("work")
    waiting = bench.prompt("waits")
    bench.take("one")
    assert bench.cancel(waiting) == {"cancelled": True}
    bench.event("note")
    bench.take("two")
    bench.kill()
    assert bench.given() == ["one", "two"] and bench.code(waiting) == "cancelled"
    bench.finish("done")
    assert bench.answer(ref) == "done"
    bench.rested()


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_long_turn_is_read_from_its_newest_snapshot(every: int) -> None:
    bench = Stepping(snapshot_records=every)
    bench.prompt("work")
    for number in range(12):
        bench.take(number)
        assert len(bench.journal) <= every + 1
    bench.kill()
    assert bench.given() == list(range(12))
    bench.finish()
    bench.rested()


def test_a_turn_of_heavy_steps_does_not_write_them_again_and_again() -> None:
    bench = Stepping(snapshot_bytes=1000)
    bench.prompt("work")
    snapshots = []
    for number in range(64):
        before = len(bench.journal)
        bench.take("x" * 600)
        if len(bench.journal) <= before:
            snapshots.append(number)
    assert len(snapshots) <= 8, f"snapshots at {snapshots}: all of them would take the square of what the steps take"
    bench.kill()
    assert len(bench.given()) == 64


def test_deaths_count_only_if_no_step_followed() -> None:
    class Both(Stepping, Mortal):
        pass

    bench = Both(max_takeovers=3)
    ref = bench.prompt("deadly")
    for number in range(8):
        bench.die()
        assert bench.phase() is Phase.TURN
        bench.take(number)
    assert bench.core.ledger.takeovers == {} or max(bench.core.ledger.takeovers.values()) <= 1
    for _ in range(4):
        bench.die()
    assert bench.code(ref) == "dead_letter"
    bench.rested()


def test_a_step_of_no_turn_is_dropped(bench: Stepping) -> None:
    bench.feed(TakeStep(1, "nobody", Raw(b"1")))
    assert bench.phase() is Phase.IDLE and bench.taken == {}
