"""The judge of hand-overs is itself judged: of forged histories it names what was done to each."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh import semconv
from agentmesh.ledger import turn_name
from agentmesh.ledger_entries import Step, Turning
from agentmesh.records import Change, Record
from agentmesh.trace.spans import Began, ToldSpan
from judge.evidence import Evidence, LiveMessage, TurnCall
from judge.moves import hand_overs, moved_wrongly, repeated

KEY = "inbox:1"
NAME = turn_name("k0", "life", 1, 1, KEY)
SPAN = "a" * 16
TURNING = Turning(key=KEY, number=1, prompt="work", began=1.0)
MOVED = Turning(key=KEY, number=1, prompt="work", began=1.0, moves=1)


def record(kind: Any, node: str = "n1", **change: Any) -> Record:
    generation = 5 if node == "n1" else 6
    return Record(
        kind=kind, id="r", at=2.0, incarnation="life", epoch=1, generation=generation, node=node, boot=f"b-{node}",
        change=Change(**change),
    )  # fmt: skip


def live(run: str, seq: int, type: str, step: int, **fields: Any) -> LiveMessage:
    return LiveMessage(reader="inbox", type=type, seq=seq, owner=5 if run == "one" else 6, run=run, step=step, **fields)


def began() -> Began:
    return Began(
        trace="f" * 32, span=SPAN, agent="k0", service="Cell", life="life", ref="1", input=KEY, turn=1, started=1.0, node="n1",
        generation=5, boot="b-n1",
    )  # fmt: skip


def told(end: str) -> ToldSpan:
    return ToldSpan(
        trace="f" * 32, id=SPAN, name="invoke_agent k0", op="invoke_agent", start=1.0, end=2.0, agent="k0", service="Cell",
        attributes={semconv.ATTEMPT_END: end},
    )  # fmt: skip


def honest() -> Evidence:
    """One step on one node, a call of a model that failed, the hand-over, and the same call on the other node."""
    return Evidence(
        journals={
            "k0": [
                (1, record("activated")),
                (2, record("step", steps={"0": Step()}, turning=TURNING)),
                (3, record("step", turning=MOVED)),
                (4, record("activated", "n2")),
                (5, record("step", "n2", steps={"1": Step()})),
            ]
        },
        recorded={1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0},
        turn_calls=[
            TurnCall("k0", NAME, "call 0", "n1", 1.5, "done"),
            TurnCall("k0", NAME, "call 1", "n1", 2.5, "failed"),
            TurnCall("k0", NAME, "call 1", "n2", 4.5, "done"),
        ],
        live=[
            live("one", 1, "start", 0),
            live("one", 2, "text", 0, text="[0]"),
            live("one", 3, "handover", 1),
            live("two", 1, "start", 1),
        ],
        begun=[began()],
        spans=[told("moved")],
    )


def wrong(**changed: Any) -> list[str]:
    evidence = honest()
    for name, value in changed.items():
        setattr(evidence, name, value)
    return list(moved_wrongly(evidence))


def with_record(number: int, changed: Record) -> dict[str, Any]:
    records = list(honest().journals["k0"])
    records[number] = (number + 1, changed)
    return {"journals": {"k0": records}}


def test_an_honest_history_is_found_well() -> None:
    assert wrong() == []
    assert [(one.seq, one.turn) for one in hand_overs(honest())] == [(3, NAME)]
    assert list(repeated(honest().turn_calls)) == []


@pytest.mark.case(670)
@pytest.mark.parametrize("end", ["done", "cut", "open"])
def test_a_call_that_is_made_again_behind_a_hand_over_is_named(end: Any) -> None:
    calls = list(honest().turn_calls)
    calls[1] = TurnCall("k0", NAME, "call 1", "n1", 2.5, end)
    (found,) = wrong(turn_calls=calls)
    assert "call 1" in found
    assert len(list(repeated(calls))) == 1


@pytest.mark.case(671)
def test_what_an_owner_writes_behind_its_hand_over_is_named() -> None:
    (found,) = wrong(**with_record(3, record("control")))
    assert "control" in found


@pytest.mark.case(671)
def test_an_input_that_is_charged_for_a_hand_over_is_named() -> None:
    for charge in ({"takeovers": {KEY: 1}}, {"attempts": {KEY: 1}}):
        (found,) = wrong(**with_record(3, record("activated", "n2", **charge)))
        assert "charges" in found


@pytest.mark.case(672)
def test_a_turn_that_begins_anew_with_its_owner_is_named() -> None:
    later = Turning(key=KEY, number=1, prompt="work", began=4.0, moves=1)
    (found,) = wrong(**with_record(4, record("step", "n2", turning=later)))
    assert "began at 4.0" in found


@pytest.mark.case(673)
@pytest.mark.parametrize(
    ("message", "says"),
    [
        (live("one", 4, "text", 1, text="more"), "behind its hand-over"),
        (live("one", 2, "text", 1, text="[1]"), "not durable"),
        (live("two", 1, "start", 2), "starts behind 2"),
    ],
)
def test_a_reader_that_is_told_otherwise_is_named(message: LiveMessage, says: str) -> None:
    others = [m for m in honest().live if (m.run, m.seq) != (message.run, message.seq)]
    assert any(says in found for found in wrong(live=[*others, message]))


def test_text_that_was_said_to_be_void_is_missed_by_nobody() -> None:
    sent = [
        live("one", 1, "start", 1),
        live("one", 2, "text", 1, text="beg"),
        live("one", 3, "text", 1, restart=True),
        live("one", 4, "handover", 1),
    ]
    assert wrong(live=sent) == []


def test_an_attempt_that_is_said_to_be_lost_although_it_was_handed_on_is_named() -> None:
    (found,) = wrong(spans=[told("lost")])
    assert "lost" in found
