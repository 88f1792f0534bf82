"""pre_turn and post_turn: cases 80 to 88."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.agent import Halt, Idle, Proceed, Prompt, Skip
from agentmesh.backend import Response
from agentmesh.turn import state_of
from mesh.turn.harness import Plain, Rig, agent


class Gate(Plain):
    """Rewrites each prompt; skips, halts, raises or talks nonsense where the prompt says so."""

    def pre_turn(self, prompt: str, state: list[Any]) -> Any:
        if prompt == "raise":
            state.append("lost")
            raise RuntimeError("boom")
        decisions: dict[str, Any] = {
            "skip": Skip([*state, "skipped"]),
            "halt": Halt([*state, "halted"]),
            "nonsense": 42,
            "number": Proceed(7, [*state, "lost"]),  # type: ignore[arg-type]
            "empty": Proceed("", [*state, "lost"]),
            "unencodable": Skip([object()]),
        }
        return decisions.get(prompt) or Proceed(f"<{prompt}>", [*state, prompt])

    def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
        return Idle([*state, "handle_error"])

    def post_turn(self, outcome: Any, ref: str, state: list[Any]) -> Any:
        return [*state, "post_turn"]

    def post_run(self, state: list[Any]) -> Any:
        pass


@pytest.mark.case(80)
def test_pre_turn_sees_every_prompt_and_may_rewrite_it() -> None:
    class Chained(Gate):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            return Prompt("chained", state) if response.text == "<A>" else Idle(state)

        def handle_event(self, event: Any, state: list[Any]) -> Any:
            return Prompt(event, state)

    bench = Rig(Chained)
    ref = bench.prompt("a")
    bench.event("born")
    bench.drain()
    assert bench.prompts == ["<a>", "<chained>", "<born>"]
    assert bench.answer(ref) == "<A>"


@pytest.mark.case(81)
def test_skip_answers_keeps_the_hooks_state_and_goes_on() -> None:
    bench = Rig(Gate)
    running = bench.prompt("a")
    skipped, following = bench.prompt("skip"), bench.prompt("b")
    bench.finish()
    assert bench.code(skipped) == "pre_turn_skipped"
    assert bench.running().prompt == "<b>"
    bench.finish()
    assert bench.outcomes[running].ok and bench.outcomes[following].ok
    assert bench.state == ["a", "<A>", "post_turn", "skipped", "b", "<B>", "post_turn"]
    assert state_of(bench.core) == "idle"


@pytest.mark.case(82)
def test_halt_answers_halts_and_runs_post_run() -> None:
    bench = Rig(Gate)
    ref = bench.prompt("halt")
    waiting = bench.prompt("b")
    assert bench.code(ref) == "pre_turn_halted"
    assert bench.halted() and bench.calls.count("post_run") == 1
    assert waiting not in bench.outcomes and bench.state == ["halted"]


@pytest.mark.case(83)
def test_a_raising_pre_turn_is_a_skip_with_the_state_before_it() -> None:
    bench = Rig(Gate)
    ref = bench.prompt("raise")
    assert bench.code(ref) == "pre_turn_skipped" and "boom" in bench.error(ref).message
    assert bench.core.work.state == bench.core.ledger.state and bench.state == []
    assert bench.backoffs == []


@pytest.mark.case(84)
@pytest.mark.parametrize("prompt", ["nonsense", "number", "empty"])
def test_a_malformed_return_is_pre_turn_invalid(prompt: str) -> None:
    bench = Rig(Gate)
    ref = bench.prompt(prompt)
    assert bench.code(ref) == "pre_turn_invalid"
    assert bench.state == [] and bench.task is None


def test_a_state_of_pre_turn_that_cannot_be_encoded_is_bad_state() -> None:
    bench = Rig(Gate)
    assert bench.code(bench.prompt("unencodable")) == "bad_state"
    assert bench.state == []


@pytest.mark.case(85)
@pytest.mark.parametrize("prompt", ["skip", "halt", "raise", "nonsense"])
def test_a_refused_prompt_calls_nothing_else_and_emits_no_prompt_telemetry(prompt: str) -> None:
    bench = Rig(Gate)
    bench.prompt(prompt)
    assert set(bench.calls) <= {"init_agent", "start_session", "pre_turn", "post_run"}
    assert not [e.kind for e in bench.emits if e.kind.startswith("prompt_")]
    assert len(bench.facts("state_changed")) == 1
    assert bench.core.ledger.turn == 0


@pytest.mark.case(86)
@pytest.mark.case(87)
def test_post_turn_follows_the_decision_on_success_and_failure_and_precedes_the_drain() -> None:
    seen: list[Any] = []

    class Post(Plain):
        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            return Prompt("chained", [*state, "decision"]) if response.text == "A" else Idle(state)

        def handle_error(self, ref: str, error: Any, state: list[Any]) -> Any:
            return Idle([*state, "error decision"])

        def post_turn(self, outcome: Any, ref: str, state: list[Any]) -> Any:
            seen.append((ref, outcome.ok, outcome.ref))
            return [*state, "post"]

        def handle_event(self, event: Any, state: list[Any]) -> Any:
            return Idle([*state, event])

    bench = Rig(Post)
    ref = bench.prompt("a")
    bench.event("e")
    bench.finish()
    chained = bench.running().request.ref
    assert bench.state == ["decision", "post", "e"], "it changed the transition, or came too late"
    bench.fail()
    assert bench.state == ["decision", "post", "e", "error decision", "post"]
    assert seen == [(ref, True, ref), (chained, False, chained)]


@pytest.mark.case(88)
@pytest.mark.parametrize("wrong", ["raise", "unencodable"])
def test_a_failing_post_turn_changes_nothing_else(wrong: str) -> None:
    def bad(self: Any, outcome: Any, ref: str, state: list[Any]) -> Any:
        self.tell("peer", "never sent")
        if wrong == "raise":
            raise RuntimeError("boom")
        return object()

    bench = Rig(agent(post_turn=bad, handle_response=lambda self, ref, response, state: Halt([*state, "kept"])))
    ref = bench.prompt("a")
    bench.finish()
    assert bench.answer(ref) == "A" and bench.halted()
    assert bench.state == ["kept"] and bench.mails("peer") == []


def test_every_hook_of_a_turn_knows_its_request() -> None:
    seen: list[Any] = []

    def note(self: Any, name: str) -> None:
        seen.append((name, self.request.ref, self.request.sender, self.request.metadata))

    class Curious(Plain):
        def pre_turn(self, prompt: str, state: list[Any]) -> Any:
            note(self, "pre_turn")
            return Proceed(prompt, state)

        def handle_response(self, ref: str, response: Response, state: list[Any]) -> Any:
            note(self, "handle_response")
            return Idle(state)

        def post_turn(self, outcome: Any, ref: str, state: list[Any]) -> Any:
            note(self, "post_turn")
            return state

    bench = Rig(Curious)
    ref = bench.prompt("a", lane="peer-inbox", sender="boss", origin="1.4.0")
    bench.finish()
    assert seen == [(hook, ref, "boss", {}) for hook in ("pre_turn", "handle_response", "post_turn")]
