"""Who may act (docs/architecture.md#who-may-act): the verdict on a claim, from the spec and the journal alone."""

from __future__ import annotations

import pytest
from msgspec import structs

from agentmesh.ownership import Claim, Verdict, judge, kept_spec, restored_spec
from agentmesh.records import Ledger, LifePhase, Open, Resolve
from agentmesh.registry_values import AgentStatus, Spec
from agentmesh.wire import Outcome

SPEC = Spec(kind="K", incarnation="life", status="running")
CLAIM = Claim(node="n2", boot="new", epoch=1, generation=10, incarnation="life")
OLDER = Ledger(incarnation="life", epoch=1, generation=5, node="n1", boot="old", phase="ready", positions={"inbox": 7})


def verdict(
    *, claim: Claim = CLAIM, spec: Spec | None = SPEC, ledger: Ledger | None = OLDER, lease_boot: str | None = None
) -> Verdict:
    return judge(claim, spec, ledger, lease_boot=lease_boot)


def test_a_placement_that_the_journal_has_not_outgrown_may_act() -> None:
    assert verdict().act == "activate"
    assert verdict(ledger=None).act == "activate"


def test_a_generation_below_the_newest_in_the_journal_yields() -> None:
    assert verdict(ledger=structs.replace(OLDER, generation=11)).act == "yield"


def test_a_restore_raises_the_epoch_and_outranks_every_generation_before_it() -> None:
    assert (
        verdict(claim=structs.replace(CLAIM, epoch=2, generation=1), ledger=structs.replace(OLDER, generation=99)).act
        == "activate"
    )
    assert verdict(ledger=structs.replace(OLDER, epoch=2, generation=1)).act == "yield"


@pytest.mark.parametrize("spec", [None, structs.replace(SPEC, status="stopped"), structs.replace(SPEC, incarnation="another")])
def test_an_incarnation_that_is_not_the_spec_s_yields(spec: Spec | None) -> None:
    assert verdict(spec=spec).act == "yield"


@pytest.mark.parametrize(("lease_boot", "act"), [("new", "activate"), ("other", "yield"), (None, "activate")])
def test_of_two_with_one_generation_the_one_with_the_newer_lease_acts(lease_boot: str | None, act: str) -> None:
    same = structs.replace(OLDER, generation=CLAIM.generation, node=CLAIM.node)
    assert verdict(ledger=same, lease_boot=lease_boot).act == act


@pytest.mark.parametrize("status", ["running", "stopping", "failed", "wanted"])
def test_after_a_stopped_record_or_a_tombstone_nobody_activates_that_incarnation(status: AgentStatus) -> None:
    spec = structs.replace(SPEC, status=status)
    assert verdict(spec=spec, ledger=structs.replace(OLDER, phase="stopped")).act == "finish"
    assert verdict(spec=spec, ledger=structs.replace(OLDER, phase="over")).act == "over"


@pytest.mark.parametrize(("phase", "inherited"), [("over", True), ("stopped", False), ("ready", False)])
def test_a_new_life_gives_the_answers_that_a_sweep_behind_the_end_of_the_last_has_left_open(
    phase: LifePhase, inherited: bool
) -> None:
    due = {"1.7.0": Open(Resolve(outcome=Outcome(agent="a", ref="3", ok=False)), "n", 1.0)}
    found = verdict(ledger=structs.replace(OLDER, incarnation="former", phase=phase, effects=due))
    assert found.ledger is not None
    assert found.ledger.effects == (due if inherited else {})


def test_positions_and_newest_origins_belong_to_the_name_and_all_else_to_the_life() -> None:
    former = structs.replace(
        OLDER,
        incarnation="former",
        phase="over",
        origins={"boss/peer-inbox": "1.4.0"},
        taken={"inbox": (9,)},
        halted=True,
        turn=12,
    )
    found = verdict(ledger=former)
    assert (found.act, found.snapshot) == ("activate", True)
    assert found.ledger == Ledger(
        incarnation="life", positions={"inbox": 7}, taken={"inbox": (9,)}, origins={"boss/peer-inbox": "1.4.0"}
    )


@pytest.mark.case(712)
def test_a_journal_keeps_what_was_asked_for_and_no_order_that_will_have_been_carried_out() -> None:
    spec = structs.replace(SPEC, ran=True)
    ledger = structs.replace(OLDER, spec=kept_spec(spec, OLDER))
    assert kept_spec(structs.replace(spec, move_to="n2", turn_code="old"), ledger) is ledger.spec
    assert restored_spec(ledger) == spec
