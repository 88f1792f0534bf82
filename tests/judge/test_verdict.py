"""The judge of a run is itself judged: of forged histories it names what was done to each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
import pytest
from msgspec import UNSET, Raw, UnsetType

from agentmesh import wire
from agentmesh.records import Change, Delegated, Effect, Record, Resolve, SendMail, Step, Traced, TurnInfo, Turning, Wait
from agentmesh.wire import ErrorBody, Outcome
from judge.attempts import orphans
from judge.evidence import WITHDRAWS, Call, Evidence, Letter, Operation, Payment, State
from judge.verdict import HEARD_S, judge

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


def test_a_span_below_one_that_nobody_tells_is_found_and_one_that_is_told_twice() -> None:
    evidence = honest()
    trace = Traced(trace="1" * 32, span="a" * 16, parent="b" * 16, process="b" * 16)
    turn = TurnInfo(number=1, ref="10", started=0.0, ended=1.0, node="n1", generation=5, trace=trace)
    records = [(3, _record("turn", [], turn=turn)), (4, _record("turn", []))]
    evidence.journals = {AGENT: records}
    assert list(orphans(evidence)) == []
    evidence.journals = {AGENT: [*records, (5, _record("turn", [], turn=turn))]}
    assert len(list(orphans(evidence))) == 2, "message and attempt"
    below = turn.__replace__(trace=trace.__replace__(span="c" * 16, process=""))
    evidence.journals = {AGENT: [(3, _record("turn", [], turn=below))]}
    (line,) = orphans(evidence)
    assert "b" * 16 in line and "of which nobody tells" in line


def test_an_honest_history_is_found_well() -> None:
    assert judge(honest(), {AGENT}) == []


def test_an_agent_may_forget_what_its_journal_remembers() -> None:
    evidence = honest()
    records = list(evidence.journals[AGENT])
    for index in (6, 7):
        seq, record = records[index]
        short = State(count=4, log=["prompt|-|L2", "prompt|-|L3"], dropped=2)
        records[index] = (seq, msgspec.structs.replace(record, change=Change(state=Raw(msgspec.json.encode(short)))))
    evidence.journals = {AGENT: records}
    assert judge(evidence, {AGENT}) == []


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


def miscount(evidence: Evidence) -> None:
    records = list(evidence.journals[AGENT])
    seq, record = records[7]
    state = State(count=5, log=["prompt|-|L1", "event|-|E1", "prompt|-|L2", "prompt|-|L3"])
    records[7] = (seq, msgspec.structs.replace(record, change=Change(state=Raw(msgspec.json.encode(state)))))
    evidence.journals = {AGENT: records}


def unrecorded(evidence: Evidence) -> None:
    records = list(evidence.journals[AGENT])
    seq, record = records[7]
    state = State(count=6, log=["prompt|-|L9"], dropped=5)
    records[7] = (seq, msgspec.structs.replace(record, change=Change(state=Raw(msgspec.json.encode(state)))))
    evidence.journals = {AGENT: records}


def accepted_and_not_stored(evidence: Evidence) -> None:
    evidence.operations = [*evidence.operations, Operation("c0", "tell", AGENT, "L5", 2.0, 3.0, "17")]


def event_accepted_and_not_stored(evidence: Evidence) -> None:
    evidence.operations = [*evidence.operations, Operation("c0", "notify", AGENT, "E2", 2.0, 3.0, "-")]


def stored_in_another_order(evidence: Evidence) -> None:
    evidence.operations = [
        Operation("c0", "tell", AGENT, "L3", 0.0, 1.0, "13"),
        Operation("c0", "tell", AGENT, "L2", 2.0, 3.0, "12"),
    ]


def effects_in_another_order(evidence: Evidence) -> None:
    later, earlier = ({"Mesh-From": "k1", "Mesh-Origin": origin} for origin in ("1.30.0", "1.9.0"))
    answers = [Letter(20, "peer-notify", AGENT, "", "=3", later), Letter(21, "peer-notify", AGENT, "", "=2", earlier)]
    evidence.letters = [*evidence.letters, *answers]


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


def _stepping(evidence: Evidence, *taken: str, number: int = 3) -> None:
    """Let the last turn but one be one of steps; each record takes the step of that index."""
    turning = Turning(key="inbox:13", number=number, prompt="steps L3 2")
    at = len(evidence.journals[AGENT]) - 2
    records = list(evidence.journals[AGENT])
    log = ["prompt|-|L1", "event|-|E1", "prompt|-|L2"]
    for index in taken:
        record = _record("step", log, owner=(9, "n2", "boot2"))
        change = msgspec.structs.replace(record.change, turning=turning, steps={index: Step(Raw(b"1"))})
        records.insert(at, (6, msgspec.structs.replace(record, change=change)))
        at += 1
    seq, record = records[at]
    over = msgspec.structs.replace(record.change, turning=None, steps=dict.fromkeys(taken))
    records[at] = (seq, msgspec.structs.replace(record, change=over))
    evidence.journals = {AGENT: records}


def lost_step(evidence: Evidence) -> None:
    _stepping(evidence, "0", "2")


def forgotten_steps(evidence: Evidence) -> None:
    _stepping(evidence, "0", "1", "2")
    records = list(evidence.journals[AGENT])
    seq, record = records[8]
    kept = msgspec.structs.replace(record.change, steps={"1": None})
    records[8] = (seq, msgspec.structs.replace(record, change=kept))
    evidence.journals = {AGENT: records}


def steps_that_outlive_their_turn(evidence: Evidence) -> None:
    _stepping(evidence, "0")
    records = list(evidence.journals[AGENT])
    seq, record = records[-2]
    records[-2] = (seq, msgspec.structs.replace(record, change=msgspec.structs.replace(record.change, steps=UNSET)))
    evidence.journals = {AGENT: records}


def test_steps_that_were_taken_one_after_another_are_found_well() -> None:
    evidence = honest()
    _stepping(evidence, "0", "1", "2")
    assert judge(evidence, {AGENT}) == []


def _waiting(evidence: Evidence, answer: str, label: str) -> None:
    """Let L2 be a request that waited for `label`, which this very agent consumed as L3."""
    evidence.letters = [
        Letter(12, "inbox", AGENT, f"wait L2@2 {AGENT} x", "L2", {}) if letter.seq == 12 else letter
        for letter in evidence.letters
    ]
    evidence.letters = [msgspec.structs.replace(x, label=label) if x.seq == 13 else x for x in evidence.letters]
    evidence.results = [
        msgspec.structs.replace(o, text=f"wait L2@2 => {answer}") if o.ref == "12" else o for o in evidence.results
    ]
    evidence.operations, evidence.told = [], []


def wait_whose_request_never_came(evidence: Evidence) -> None:
    _waiting(evidence, "an answer", "L3")


def told_lost_although_it_came(evidence: Evidence) -> None:
    log = ["prompt|-|L1", "event|-|E1", "prompt|-|L2", f"undelivered|-|{AGENT}:mailbox_full", "prompt|-|L3"]
    _rewrite(evidence, log)


def test_a_relay_that_met_a_full_mailbox_for_too_long_is_accounted_for() -> None:
    evidence = honest()
    lost_relay(evidence)
    told_lost_although_it_came(evidence)
    assert [line for line in judge(evidence, {AGENT}) if "relay" in line or "consumed 0" in line] == []


def _asking(evidence: Evidence, end: Record) -> None:
    """`end` follows a step of a turn for request 12, in which `k1` was asked, with the origin 1.6.0."""
    owner = (9, "n2", "boot2")
    log = ["prompt|-|L1", "event|-|E1"]
    turning = Turning(key="inbox:12", number=2, prompt="add L2")
    step = _record("step", log, owner=owner)
    change = msgspec.structs.replace(
        step.change, turning=turning, waits={"w": Wait(agent="k1", since=0.0, deadline=9.0, origin="1.6.0")}
    )
    records = [*evidence.journals[AGENT][:5], (6, msgspec.structs.replace(step, change=change)), (7, end)]
    evidence.journals = {AGENT: [*records, (8, _record("rest", log, owner=owner))]}


def _end(*effects: Effect, delegated: dict[str, Delegated | None] | UnsetType = UNSET) -> Record:
    record = _record("turn", ["prompt|-|L1", "event|-|E1"], owner=(9, "n2", "boot2"))
    failed = Outcome(agent=AGENT, ref="12", ok=False, error=ErrorBody(code="interrupted"))
    change = msgspec.structs.replace(record.change, turning=None, waits={"w": None}, delegated=delegated)
    return msgspec.structs.replace(record, change=change, effects=(Resolve(outcome=failed), *effects))


WITHDRAWAL = SendMail(to="k1", lane="peer-answer", event={"withdraws": "1.6.0"})


def forgotten_question(evidence: Evidence) -> None:
    _asking(evidence, _end())


def question_that_never_came_back(evidence: Evidence) -> None:
    _asking(evidence, _end(WITHDRAWAL, delegated={"1.6.0": Delegated("k1", "12", True)}))


def call_of_what_was_withdrawn(evidence: Evidence) -> None:
    """`k1` withdraws its request 12 at 5.0; the owner that begins at 6.0 makes a call for it at 7.0."""
    headers = {"Mesh-From": "k1", "Mesh-Origin": "1.3.0"}
    evidence.letters = [
        *(Letter(x.seq, "peer-inbox", AGENT, x.text, x.label, headers) if x.seq == 12 else x for x in evidence.letters),
        Letter(14, "peer-answer", AGENT, "", f"{WITHDRAWS}1.3.0", headers, 5.0),
    ]
    evidence.owners = {AGENT: [(1.0, "n1"), (6.0, "n2")]}
    evidence.calls = [Call(AGENT, "12", "n2", 7.0)]


def late_call_of_what_was_withdrawn(evidence: Evidence) -> None:
    call_of_what_was_withdrawn(evidence)
    evidence.owners = {AGENT: [(1.0, "n1")]}
    evidence.calls = [Call(AGENT, "12", "n1", 7.0 + HEARD_S)]
    evidence.calm = 3.0


def test_an_owner_that_could_not_have_heard_of_a_withdrawal_may_make_its_call() -> None:
    evidence = honest()
    call_of_what_was_withdrawn(evidence)
    evidence.owners = {AGENT: [(1.0, "n1")]}
    evidence.calls = [Call(AGENT, "12", "n1", 7.0), Call(AGENT, "12", "n2", 4.0)]
    assert not [line for line in judge(evidence, {AGENT}) if "began a call" in line]


def test_what_is_withdrawn_and_came_back_is_well() -> None:
    evidence = honest()
    _asking(evidence, _end(WITHDRAWAL))
    assert not [line for line in judge(evidence, {AGENT}) if "leaves" in line or "came back" in line]


def _paid(evidence: Evidence, *made: tuple[str, str]) -> None:
    """Payments to `L2/0`, by tool and key."""
    evidence.payments = [Payment(AGENT, tool, "L2/0", key, "n1", 1.0) for tool, key in made]


def two_payments(evidence: Evidence) -> None:
    _paid(evidence, ("pay", "k"), ("pay", "k"))


def two_transfers(evidence: Evidence) -> None:
    _paid(evidence, ("transfer", "k"), ("transfer", "another"))


def payment_that_was_not_made(evidence: Evidence) -> None:
    evidence.results = [msgspec.structs.replace(o, text="pay L2 1 ok") if o.ref == "12" else o for o in evidence.results]


def test_a_transfer_under_one_key_is_one_payment() -> None:
    evidence = honest()
    _paid(evidence, ("transfer", "k"), ("transfer", "k"))
    assert judge(evidence, {AGENT}) == []


def _expired(evidence: Evidence, at: float) -> None:
    """L3, which ends by the 100th second, has expired at that time."""
    end_by = wire.format_time(1100.0)
    log = ["prompt|-|L1", "event|-|E1", "prompt|-|L2"]
    _rewrite(evidence, log)
    evidence.letters = [msgspec.structs.replace(x, headers={wire.END_BY: end_by}) if x.seq == 13 else x for x in evidence.letters]
    failed = Outcome(agent=AGENT, ref="13", ok=False, error=ErrorBody(code="expired"))
    evidence.results = [*(o for o in evidence.results if o.ref != "13"), failed]
    evidence.operations, evidence.told = [], []
    evidence.epoch, evidence.stored = 1000.0, {(AGENT, "13"): at}


def expired_too_early(evidence: Evidence) -> None:
    _expired(evidence, 90.0)


def test_a_request_whose_time_is_over_may_expire() -> None:
    evidence = honest()
    _expired(evidence, 101.0)
    assert [line for line in judge(evidence, {AGENT}) if "13" in line] == []


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
        (miscount, "has counted 5, and consumed 4"),
        (unrecorded, "no record shows 1 of the things"),
        (accepted_and_not_stored, "was told that L5 is 17"),
        (event_accepted_and_not_stored, "was told that the event E2"),
        (stored_in_another_order, "c0 sent L2 to k0 after L3"),
        (effects_in_another_order, "a newer one of k1 lies before it"),
        (two_answers, "was answered"),
        (two_outcomes, "2 stored outcomes"),
        (false_answer, "was answered"),
        (answered_without_a_turn, "no turn of it counts"),
        (lost_relay, "was consumed 0 times"),
        (lost_timer, "came 0 times"),
        (lost_step, "leaves the steps"),
        (forgotten_steps, "and had 2 before"),
        (steps_that_outlive_their_turn, "of a turn that is over"),
        (wait_whose_request_never_came, "and that was consumed 0 times"),
        (told_lost_although_it_came, "could not be delivered which were"),
        (forgotten_question, "and leaves {'1.6.0'} open"),
        (question_that_never_came_back, "never came back"),
        (call_of_what_was_withdrawn, "began a call at 7.000 for 12"),
        (late_call_of_what_was_withdrawn, "began a call at 67.000 for 12"),
        (two_payments, "was paid 2 times by pay"),
        (two_transfers, "was paid 2 times by transfer"),
        (payment_that_was_not_made, "is paid, which it is not"),
        (expired_too_early, "was answered error expired"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_forged_history_is_found_out(forge: Callable[[Evidence], None], verdict: str) -> None:
    evidence = copy.deepcopy(honest())
    forge(evidence)
    assert any(verdict in line for line in judge(evidence, {AGENT})), judge(evidence, {AGENT})
