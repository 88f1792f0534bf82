"""What a server forgets that was killed with all others, and what a replica shows that woke or was killed
(docs/nats.md#what-a-killed-server-forgets). Drawn from chances of its own, so that the other faults of a seed stay what they are.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from sim.world import World

KINDS = ("forgotten_ids", "returned", "undead", "fired_twice", "lacking")
"""Message ids inside the duplicate window; what was deleted; expired leases that a replica still shows; schedules that fire
twice; listings that lack a message."""
_AT_A_KILL = frozenset(("forgotten_ids", "returned", "fired_twice"))


def forgotten(dice: random.Random) -> tuple[str, ...]:
    """The kinds that a seed has beside its other faults: in half of all seeds none."""
    return tuple(sorted(dice.sample(KINDS, dice.choice((0, 0, 0, 1, 2, len(KINDS))))))


class Forgetting:
    """The schedule of these faults in one run."""

    def __init__(self, world: World, kinds: tuple[str, ...], note: Callable[[str], None]) -> None:
        self.kinds = frozenset(kinds) & frozenset(KINDS)
        self._world = world
        self._dice = world.dice("forgetting")
        self._note = note
        self._share = self._dice.choice((0.3, 1.0))
        self._rate = 0.0
        """How likely one direct get is wrong."""

    async def blow(self, seconds: float) -> None:
        """Kill all servers at some moments of so many seconds, and have replicas be wrong until these are over."""
        if not self.kinds:
            return
        self._rate = self._dice.choice((0.005, 0.1))
        began = self._world.loop.time()
        times = self._dice.choice((1, 2, 4)) if self.kinds & _AT_A_KILL else 0
        for moment in sorted(self._dice.uniform(0.0, seconds) for _ in range(times)):
            await asyncio.sleep(max(0.0, began + moment - self._world.loop.time()))
            await self._kill()
        await asyncio.sleep(max(0.0, began + seconds - self._world.loop.time()))
        self._rate = 0.0

    def undead(self) -> bool:
        """Whether a replica shows what has expired."""
        return bool(self._rate) and "undead" in self.kinds and self._dice.random() < 0.5

    def lacking(self, count: int) -> int | None:
        """Which of so many messages a listing lacks."""
        if self._rate and "lacking" in self.kinds and self._dice.random() < self._rate:
            return self._dice.randrange(count)
        return None

    async def _kill(self) -> None:
        """All servers are killed, and are back soon."""
        net = self._world.net
        if net.down:
            return
        net.stop_server()
        self._note("kill all servers")
        await asyncio.sleep(self._dice.uniform(0.02, 1.0))
        net.start_server()
        for name, stream in sorted(net.server.streams.items()):
            for kind, deed in (
                ("forgotten_ids", stream.forget_ids),
                ("returned", stream.bring_back),
                ("fired_twice", stream.fire_again),
            ):
                if kind in self.kinds and (count := deed(self._chosen)):
                    self._note(f"{name}: {count} {kind}")

    def _chosen(self) -> bool:
        return self._dice.random() < self._share
