"""Agents that a node is asked to give up although it stays go a few at a time, too (case 724)."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from agentmesh_node.host.pace import UNDER_WAY, MovePace, Releases
from agentmesh_node.host.placed_agent import PlacedAgent
from node.simulated import SimulatedNode, simulate

pytestmark = pytest.mark.case(724)


class Turning:
    """An owner in a turn."""

    core = object()
    idle = False

    def __init__(self, *, movable: bool = True) -> None:
        self.movable = movable


class Asked:
    """A node that is asked for its agents."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.goes_on = asyncio.Event()
        self.placed = dict[str, PlacedAgent]()
        self.given_up: list[str] = []
        self.pace = MovePace(self._elsewhere)
        self.releases = Releases(self.placed, self._hand_over, self.pace)

    def add(self, *names: str, owner: Turning | None = None) -> None:
        for name in names:
            self.placed[name] = PlacedAgent(name, 1, "life")
            self.placed[name].owner = cast("Any", owner)

    async def _hand_over(self, agent: PlacedAgent) -> None:
        await asyncio.sleep(0.1)  # of the simulated clock
        self.given_up.append(agent.name)
        if not agent.name.startswith("odd"):
            del self.placed[agent.name]
        else:
            raise RuntimeError("it does not work")

    async def _elsewhere(self, agent: str) -> None:
        await self.goes_on.wait()

    async def close(self) -> None:
        await self.releases.close()
        await self.pace.close()


def test_hundreds_of_running_turns_are_handed_on_a_few_at_a_time() -> None:
    async def story(node: SimulatedNode) -> None:
        it = Asked(node)
        names = [f"t{number:03}" for number in range(300)]
        it.add(*names, owner=Turning())
        it.add("idle", "asleep")
        it.releases.ask([*names, "idle", "asleep", "unknown"], any_turn=False)
        it.releases.ask(names, any_turn=True)  # asked again, as by a leader that has heard nothing yet
        await node.pass_time(2.0)
        first = len(it.given_up)
        assert {"idle", "asleep"} < set(it.given_up) and UNDER_WAY < first < 60, "those that were on their way go too"
        await node.pass_time(10.0)
        assert len(it.given_up) == first, "no other while none of them goes on"
        it.goes_on.set()
        await node.until(lambda: not it.placed, "all of them")
        assert sorted(it.given_up) == sorted([*names, "idle", "asleep"])
        await it.close()

    simulate(story)


def test_a_turn_that_cannot_go_on_elsewhere_stays_unless_it_is_to_end_first() -> None:
    async def story(node: SimulatedNode) -> None:
        it = Asked(node)
        it.add("plain", "ends", owner=Turning(movable=False))
        it.add("odd", owner=Turning())
        it.releases.ask(["plain", "odd"], any_turn=False)
        it.releases.ask(["ends"], any_turn=True)
        await node.until(lambda: "ends" not in it.placed, "the one that is ordered elsewhere")
        await node.pass_time(1.0)
        assert sorted(it.given_up) == ["ends", "odd"] and sorted(it.placed) == ["odd", "plain"]
        assert len(node.logged("an agent was not given up")) == 1
        node.logs.clear()
        it.releases.ask(["odd"], any_turn=True)
        await node.until(lambda: it.given_up.count("odd") == 2, "it is asked for again")
        node.logs.clear()
        await it.close()

    simulate(story)


def test_a_node_that_ends_gives_up_no_more_of_them() -> None:
    async def story(node: SimulatedNode) -> None:
        it = Asked(node)
        it.add(*(f"t{number}" for number in range(30)), owner=Turning())
        it.releases.ask(list(it.placed), any_turn=False)
        await node.pass_time(0.05)
        await it.close()
        given_up = len(it.given_up)
        await node.pass_time(5.0)
        assert len(it.given_up) == given_up < 30

    simulate(story)
