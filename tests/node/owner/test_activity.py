"""What an owner says of its agent's work."""

from __future__ import annotations

import pytest

from agentmesh.control_values import Activity
from agentmesh.records import Ledger
from agentmesh.turn.values import Active, Config, Core, Phase
from agentmesh_node.owner.activity import activity_of


def core(phase: Phase, active: Active | None, *, halted: bool = False) -> Core:
    ledger = Ledger(incarnation="life", halted=halted, usage={"cost_usd": 1.0, "delegated": {"usd": 0.25}})
    found = Core(config=Config(name="coder", kind="Coder"), ledger=ledger, work=ledger)
    found.phase, found.active = phase, active
    return found


@pytest.mark.case(320)
def test_a_turn_shows_since_when_for_whom_in_which_tool_and_what_it_costs() -> None:
    active = Active(ref="7", key="inbox:7", number=1, text="p", original="p", started=0.5, sender="boss")
    found = activity_of("coder", core(Phase.TURN, active), lambda: {"usd": 0.5}, lambda: "grep")
    assert found == Activity(
        name="coder", state="processing", since="1970-01-01T00:00:00.500000Z", sender="boss", tool="grep", usd=1.75
    )


@pytest.mark.case(320)
def test_an_agent_at_rest_shows_nothing_of_its_last_turn() -> None:
    found = activity_of("coder", core(Phase.IDLE, None, halted=True), lambda: {"usd": 0.5}, lambda: "grep")
    assert found == Activity(name="coder", state="idle", halted=True, usd=1.25)
