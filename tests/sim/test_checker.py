"""The judge of a run is itself judged: of forged histories it names what was done to each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
import pytest
from msgspec import Raw

from agentmesh.records import Change, Record
from agentmesh.wire import Outcome
from sim.agents import State
from sim.checker import Evidence, Letter, judge
from sim.workload import Operation

AGENT = "k0"
_OWNER = (5, "n1", "boot1")


def _record(kind: str, log: list[str], *, owner: tuple[int, str, str] = _OWNER, life: str = "i1", **fields: object) -> Record:
    generation, node, boot = owner
    change = Change(state=Raw(msgspec.json.encode(State(count=len(log), log=list(log)))))
    return msgspec.convert(
        {
            "kind": kind,
            "id": "r",
            "at": 0.0,
            "incarnation": life,
            "epoch": 1,
            "generation": generation,
            "node": node,
            "boot": boot,
        },
        Record,
    ).__replace__(change=change, **fields)


def _letter(seq: int, label: str, verb: str = "add", lane: str = "inbox") -> Letter:
    return Letter(seq, lane, AGENT, f"{verb} {label}" if lane == "inbox" else "", label, {})


def honest() -> Evidence:
    """Three prompts and an event, a takeover in between, all well."""
    log = ["prompt|-|L1", "event|-|E1", "prompt|-|L2", "prompt|-|L3"]
    later = (9, "n2", "boot2")
    records = [
        (1, _record("activated", [])),
        (2, _record("init", [])),
        (3, _record("turn", log[:1])),
        (4, _record("event", log[:2])),
        (5, _record("activated", log[:2], owner=later)),
        (6, _record("turn", log[:3], owner=later)),
        (7, _record("turn", log, owner=later)),
        (8, _record("rest", log, owner=later)),
    ]
    results = [Outcome(agent=AGENT, ref=str(seq), ok=True, text=f"add L{n}") for n, seq in enumerate((10, 12, 13), 1)]
    letters = [_letter(10, "L1"), _letter(11, "E1", lane="notify"), _letter(12, "L2"), _letter(13, "L3")]
    operations = [Operation("c0", "ask", AGENT, "L1", 0.0, 1.0, "10", results[0])]
    return Evidence(operations, letters, {AGENT: records}, results, list(results))


def test_an_honest_history_is_found_well() -> None:
    assert judge(honest(), {AGENT}) == []


def _rewrite(evidence: Evidence, log: list[str]) -> None:
    """Let the last owner's records say that `log` was consumed."""
    records = list(evidence.journals[AGENT])
    for index in (5, 6, 7):
        seq, record = records[index]
        shown = log[: len(log) - (1 if index == 5 else 0)]
        records[index] = (seq, _record(record.kind, shown, owner=(9, "n2", "boot2")))
    evidence.journals = {AGENT: records}


def lost_message(evidence: Evidence) -> None:
    _rewrite(evidence, ["prompt|-|L1", "event|-|E1", "prompt|-|L2"])


def lost_event(evidence: Evidence) -> None:
    evidence.letters = [*evidence.letters, _letter(14, "E2", lane="notify")]


def lost_answer(evidence: Evidence) -> None:
    evidence.results = evidence.results[:-1]


def duplicate(evidence: Evidence) -> None:
    _rewrite(evidence, ["prompt|-|L1", "event|-|E1", "prompt|-|L2", "prompt|-|L2", "prompt|-|L3"])


def reordering(evidence: Evidence) -> None:
    _rewrite(evidence, ["prompt|-|L1", "event|-|E1", "prompt|-|L3", "prompt|-|L2"])


def invention(evidence: Evidence) -> None:
    _rewrite(evidence, ["prompt|-|L1", "event|-|E1", "prompt|-|L2", "prompt|-|L3", "prompt|-|L9"])


def fenced_commit(evidence: Evidence) -> None:
    records = list(evidence.journals[AGENT])
    records.insert(6, (6, _record("turn", ["prompt|-|L1", "event|-|E1", "prompt|-|L2"])))  # the former owner's
    evidence.journals = {AGENT: records}


def older_owner(evidence: Evidence) -> None:
    log = ["prompt|-|L1", "event|-|E1", "prompt|-|L2", "prompt|-|L3"]
    evidence.journals = {AGENT: [*evidence.journals[AGENT], (9, _record("activated", log, owner=(7, "n3", "boot3")))]}


def waking_the_dead(evidence: Evidence) -> None:
    later = (9, "n2", "boot2")
    log = ["prompt|-|L1", "event|-|E1", "prompt|-|L2", "prompt|-|L3"]
    more = [(9, _record("stopped", log, owner=later)), (10, _record("activated", log, owner=(11, "n1", "boot1")))]
    evidence.journals = {AGENT: [*evidence.journals[AGENT], *more]}


def two_answers(evidence: Evidence) -> None:
    evidence.told = [*evidence.told, Outcome(agent=AGENT, ref="12", ok=True, text="something else")]


def two_outcomes(evidence: Evidence) -> None:
    evidence.results = [*evidence.results, evidence.results[0]]


def false_answer(evidence: Evidence) -> None:
    seen = evidence.operations[0]
    evidence.operations = [msgspec.structs.replace(seen, outcome=Outcome(agent=AGENT, ref="10", ok=True, text="no"))]


def answered_without_a_turn(evidence: Evidence) -> None:
    evidence.letters = [*evidence.letters, _letter(15, "L4")]
    evidence.results = [*evidence.results, Outcome(agent=AGENT, ref="15", ok=True, text="add L4")]


def lost_relay(evidence: Evidence) -> None:
    evidence.letters = [
        Letter(12, "inbox", AGENT, "pass L2 3", "L2", {}) if letter.seq == 12 else letter for letter in evidence.letters
    ]


def lost_timer(evidence: Evidence) -> None:
    evidence.letters = [
        Letter(12, "inbox", AGENT, "timer L2 1", "L2", {}) if letter.seq == 12 else letter for letter in evidence.letters
    ]


@pytest.mark.parametrize(
    ("forge", "verdict"),
    [
        (lost_message, "no turn of it counts"),
        (lost_event, "never handled the event E2"),
        (lost_answer, "has no outcome"),
        (duplicate, "consumed prompt|-|L2 2 times"),
        (reordering, "out of order"),
        (invention, "which nobody sent"),
        (fenced_commit, "owns the agent"),
        (older_owner, "older than"),
        (waking_the_dead, "wakes a life that has ended"),
        (two_answers, "was answered"),
        (two_outcomes, "2 stored outcomes"),
        (false_answer, "was answered"),
        (answered_without_a_turn, "no turn of it counts"),
        (lost_relay, "was consumed 0 times"),
        (lost_timer, "came 0 times"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_forged_history_is_found_out(forge: Callable[[Evidence], None], verdict: str) -> None:
    evidence = copy.deepcopy(honest())
    forge(evidence)
    assert any(verdict in line for line in judge(evidence, {AGENT})), judge(evidence, {AGENT})
