"""A running turn that is handed on between two calls (docs/design/047-a-turn-moves.md; cases 670 to 673)."""

from __future__ import annotations

import pytest
from msgspec import structs

from agentmesh.records import decode_record
from agentmesh.turn.values import HandOn, Interrupt, Phase, Retire
from mesh.turn.harness import agent
from mesh.turn.stepping import Stepping
from mesh.turn.test_poison import Rig as Mortal


@pytest.fixture
def bench() -> Stepping:
    return Stepping()


def hand_on(bench: Stepping | Mortal) -> None:
    bench.feed(Retire(), HandOn(bench.running().number))


@pytest.mark.case(670)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_next_owner_goes_on_behind_the_record_of_the_hand_over(bench: Stepping, steps: int) -> None:
    ref = bench.prompt("work")
    key = bench.running().key
    for number in range(steps):
        bench.take(number)
    hand_on(bench)
    assert bench.core.phase is Phase.HANDED_ON
    last = decode_record(bench.journal[-1][1])
    assert last.kind == "step", "the build before reads it as it reads any other step"
    bench.kill()
    assert (bench.given(), bench.running().key) == (list(range(steps)), key)
    bench.finish("done")
    assert bench.answer(ref) == "done"
    bench.rested()


@pytest.mark.case(671)
def test_nothing_follows_the_record_of_the_hand_over(bench: Stepping) -> None:
    bench.prompt("work")
    bench.take("one")
    bench.auto_commit = False
    hand_on(bench)
    bench.interrupt("early")
    bench.prompt("next")
    bench.auto_commit = True
    bench.commit()
    written = len(bench.journal)
    bench.interrupt("late")
    bench.feed(Interrupt("again"))
    bench.stop()
    bench.tick(bench.now + 10_000)
    assert len(bench.journal) == written
    assert not {"early", "late", "again"} & set(bench.answers), "the next owner answers those requests"
    bench.kill()
    bench.finish("done")
    bench.finish("and the next")


@pytest.mark.case(671)
@pytest.mark.parametrize("landed", [True, False])
def test_a_node_that_dies_with_the_hand_over_charges_nothing(landed: bool) -> None:
    bench = Mortal(max_takeovers=1)
    ref = bench.prompt("work")
    bench.die()
    assert bench.core.ledger.trying is not None, "its node died once: the next owner names it"
    for _ in range(5):
        hand_on(bench)
        if landed:
            bench.die()
        else:
            bench.kill()
    bench.finish("done")
    assert bench.answer(ref) == "done"


def test_a_turn_is_handed_on_by_an_owner_that_leaves_and_by_no_other(bench: Stepping) -> None:
    bench.prompt("work")
    bench.take("one")
    bench.feed(HandOn(bench.running().number))
    assert bench.core.phase is Phase.TURN
    bench.feed(Retire(), HandOn(bench.running().number + 1))
    assert bench.core.phase is Phase.TURN
    bench.finish("done")


@pytest.mark.case(672)
def test_the_watchdog_counts_from_the_first_start_over_all_owners() -> None:
    bench = Stepping(agent(), watchdog_s=100.0)
    bench.prompt("work")
    assert bench.running().watchdog_s == 100.0
    bench.take("one")
    bench.now += 30.0
    hand_on(bench)
    bench.kill()
    assert bench.running().watchdog_s == pytest.approx(70.0)
    bench.now += 30.0
    bench.kill()
    assert bench.running().watchdog_s == pytest.approx(40.0)
    bench.finish("done")
    bench.prompt("other")
    assert bench.running().watchdog_s == 100.0, "it begins anew with each turn"


@pytest.mark.case(717)
def test_a_turn_that_goes_on_with_other_code_names_both(bench: Stepping) -> None:
    def ended(*versions: str) -> tuple[str, ...]:
        """The versions that the record of a turn names which has an owner of each of `versions`, one after the other."""
        bench.config = structs.replace(bench.config, code=versions[0])
        bench.kill()
        bench.prompt("work")
        bench.take("one")
        for version in versions[1:]:
            hand_on(bench)
            bench.config = structs.replace(bench.config, code=version)
            bench.kill()
        bench.finish("done")
        (info,) = [turn for _, data in bench.journal[-1:] if (turn := decode_record(data).turn) is not None]
        return info.code

    assert ended("old", "old") == ()
    assert ended("old", "new") == ("old", "new")
    assert ended("old", "new", "old") == ()
    assert ended("old", "new", "newest") == ("old", "newest")
    assert ended("", "new") == () == ended("old", ""), "what is not known is not named"
