"""All nodes and supervisors tell their clocks, the standbys among them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from agentmesh.edge.connection import NatsTransport
from agentmesh_client.doctor.members import MemberFacts, look
from rules.scene import KINDS
from sim.loop import SimLoop, run_sim
from sim.world import World

AHEAD = {"n1": -3600.0, "n2": 0.0, "s1": 90.0, "s2": 3600.0}


def asked(world: World, nodes: dict[str, str]) -> Any:
    async def ask() -> list[MemberFacts]:
        async with world.client("c1") as mesh:
            return await look(cast("NatsTransport", mesh.transport), world.subjects, nodes, "s1")

    return world.process("c1").spawn(ask())


@pytest.mark.case(333)
def test_every_process_tells_its_clock_and_what_time_it_takes_it_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(loop: SimLoop) -> list[MemberFacts]:
        world = World(loop, "members")
        world.ahead.update(AHEAD)
        # The doctor's own clock is the process's: here it is the world's.
        monkeypatch.setattr("agentmesh_client.doctor.members.SYSTEM", world.ambient("doctor"))
        await world.prepare()
        for name in ("s1", "s2"):
            world.supervisor(name)
        for name in ("n1", "n2"):
            world.node(name, agents=KINDS)
        await asyncio.sleep(5.0)
        found: list[MemberFacts] = await asked(world, {"n1": "1", "n2": "2", "gone": "3"})
        return found

    found = {member.id: member for member in run_sim(main)}
    assert list(found) == ["s1", "s2", "n1", "n2", "gone"]
    for name, ahead in AHEAD.items():
        member = found[name]
        assert (member.role, member.answers) == ("supervisor" if name.startswith("s") else "node", True)
        assert member.clock_ahead_s == pytest.approx(ahead, abs=0.1)
        assert member.server_ahead_s == pytest.approx(0.0, abs=0.1)
    assert found["n2"].version == "2"
    assert found["gone"] == MemberFacts(id="gone", role="node", version="3")
