"""What the next owner tells of attempts that nobody ended."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from agentmesh import semconv
from agentmesh.identity import Party
from agentmesh.ledger_entries import Inner, Step, Traced, TurnInfo, Turning, Wait
from agentmesh.records import Change, Ledger, Record
from agentmesh.trace.lost import MARGIN_S, Taken, abandoned, last_records, nodes_in, since, unended
from agentmesh.trace.spans import Began

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FORMER, OWN = (5, "boot-1"), (9, "boot-2")


def began(span: str = "a" * 16, *, owner: tuple[int, str] = FORMER, **fields: Any) -> Began:
    known: dict[str, Any] = {
        "trace": TRACE, "span": span, "parent": PARENT, "agent": "coder", "service": "Coder", "life": "life", "ref": "12",
        "input": "inbox:12", "turn": 2, "started": 100.0, "node": "n1", "generation": owner[0], "boot": owner[1],
    }  # fmt: skip
    return Began(**known | fields)


def ended(number: int, span: str, *, at: float, owner: tuple[int, str] = FORMER) -> TurnInfo:
    return TurnInfo(
        number=number, ref=str(number), started=at - 1, ended=at, node="n1", generation=owner[0],
        trace=Traced(trace=TRACE, span=span, boot=owner[1]),
    )  # fmt: skip


def record(kind: Any, at: float, owner: tuple[int, str] = FORMER, **fields: Any) -> Record:
    return Record(kind=kind, id="r", at=at, incarnation="life", epoch=1, generation=owner[0], node="n1", boot=owner[1], **fields)


def taken(*, died: bool = True, records: Any = (), **ledger: Any) -> Taken:
    former: dict[str, Any] = {"incarnation": "life", "generation": FORMER[0], "boot": FORMER[1], "node": "n1", "phase": "ready"}
    return Taken(
        agent="coder", kind="Coder", ledger=Ledger(**former | ledger), records=records, at=200.0, generation=OWN[0], boot=OWN[1],
        died=died,
    )  # fmt: skip


@pytest.mark.case(680)
def test_an_attempt_that_died_says_on_whose_behalf_it_was() -> None:
    shop = Party(kind="user", name="shop", account="CALLERS")
    (found,) = unended(taken(), [began(chain=(shop,))], ())
    assert found.spans[0].attributes[semconv.CHAIN] == "user shop of CALLERS"


@pytest.mark.parametrize(("died", "end"), [(True, "lost"), (False, "fenced")])
def test_an_attempt_that_said_that_it_began_is_told(died: bool, end: str) -> None:
    (found,) = unended(taken(died=died), [began()], ())
    (span,) = found.spans
    assert (span.id, span.trace, span.parent, span.start, span.end) == ("a" * 16, TRACE, PARENT, 100.0, 200.0)
    assert (span.service, span.node, span.error, span.attributes[semconv.ATTEMPT_END]) == ("Coder", "n1", end, end)


def test_one_that_was_given_up_in_order_has_moved() -> None:
    (found,) = unended(taken(), [began(), began(left=150.0)], ())
    assert (found.spans[0].attributes[semconv.ATTEMPT_END], found.spans[0].end, found.spans[0].error) == ("moved", 150.0, "")


@pytest.mark.case(732)
def test_one_that_was_handed_on_has_moved_although_its_node_died_behind_that() -> None:
    turning = Turning(key="inbox:12", number=2, prompt="work", began=100.0, moves=1)
    (found,) = unended(taken(records=[(7, record("step", 150.0, change=Change(turning=turning)))]), [began()], ())
    assert (found.spans[0].attributes[semconv.ATTEMPT_END], found.spans[0].end, found.spans[0].error) == ("moved", 150.0, "")


def test_one_whose_end_the_journal_has_is_not_told() -> None:
    one, two, three = (letter * 16 for letter in "abc")
    refused = record("refused", 90.0, attempt=ended(2, two, at=90.0))
    begun = [began(one), began(two), began(three)]
    found = unended(taken(history=(ended(1, one, at=80.0),), records=[(7, refused)]), begun, ())
    assert [attempt.attempt for attempt in found] == [three]


def test_one_that_failed_before_a_turn_which_its_owner_has_ended_is_not_told_though_no_record_of_it_is_left() -> None:
    """An attempt that is tried again is no turn of the history, and behind a snapshot its record may be purged."""
    history = (ended(2, "a" * 16, at=80.0),)
    failed = [began("b" * 16), began("c" * 16, turn=1), began("d" * 16, owner=(4, "boot-0"), turn=1), began("e" * 16, turn=3)]
    found = unended(taken(history=history), failed, ())
    assert {attempt.attempt for attempt in found} == {"d" * 16, "e" * 16}, "another owner's, and a later one"


def test_neither_are_those_of_this_owner_of_later_ones_and_of_former_lives() -> None:
    others = [began("b" * 16, owner=OWN), began("c" * 16, owner=(11, "boot-3")), began("d" * 16, life="before")]
    assert unended(taken(), others, ()) == ()


def test_a_node_that_was_started_again_has_its_agents_by_the_same_placements() -> None:
    again = structs.replace(taken(), generation=FORMER[0])
    (found,) = unended(again, [began(started=1e9)], ())
    assert found.attempt == "a" * 16, "though a clock has gone wrong"
    assert unended(again, [began(owner=(FORMER[0], "boot-9"), started=1e9)], ()) == (), "a later process's"


def test_one_that_is_older_than_the_history_counts_as_told() -> None:
    history = tuple(ended(number, f"{number:016x}", at=float(number)) for number in (3, 4))
    older = [began(turn=2, owner=(4, "boot-0"))]
    assert unended(taken(history=history, history_limit=2), older, ()) == ()
    assert len(unended(taken(history=history), older, ())) == 1


def test_several_owners_may_have_died_one_after_the_other() -> None:
    first, second = began("b" * 16, owner=(3, "boot-0"), node="n0", started=50.0), began()
    records = [(1, record("activated", 40.0, (3, "boot-0"))), (2, record("activated", 60.0))]
    both = taken(records=records)
    assert nodes_in(both, [first, second]) == {"boot-0": "n1"}, "the record's word goes last"
    lost, _ = unended(both, [second, first], ())
    assert (lost.attempt, lost.spans[0].attributes[semconv.ATTEMPT_END], lost.spans[0].end) == ("b" * 16, "lost", 60.0)
    alive, _ = unended(both, [second, first], {"boot-0"})
    assert alive.spans[0].attributes[semconv.ATTEMPT_END] == "fenced"


def test_steps_tell_of_an_attempt_without_a_fact_and_of_what_it_cost() -> None:
    call = Inner(
        id="1" * 16, op="chat", name="m", began=101.0, ended=102.0, attributes={semconv.INPUT_TOKENS: 7, semconv.COST: 0.5}
    )
    step = Step(began=101.0, ended=102.0, generation=5, boot="boot-1", attempt="a" * 16, inner=call)
    further = structs.replace(step, began=103.0, ended=104.0, inner=structs.replace(call, id="2" * 16))
    traced = Traced(trace=TRACE, span="a" * 16, parent=PARENT, began=100.0, links=(f"{TRACE}-{'9' * 16}",), sampled=False)
    turning = Turning(key="inbox:12", number=2, prompt="secret", began=100.0, traced=traced)
    (found,) = unended(taken(turning=turning, steps={"0": step, "1": further}), (), ())
    attempt, *calls = found.spans
    assert (attempt.trace, attempt.parent, attempt.start, attempt.sampled) == (TRACE, PARENT, 100.0, False)
    assert (attempt.attributes[semconv.REF], attempt.attributes[semconv.TURN], attempt.links) == ("12", 2, traced.links)
    assert (attempt.attributes[semconv.INPUT_TOKENS], attempt.attributes[semconv.COST]) == (14, 1.0)
    assert [(span.id, span.parent, span.sampled) for span in calls] == [("1" * 16, "a" * 16, False), ("2" * 16, "a" * 16, False)]
    assert "secret" not in str(found.spans)
    (same,) = unended(taken(turning=turning, steps={"0": step, "1": further}), [began(sender="boss", links=traced.links)], ())
    assert [span.id for span in same.spans] == [span.id for span in found.spans], "with both it is still one"


def test_questions_of_a_turn_tell_of_an_attempt_that_took_no_step() -> None:
    """What was asked stands below it: no parent that the mesh has made is missing."""
    traced = Traced(trace=TRACE, span="a" * 16, parent=PARENT, began=100.0)
    turning = Turning(key="inbox:12", number=2, prompt="p", began=100.0, traced=traced)
    first = Wait(agent="b", since=101.0, deadline=160.0, generation=5, boot="boot-1", attempt="a" * 16)
    later = structs.replace(first, since=130.0, generation=6, boot="boot-8", attempt="b" * 16)
    own = structs.replace(first, since=210.0, generation=OWN[0], boot=OWN[1], attempt="c" * 16)
    found = unended(taken(turning=turning, waits={"w": first, "x": later, "y": own}), (), ())
    assert [(one.attempt, one.spans[0].start, one.spans[0].parent) for one in found] == [
        ("a" * 16, 100.0, PARENT),
        ("b" * 16, 130.0, PARENT),
    ]


def test_facts_are_looked_for_since_the_turn_before_the_former_owner() -> None:
    before, own = ended(1, "b" * 16, at=50.0, owner=(3, "boot-0")), ended(2, "c" * 16, at=90.0)
    assert since(taken(history=(before, own))) == 50.0 - MARGIN_S
    assert since(taken(history=(own,), history_limit=1)) == 90.0 - MARGIN_S
    assert since(taken(history=(own,))) == 89.0 - MARGIN_S, "a young life's beginning"
    assert since(taken(records=[(1, record("activated", 40.0))])) == 40.0 - MARGIN_S
    assert since(taken(turning=Turning(key="inbox:1", number=1, prompt="", began=30.0))) == 30.0 - MARGIN_S


def test_the_last_records_of_former_owners_come_with_what_they_changed() -> None:
    other = record("activated", 180.0, (3, "boot-0"), snapshot=Ledger(incarnation="life"))
    records = [(1, other), (2, record("activated", 181.0)), (3, record("turn", 189.0)), (4, record("rest", 195.0))]
    found = [
        (before.generation if before else None, told.kind, seq) for before, told, seq in last_records(taken(records=records))
    ]
    assert found == [(5, "turn", 3), (5, "rest", 4)], "of the last seconds alone"


def test_what_its_own_process_has_given_up_is_fenced() -> None:
    span = abandoned(began(crashes=1), at=120.0, epoch=2)
    assert (span.id, span.end, span.error, span.attributes[semconv.ATTEMPT]) == ("a" * 16, 120.0, "fenced", 2)
    assert span.attributes[semconv.EPOCH] == 2
