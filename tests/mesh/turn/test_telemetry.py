"""What telemetry gets: cases 103 to 107."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentmesh.agent import Halt, Idle, Proceed
from agentmesh.turn.values import TurnEnded
from agentmesh.wire import ErrorBody
from mesh.turn.harness import Plain, Rig, agent


@pytest.mark.case(103)
@pytest.mark.parametrize("rewritten", [False, True])
def test_prompt_start(rewritten: bool) -> None:
    bench = Rig(agent(pre_turn=lambda self, prompt, state: Proceed(prompt + "!" if rewritten else prompt, ["seen"])))
    ref = bench.prompt("a")
    (fact,) = bench.facts("prompt_start")
    assert (fact["ref"], fact["rewritten"], fact["original_prompt"]) == (ref, rewritten, "a")
    assert fact["prompt"] == ("a!" if rewritten else "a")
    assert msgspec.json.decode(fact["agent_state"]) == ["seen"]


@pytest.mark.case(104)
def test_prompt_stop_precedes_handle_response_and_has_the_state_of_the_stream() -> None:
    bench = Rig(hold=("handle_response",))
    ref = bench.prompt("a")
    bench.finish(state=msgspec.Raw(b'["streamed"]'))
    (fact,) = bench.facts("prompt_stop")
    assert (fact["ref"], fact["duration_ms"]) == (ref, 7)
    assert msgspec.json.decode(fact["agent_state"]) == ["streamed"]
    assert bench.trail.index("emit prompt_stop") < bench.trail.index("handle_response")


@pytest.mark.case(105)
@pytest.mark.parametrize("reason", ["backend_error", "no_terminal_event", "timeout", "task_crashed"])
def test_prompt_error(reason: str) -> None:
    bench = Rig()
    ref = bench.prompt("a")
    if reason == "timeout":
        bench.watchdog()
    else:
        bench.fail(reason)
    assert [(f["ref"], f["reason"], bytes(f["agent_state"])) for f in bench.facts("prompt_error")] == [(ref, reason, b"[]")]


@pytest.mark.case(106)
def test_halted_carries_the_state() -> None:
    bench = Rig(agent(handle_response=lambda self, ref, response, state: Halt(["final"]), post_run=lambda self, state: None))
    bench.prompt("a")
    bench.finish()
    (fact,) = bench.facts("halted")
    assert msgspec.json.decode(fact["agent_state"]) == ["final"]


class Crashing(Plain):
    def handle_response(self, ref: str, response: Any, state: list[Any]) -> Any:
        if len(self.__dict__.setdefault("tries", [])) < 1:
            raise RuntimeError("boom")
        return Idle(state)


@pytest.mark.case(107)
def test_state_changed_alternates_and_is_silent_from_idle_to_idle() -> None:
    bench = Rig(agent(handle_event=lambda self, event, state: Idle(state)))
    bench.event("e")
    bench.prompt("a")
    bench.prompt("b")
    bench.finish()
    bench.fail()
    bench.event("e")
    changes = [(f["from"], f["to"]) for f in bench.facts("state_changed")]
    assert changes == [(None, "idle"), *[("idle", "processing"), ("processing", "idle")] * 2]


@pytest.mark.case(107)
def test_state_changed_alternates_over_a_crash_too() -> None:
    bench = Rig(Crashing, max_attempts=2)
    bench.prompt("a")
    bench.drain()
    changes = [(f["from"], f["to"]) for f in bench.facts("state_changed")]
    assert changes == [(None, "idle"), *[("idle", "processing"), ("processing", "idle")] * 2]


@pytest.mark.case(105)
def test_prompt_error_carries_the_raw_reason() -> None:
    bench = Rig()
    bench.prompt("a")
    error = ErrorBody(code="backend_error", message="nope", details={"reason": "nope"})
    bench.feed(TurnEnded(turn=bench.running().number, error=error))
    (fact,) = bench.facts("prompt_error")
    assert (fact["reason"], fact["details"]) == ("backend_error", {"reason": "nope"})
