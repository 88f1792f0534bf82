"""Inputs that kill the nodes that handle them (docs/architecture.md#poison; case 209)."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh import ledger as book
from agentmesh.agent import Agent, Idle
from agentmesh.records import Bury, decode_record
from agentmesh.turn import machine
from agentmesh.turn.values import AwaitPermit, Cleared, Command, ReturnPermit, Start
from mesh.turn.harness import Plain, agent
from mesh.turn.harness import Rig as World


class Rig(World):
    """A world in which nodes die. With `suspects_wait`, leave for a suspect input comes only by `clear`."""

    def __init__(self, cls: type[Agent[Any]] = Plain, *, suspects_wait: bool = False, **more: Any) -> None:
        self.died = False
        self.suspects_wait = suspects_wait
        self.leaves = 0
        super().__init__(cls, **more)

    def die(self) -> None:
        """The owner dies with its node."""
        self.died = True
        self.leaves = 0
        self.kill()

    def clear(self) -> None:
        """The node handles no other suspect."""
        self.feed(Cleared())

    def activate(self) -> None:
        ledger = self.folded()
        if ledger is None:
            super().activate()
            return
        died, self.died = self.died, False
        self.generation += 1
        self._store(self._record("activated", change=book.diff(ledger, book.charged(ledger, died))))
        owned = self.folded()
        assert owned is not None
        self.core = machine.new_core(self.config, owned)
        self.agent = self._instance()
        self.undone = dict(owned.effects)
        self.feed_backlog()
        self.feed(Start(died))
        self.do_effects()

    def _note(self, command: Command) -> None:
        if isinstance(command, AwaitPermit):
            self.leaves += 1
            if not self.suspects_wait:
                self.clear()
        elif isinstance(command, ReturnPermit):
            self.leaves -= 1
        else:
            super()._note(command)


def buried(bench: Rig) -> list[Bury]:
    return [effect for effect in bench.order if isinstance(effect, Bury)]


def named(bench: Rig) -> str | None:
    """The input that the journal says is being tried again."""
    return bench.core.ledger.trying


def kinds(bench: Rig) -> list[str]:
    return [decode_record(body).kind for _, body in bench.journal]


@pytest.mark.case(209)
def test_a_prompt_that_outlives_five_nodes_becomes_a_dead_letter_and_its_caller_is_told() -> None:
    bench = Rig()
    poison = bench.prompt("poison")
    behind = bench.prompt("behind")
    for _ in range(6):
        assert bench.running().prompt == "poison"
        bench.die()
    assert bench.running().prompt == "behind", "what waits behind it is served"
    outcome = bench.outcomes[poison]
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.details) == ("dead_letter", {"takeovers": 5})
    assert [(letter.lane, letter.reason.code) for letter in buried(bench)] == [("inbox", "dead_letter")]
    bench.finish()
    assert bench.outcomes[behind].text == "BEHIND"
    assert bench.core.ledger.takeovers == {}
    assert named(bench) is None


@pytest.mark.case(209)
def test_the_first_death_charges_nobody_and_moves_are_free() -> None:
    bench = Rig()
    ref = bench.prompt("slow")
    bench.die()
    assert named(bench) == f"inbox:{ref}"
    assert bench.core.ledger.takeovers == {}
    for _ in range(10):
        bench.kill()  # a takeover from an owner whose node lives: a fence, a move
    assert bench.core.ledger.takeovers == {}
    bench.finish()
    assert bench.outcomes[ref].ok


def test_without_a_death_nothing_is_named() -> None:
    bench = Rig()
    bench.prompt("one")
    bench.finish()
    assert "trying" not in kinds(bench)


def test_a_wary_owner_names_only_what_waited_and_each_only_once() -> None:
    bench = Rig()
    bench.prompt("one")
    bench.prompt("two")
    bench.die()
    bench.finish()
    bench.finish()
    assert kinds(bench).count("trying") == 2
    bench.prompt("three")
    bench.finish()
    assert kinds(bench).count("trying") == 2, "it is calm again"


def test_a_turn_that_ends_clears_what_it_was_charged_with() -> None:
    bench = Rig()
    ref = bench.prompt("slow")
    bench.die()
    bench.die()
    assert bench.core.ledger.takeovers == {f"inbox:{ref}": 1}
    bench.finish()
    assert bench.core.ledger.takeovers == {}
    assert bench.core.ledger.history[-1].takeovers == 1


@pytest.mark.case(209)
def test_an_input_charged_twice_waits_until_it_may_run_alone() -> None:
    bench = Rig(suspects_wait=True)
    bench.prompt("poison")
    for _ in range(3):
        bench.die()
    assert str(bench.core.phase) == "suspect"
    assert len(bench.turns) == 3
    assert named(bench) is None, "a bystander that waits is not charged when the node dies again"
    bench.die()
    assert bench.core.ledger.takeovers == {"inbox:1": 2}
    bench.clear()
    assert bench.running().prompt == "poison"
    assert named(bench) == "inbox:1"
    bench.finish()
    assert bench.leaves == 0, "leave was not given back"


def test_a_suspect_prompt_can_be_stopped_while_it_waits() -> None:
    bench = Rig(suspects_wait=True)
    ref = bench.prompt("poison")
    for _ in range(3):
        bench.die()
    bench.stop()
    error = bench.outcomes[ref].error
    assert error is not None and error.code == "stopped"


@pytest.mark.case(209)
def test_an_event_that_kills_nodes_becomes_a_dead_letter() -> None:
    def handle_event(self: Any, event: Any, state: list[Any]) -> Any:
        return Idle([*state, event])

    bench = Rig(agent(handle_event=handle_event), hold=("handle_event",))
    bench.event("poison")
    bench.event("harmless")
    for _ in range(6):
        assert bench.held[0].args == ("poison",)
        bench.die()
    assert bench.held[0].args == ("harmless",)
    bench.release()
    assert [(letter.lane, letter.seq) for letter in buried(bench)] == [("notify", 1)]
    assert bench.core.ledger.takeovers == {}


def test_a_crash_while_an_input_is_named_ends_the_naming() -> None:
    def handle_response(self: Any, ref: str, response: Any, state: list[Any]) -> Any:
        raise RuntimeError("no")

    bench = Rig(agent(handle_response=handle_response), max_attempts=1)
    bench.prompt("one")
    bench.die()
    bench.finish()
    assert named(bench) is None
    assert bench.core.ledger.attempts == {}
