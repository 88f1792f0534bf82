"""What `mesh history` makes of a journal: takeovers of each turn, and prompts that were given up."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from agentmesh import ledger as book
from agentmesh.agent import Idle
from agentmesh.records import Effect, Ledger, Record, Resolve, TurnInfo, decode_record
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_client.history import closings, turns
from mesh.turn.harness import Plain
from mesh.turn.test_poison import Rig


def shown(bench: Rig) -> list[TurnInfo]:
    return turns([decode_record(body) for _, body in bench.journal])


def journal(*kinds: str) -> list[Record]:
    """Records of these kinds; each `activated` is of another process, unless it is called `woken`. The agent is placed at the
    second 2 and after; the prompt of a `turn` was stored at the second 1, that of a `late` one at the second 9."""
    ledger, found = Ledger(incarnation="life"), list[Record]()
    for kind in kinds:
        if kind == "activated":
            ledger = structs.replace(ledger, generation=ledger.generation + 1, boot=f"b{ledger.generation + 1}")
        turn: TurnInfo | None = None
        effects: tuple[Effect, ...] = ()
        if kind in ("turn", "late"):
            number = ledger.turn + 1
            ledger = structs.replace(ledger, turn=number)
            turn = TurnInfo(number=number, ref=str(number), started=1.0, ended=2.0, node="n", generation=ledger.generation)
            stored = f"1970-01-01T00:00:0{1 if kind == 'turn' else 9}Z"
            effects = (Resolve(outcome=Outcome(agent="a", ref=str(number), ok=True, stored=stored)),)
        written: Any = {"woken": "activated", "late": "turn"}.get(kind, kind)
        record = book.record_of(ledger, written, id=str(len(found)), at=1.0, turn=turn, effects=effects)
        found.append(structs.replace(record, placed=2.0) if written == "activated" else record)
    return found


@pytest.mark.case(482)
@pytest.mark.parametrize(
    ("kinds", "takeovers"),
    [
        (("activated", "init", "turn"), [0]),
        (("activated", "init", "activated", "trying", "activated", "trying", "turn"), [2]),
        (("activated", "init", "rest", "activated", "trying", "activated", "trying", "turn", "turn"), [2, 0]),
        (("activated", "init", "turn", "rest", "activated", "trying", "turn"), [0, 1]),
        (("activated", "init", "rest", "activated", "late"), [0]),  # it was moved while it was at rest
        (("activated", "init", "rest", "activated", "trying", "late"), [0]),  # from a node that had died
        (("activated", "init", "late", "rest", "activated", "turn"), [0, 1]),
        (("activated", "init", "rest", "woken", "turn", "crashed", "woken", "turn"), [0, 0]),
    ],
)
def test_what_counts_as_a_takeover_of_a_turn(kinds: tuple[str, ...], takeovers: list[int]) -> None:
    assert [turn.takeovers for turn in turns(journal(*kinds))] == takeovers


@pytest.mark.case(482)
def test_the_deaths_that_a_first_turn_lived_through_are_counted() -> None:
    bench = Rig()
    bench.prompt("first")
    for _ in range(3):
        assert bench.running().prompt == "first"
        bench.die()
    bench.finish()
    assert [(turn.number, turn.prompt, turn.takeovers) for turn in shown(bench)] == [(1, "first", 3)]


@pytest.mark.case(482)
def test_a_prompt_that_killed_its_nodes_is_shown_with_the_reason() -> None:
    bench = Rig()
    poison = bench.prompt("poison")
    behind = bench.prompt("behind")
    for _ in range(6):
        bench.die()
    bench.finish()
    first, second = shown(bench)
    assert (first.number, first.ref, first.prompt, first.answer) == (1, poison, "poison", None)
    assert first.error is not None and first.error.code == "dead_letter"
    assert (second.number, second.ref, second.answer, second.error) == (2, behind, "BEHIND", None)


class Frail(Plain):
    def handle_response(self, ref: str, response: Any, state: Any) -> Any:
        if response.text == "BREAK":
            raise RuntimeError("broken")
        return Idle(state)


@pytest.mark.case(482)
def test_a_prompt_that_crashed_its_agent_is_shown_with_the_reason() -> None:
    bench = Rig(Frail)
    ref = bench.prompt("break")
    for _ in range(3):
        bench.finish()
        bench.tick(bench.core.now + 100)
    later = bench.prompt("go on")
    bench.finish()
    first, second = shown(bench)
    assert (first.number, first.ref, first.prompt, first.answer) == (1, ref, "break", None)
    assert first.error is not None and first.error.code == "failed" and "3 times" in first.error.message
    assert (second.number, second.ref, second.answer) == (2, later, "GO ON")


@pytest.mark.case(446)
def test_a_request_that_was_deferred_is_shown_with_the_end_that_it_had_since() -> None:
    def ended(ref: str, error: str | None = None) -> Resolve:
        told = ErrorBody(code=error, message="") if error is not None else None
        return Resolve(outcome=Outcome(agent="a", ref=ref, ok=told is None, error=told))

    def written(number: int | None = None, ref: str = "", error: str | None = None, *ends: Resolve) -> Record:
        told = ErrorBody(code=error, message="") if error is not None else None
        turn = None
        if number is not None:
            turn = TurnInfo(number=number, ref=ref, started=1.0, ended=2.0, node="n", generation=1, error=told)
        return book.record_of(Ledger(incarnation="life"), "turn", id="1", at=1.0, turn=turn, effects=ends)

    found = closings(
        [
            written(1, "deferred"),
            written(2, "answered", None, ended("answered")),
            written(3, "failed", "timeout"),  # it is tried again
            written(4, "failed", None, ended("failed")),
            written(5, "open"),
            written(6, "answers another", None, ended("deferred"), ended("answers another")),
            written(7, "cancelled"),
            written(None, "", None, ended("cancelled", "cancelled"), ended("of no turn")),
            written(8, "its own"),
        ]
    )
    assert {number: outcome.error.code if outcome.error is not None else "ok" for number, outcome in found.items()} == {
        1: "ok",
        7: "cancelled",
    }
