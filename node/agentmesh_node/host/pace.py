"""How many running turns a node hands on at a time (docs/design/055-turns-are-handed-on-a-few-at-a-time.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from agentmesh.edge.tasks import Background, cancel_and_wait
from agentmesh_node.host.placed_agent import PlacedAgent

type HandOver = Callable[[PlacedAgent], Coroutine[Any, Any, None]]
"""Gives an agent up, once its turn lets it."""

LOOK_S = 0.02
UNDER_WAY = 8
"""While so many agents are given up and do not go on yet, no further turn is handed on."""
PER_LOOK = 4
"""So many turns are told at a time to go, if there are few (up to 200); of more a fiftieth. So all are told within a second."""

log = logging.getLogger("agentmesh.node")


class MovePace:
    """Follows the agents in running turns that a node has given up, until they go on elsewhere: each stands still until the next
    owner has read its journal, and the last of many that come there at once would stand still for as long as all of them take."""

    def __init__(self, goes_on: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        """`goes_on` returns when an agent that was given up goes on elsewhere, or is waited for no longer."""
        self._goes_on = goes_on
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def next_of(self, agents: Iterable[PlacedAgent]) -> list[PlacedAgent]:
        """Those of `agents` that may be told to go now: some of those in running turns, and all others."""
        there = list(agents)
        turning = [agent for agent in there if can_move(agent)]
        count = max(0, min(max(PER_LOOK, len(turning) // 50), UNDER_WAY - len(self._under_way)))
        later = set(turning[count:])
        return [agent for agent in there if agent not in later]

    def follow(self, agent: str) -> None:
        """Note that an agent in a running turn was given up."""
        if agent not in self._under_way:
            task = asyncio.get_running_loop().create_task(self._goes_on(agent), name=f"goes on {agent}")
            self._under_way[agent] = task
            task.add_done_callback(lambda _: self._under_way.pop(agent, None))

    async def close(self) -> None:
        """Follow nobody any more."""
        await cancel_and_wait(*self._under_way.values())


class Releases:
    """Agents that a node is asked to give up although it stays: for a rebalance, or since one is ordered to move."""

    def __init__(self, placed: Mapping[str, PlacedAgent], hand_over: HandOver, pace: MovePace) -> None:
        """`placed` are the node's agents."""
        self._placed = placed
        self._hand_over = hand_over
        self._pace = pace
        self._asked: dict[PlacedAgent, bool] = {}
        """Agents that are to be told, in the order in which they were asked for, and whether any turn of theirs is left."""
        self._told: set[asyncio.Task[None]] = set()
        self._telling = Background("give up agents that are asked for")

    def ask(self, names: Iterable[str], *, any_turn: bool) -> None:
        """Give up these agents, as soon as their turns and the pace let it. One whose turn cannot go on elsewhere stays; if it is
        to leave in `any_turn`, that ends first."""
        for name in names:
            agent = self._placed.get(name)
            if agent is not None and not agent.leaving:
                self._asked[agent] = any_turn or self._asked.get(agent, False)
        if self._asked and not self._telling.running:
            self._telling.begin(self._tell())

    async def close(self) -> None:
        """Tell no more of them."""
        await self._telling.close()
        await cancel_and_wait(*self._told)

    async def _tell(self) -> None:
        while self._asked:
            for agent in self._pace.next_of(self._asked):
                any_turn = self._asked.pop(agent)
                leaves = any_turn or agent.owner is None or agent.owner.movable
                if leaves and self._placed.get(agent.name) is agent:
                    task = asyncio.get_running_loop().create_task(self._one(agent), name=f"give up {agent.name}")
                    self._told.add(task)
                    task.add_done_callback(self._told.discard)
            await asyncio.sleep(LOOK_S)

    async def _one(self, agent: PlacedAgent) -> None:
        moves = can_move(agent)
        try:
            await self._hand_over(agent)
        except Exception:  # who has asked for it asks again
            log.exception("an agent was not given up", extra={"agent": agent.name})
        if moves and self._placed.get(agent.name) is not agent:
            self._pace.follow(agent.name)


def can_move(agent: PlacedAgent) -> bool:
    """Whether a turn of the agent runs that can be handed on."""
    owner = agent.owner
    return owner is not None and owner.core is not None and not owner.idle and owner.movable
