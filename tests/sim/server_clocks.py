"""One of three servers whose clock is wrong, and streams whose leaders move. Drawn from chances of its own, so that the other
faults of a seed stay what they are.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from sim.world import World

KIND = "server_clocks"
SERVERS = ("A", "B", "C")
WRONG_S = (-90.0, -20.0, -2.0, 2.0, 20.0, 90.0)
"""No more, since a timer that is set while this server leads everything is late by as much, and a run waits only so long."""
ELECTIONS_S = (0.5, 3.0)
"""Mean time between two elections of all streams."""


def wrong_clocks(dice: random.Random) -> tuple[str, ...]:
    """The kind, in a quarter of all seeds."""
    return (KIND,) if dice.random() < 0.25 else ()


class ServerClocks:
    """The schedule of this fault in one run: server A is ahead of the others, or behind them."""

    def __init__(self, world: World, kinds: tuple[str, ...], note: Callable[[str], None]) -> None:
        self._world = world
        self._dice = world.dice("server clocks")
        self._note = note
        self._ahead = self._dice.choice(WRONG_S) if KIND in kinds else 0.0

    async def blow(self, seconds: float) -> None:
        """Have streams elect leaders for so many seconds; then the clock is right."""
        if not self._ahead:
            return
        self._note(f"the clock of server A is ahead by {self._ahead:g} s")
        end, mean = self._world.loop.time() + seconds, self._dice.choice(ELECTIONS_S)
        while self._world.loop.time() < end:
            server = self._world.net.server
            leaders = {stream: self._dice.choice(SERVERS) for stream in sorted(server.streams)}
            server.ahead = {stream: self._ahead for stream, leader in leaders.items() if leader == "A"}
            await asyncio.sleep(min(self._dice.expovariate(1 / mean), max(0.0, end - self._world.loop.time())))
        self._world.net.server.ahead = {}
