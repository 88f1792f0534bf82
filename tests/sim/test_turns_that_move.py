"""Turns that are handed on again and again, since the nodes that run them are drained one after the other (cases 670 to 673)."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from typing import Any

import pytest

from agentmesh.wire import Outcome
from agentmesh_client.admin import Operator
from agentmesh_client.client import Mesh
from judge.moves import hand_overs, moved_wrongly, repeated
from sim.agents import Cell
from sim.checker import gather
from sim.command import sim
from sim.loop import SimLoop, process_name, run_sim
from sim.server import EPOCH
from sim.world import World

EVERY_S = 2.0
"""Between two drains of the node that runs the turn."""
BOUND_S = 15.0
LATE_S = 1.0
"""How much later than it says a bound may end a turn: an agent may be between two owners then."""


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.case(670)
@pytest.mark.case(671)
@pytest.mark.case(673)
@pytest.mark.parametrize("first", [1, 501])
def test_an_orderly_end_makes_no_call_again(first: int) -> None:
    said = sim("--seed", str(first), "--seeds", "12", "--faults", "drain_node,rebalance,move", "--jobs", "2")
    assert "0 failed" in said
    moved = re.search(r"(\d+) hand-overs", said)
    assert moved is not None and int(moved[1]) > 20, said


@pytest.mark.case(672)
@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"watchdog_s": BOUND_S}, "timeout"),
        ({"budget": {"wall_s": BOUND_S}}, "budget_exceeded"),
        ({"end_by": BOUND_S}, "expired"),
    ],
    ids=["watchdog", "wall", "end"],
)
def test_a_turn_that_moves_ends_when_it_would_have_ended_where_it_began(options: dict[str, Any], code: str) -> None:
    found: list[tuple[Outcome, float]] = []

    async def main(loop: SimLoop) -> None:
        world = World(loop, f"bound {code}")
        Cell.dice, Cell.slowness, Cell.crashed, Cell.where = world.dice("agents"), 0.0, set(), process_name
        Cell.calls.clear()
        Cell.made.clear()
        await world.prepare()
        world.supervisor("s1")
        for name in ("n1", "n2", "n3"):
            world.node(name)

        async def client() -> None:
            async with world.client("c1") as mesh:
                own = {name: value for name, value in options.items() if name != "end_by"}
                await mesh.start_agent("a", kind="Cell", **own)
                end_by = dt.datetime.fromtimestamp(EPOCH + loop.time() + BOUND_S, dt.UTC) if "end_by" in options else None
                began = loop.time()
                moving = loop.create_task(_move(mesh))
                outcome = await mesh.ask_outcome("a", "slowly L 1000", timeout=200.0, end_by=end_by)
                found.append((outcome, loop.time() - began))
                moving.cancel()
                await asyncio.wait((moving,))

        await world.process("c1").spawn(client())
        evidence = gather(world.net.server, world.subjects, [], turn_calls=Cell.made)
        assert list(moved_wrongly(evidence)) == []
        assert list(repeated(evidence.turn_calls)) == []
        assert len(hand_overs(evidence)) >= BOUND_S / EVERY_S / 2
        assert loop.defects == []

    run_sim(main)
    ((outcome, took_s),) = found
    assert outcome.error is not None and outcome.error.code == code, outcome
    assert BOUND_S - 0.01 <= took_s < BOUND_S + LATE_S


async def _move(mesh: Mesh) -> None:
    while True:
        await asyncio.sleep(EVERY_S)
        placed = await mesh.whereis("a")
        if placed is not None:
            await Operator(mesh.transport, mesh.subjects).drain(placed)
