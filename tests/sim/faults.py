"""What goes wrong in a run, and when: all of it chosen by the seed, and all of it over at a known time.

Each run draws some of the kinds of fault and how often they come, so that rare combinations get whole runs of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from agentmesh.errors import MeshError
from agentmesh_client.admin import Operator
from sim.forgetting import Forgetting
from sim.net import LATENCY_RANGE_S, LATENCY_S, Habits
from sim.server import Faults
from sim.server_clocks import ServerClocks
from sim.world import World

KINDS = (
    "kill_node", "freeze_node", "cut_node", "cut_heartbeat", "reset", "kill_supervisor", "freeze_supervisor", "cut_supervisor",
    "cut_client", "server", "election", "lost_copies", "doubled_copies", "lost_replies", "delayed", "stale", "no_verdict",
    "slow", "late_timers", "drain_node", "rebalance", "move", "outage", "restarts", "skew", "full", "blobs",
)  # fmt: skip
ORDERLY = ("drain_node", "rebalance", "move")
"""Those in which everything ends in order: nothing is made again because of them."""
LENGTHS_S = (4.0, 8.0, 8.0, 20.0)
"""How long things may go wrong in a run: many short runs meet more than few long ones."""
MOST_LATE_S = 9.0
"""Longest that one publish is held up: beyond every time-out, and well within the duplicate window."""

_FULL_LIMITS = (3, 6, 12)
"""Messages that a lane holds, where mailboxes are to be full."""
_SMALL_PAYLOAD = 160 << 10
_BULK = 170_000
"""Bytes that a state weighs, where records are to exceed the server's limit."""
_SKEWS_S = (2.0, 60.0)

OUTAGE_S = (110.0, 170.0)
"""How long an outage lasts beyond the storm: the duplicate window has 120 s."""


class Climate(NamedTuple):
    """What a run has to bear from its beginning to its end."""

    kinds: tuple[str, ...]
    seconds: float
    """How long things go wrong."""
    mailbox_limit: int
    max_payload: int
    bulk: int
    """Bytes that an agent adds to its state, at times."""
    skew_s: float
    """Most seconds by which a process's clock is wrong."""


def climate(dice: random.Random, kinds: tuple[str, ...] | None = None, seconds: float | None = None) -> Climate:
    """The climate that `dice` chooses; `kinds` of faults and the length are its choice too, unless they are given."""
    count = dice.choice((1, 2, 3, 5, 8, len(KINDS)))
    drawn = tuple(sorted(dice.sample(KINDS, count)))
    kinds = drawn if kinds is None else kinds
    limit, skew, length = dice.choice(_FULL_LIMITS), dice.choice(_SKEWS_S), dice.choice(LENGTHS_S)
    return Climate(
        kinds,
        length if seconds is None else seconds,
        limit if "full" in kinds else 1000,
        _SMALL_PAYLOAD if "blobs" in kinds else 1 << 20,
        _BULK if "blobs" in kinds else 0,
        skew if "skew" in kinds else 0.0,
    )


class Chances:
    """How likely the small mishaps are. All 0 once the faults are over."""

    def __init__(self) -> None:
        self.lost_copy = 0.0
        self.doubled_copy = 0.0
        self.lost_reply = 0.0
        self.delayed = 0.0
        self.stale = 0.0
        self.no_verdict = 0.0
        self.slow = 0.0
        self.late_timers = 0.25
        """Seconds that an expiry may be late."""

    def clear(self) -> None:
        """Everything works."""
        self.__init__()  # type: ignore[misc]


class ServerFaults(Faults):
    """The small mishaps of a server, and streams without leader."""

    def __init__(self, dice: random.Random, chances: Chances) -> None:
        self._dice = dice
        self._chances = chances
        self.leaderless: set[str] = set()
        self.forgetting: Forgetting | None = None

    def refuse(self, stream: str) -> bool:
        return stream in self.leaderless

    def no_verdict(self, subject: str) -> bool:
        return self._dice.random() < self._chances.no_verdict

    def lag(self) -> float:
        return self._dice.uniform(0.0, 0.02) if self._dice.random() < self._chances.stale else 0.0

    def copies(self, subject: str) -> int:
        if subject.startswith(("_INBOX.", "mesh.node.")):
            return 1
        throw = self._dice.random()
        if throw < self._chances.lost_copy:
            return 0
        return 2 if throw > 1.0 - self._chances.doubled_copy else 1

    def lateness(self) -> float:
        return self._dice.uniform(0.0, self._chances.late_timers)

    def undead(self) -> bool:
        return self.forgetting is not None and self.forgetting.undead()

    def lacking(self, count: int) -> int | None:
        return None if self.forgetting is None else self.forgetting.lacking(count)


class Weather(Habits):
    """The small mishaps of a network."""

    def __init__(self, dice: random.Random, chances: Chances) -> None:
        super().__init__(dice)
        self._chances = chances

    def latency(self) -> float:
        dice = self.dice
        if self._chances.slow and dice.random() < self._chances.slow:
            return dice.uniform(0.001, 0.3)
        return LATENCY_S[0] + LATENCY_RANGE_S * dice.random()  # as in a network that works

    def delay(self, subject: str) -> float:
        return self.dice.uniform(0.05, MOST_LATE_S) if self.dice.random() < self._chances.delayed else 0.0

    def loses_reply(self, subject: str) -> bool:
        return self.dice.random() < self._chances.lost_reply


class Storm:
    """The schedule of the faults of one run."""

    def __init__(
        self, world: World, kinds: tuple[str, ...], *, deaths: int = 10**6, movable: Sequence[str] = ("nobody",)
    ) -> None:
        """
        Args:
            deaths: most node processes that are killed; more could rightly make an input a dead letter
                (docs/architecture.md#poison).
            movable: agents that are ordered to other nodes.
        """
        self._movable = movable
        self._world = world
        self._dice = world.dice("faults")
        self.chances = Chances()
        self._mishaps = ServerFaults(world.dice("server faults"), self.chances)
        world.net.server.faults = self._mishaps
        world.net.habits = Weather(world.dice("weather"), self.chances)
        self.kinds = kinds
        self._mishaps.forgetting = self._forgetting = Forgetting(world, kinds, self._note)
        self._clocks = ServerClocks(world, kinds, self._note)
        self.pause = self._dice.choice((0.3, 1.0, 3.0))
        """Mean time between two faults, in seconds."""
        self.log: list[str] = []
        self._undo: list[Callable[[], None]] = []
        self._dark = False
        self._deaths_left = deaths

    async def blow(self, seconds: float) -> None:
        """Let things go wrong for so long, then end every fault."""
        self._set_chances()
        forgetting = self._world.loop.create_task(self._forgetting.blow(seconds))
        clocks = self._world.loop.create_task(self._clocks.blow(seconds))
        deeds = [kind for kind in self.kinds if hasattr(self, f"_{kind}")]
        end = self._world.loop.time() + seconds
        while deeds and (pause := self._dice.expovariate(1 / self.pause)) < end - self._world.loop.time():
            await asyncio.sleep(pause)
            getattr(self, f"_{self._dice.choice(deeds)}")()
        await asyncio.sleep(max(0.0, end - self._world.loop.time()))
        if self._dark:
            await asyncio.sleep(self._dice.uniform(*OUTAGE_S))
        await forgetting
        await clocks
        self.chances.clear()
        while self._undo:
            self._undo.pop()()
        self._note("calm")

    def _note(self, text: str) -> None:
        self.log.append(f"{self._world.loop.time():9.4f}  {text}")
        if self._world.net.trace is not None:
            self._world.net.trace("----", "fault", text)

    def _set_chances(self) -> None:
        dice, chances = self._dice, self.chances
        amount = dice.choice((0.003, 0.02, 0.1))
        for kind, field in (
            ("lost_copies", "lost_copy"),
            ("doubled_copies", "doubled_copy"),
            ("lost_replies", "lost_reply"),
            ("delayed", "delayed"),
            ("no_verdict", "no_verdict"),
            ("slow", "slow"),
        ):
            if kind in self.kinds:
                setattr(chances, field, amount)
        if "stale" in self.kinds:
            chances.stale = 0.5
        if "late_timers" in self.kinds:
            chances.late_timers = 5.0

    def _for(self, seconds: float, text: str, undo: Callable[[], None]) -> None:
        """Note a fault that ends after `seconds`, or with all others."""
        self._note(f"{text} for {seconds:.2f} s")
        done = False

        def once() -> None:
            nonlocal done
            if not done:
                done = True
                self._note(f"end: {text}")
                undo()

        self._undo.append(once)
        self._world.loop.call_later(seconds, once)

    def _length(self) -> float:
        return self._dice.choice((0.05, 0.6, 2.0, 5.0, 12.0)) * self._dice.uniform(0.5, 1.5)

    # --- deeds ----------------------------------------------------------------------------------------------------
    def _kill_node(self) -> None:
        if self._deaths_left > 0:
            self._deaths_left -= 1
            self._kill(self._dice.choice(sorted(self._world.nodes)))

    def _kill_supervisor(self) -> None:
        self._kill(self._dice.choice(sorted(self._world.supervisors)))

    def _kill(self, name: str) -> None:
        if not self._world.processes[name].dead:
            self._world.kill(name)
            self._for(self._length() / 2, f"kill {name}", lambda: self._world.restart(name))

    def _outage(self) -> None:
        """Every node dies, and stays dead for longer than the server remembers ids."""
        if self._dark or self._deaths_left < len(self._world.nodes):
            return
        self._dark = True
        self._deaths_left -= len(self._world.nodes)
        self._note("kill all nodes")
        for name in sorted(self._world.nodes):
            self._world.kill(name)
            self._undo.append(partial(self._world.restart, name))

    def _drain_node(self) -> None:
        name = self._dice.choice(sorted(self._world.nodes))
        if not self._world.processes[name].dead:
            self._note(f"drain {name}")
            self._world.nodes[name].drained.set()

    def _rebalance(self) -> None:
        self._note("rebalance")
        self._world.spawn("c-mover", self._operate(lambda operator: operator.rebalance()))

    def _move(self) -> None:
        nodes = sorted(self._world.nodes)
        agent, node = self._dice.choice(self._movable), self._dice.choice(nodes)
        self._note(f"move {agent} to {node}")
        self._world.spawn("c-mover", self._operate(lambda operator: operator.move(agent, node)))

    async def _operate(self, ask: Callable[[Operator], Awaitable[object]]) -> None:
        with contextlib.suppress(MeshError):  # nobody leads now, or the network is cut
            async with self._world.client("c-mover") as mesh:
                await ask(Operator(mesh.transport, mesh.subjects))

    def _freeze_node(self) -> None:
        self._freeze(self._dice.choice(sorted(self._world.nodes)))

    def _freeze_supervisor(self) -> None:
        self._freeze(self._dice.choice(sorted(self._world.supervisors)))

    def _freeze(self, name: str) -> None:
        process = self._world.processes[name]
        if not process.frozen and not process.dead:
            process.freeze()
            self._for(self._length(), f"freeze {name}", process.thaw)

    def _cut_node(self) -> None:
        name = self._dice.choice(sorted(self._world.nodes))
        parts = self._dice.choice(((name, f"mesh-heartbeat-{name}"), (name,)))
        self._cut(*parts)

    def _cut_heartbeat(self) -> None:
        self._cut(f"mesh-heartbeat-{self._dice.choice(sorted(self._world.nodes))}")

    def _cut_supervisor(self) -> None:
        name = self._dice.choice(sorted(self._world.supervisors))
        pings = f"mesh-lease-and-pings-{name}"
        self._cut(*self._dice.choice(((name, pings), (name,), (pings,))))

    def _cut_client(self) -> None:
        self._cut(self._dice.choice(self._clients()))

    def _cut(self, *names: str) -> None:
        net = self._world.net
        fresh = [name for name in names if name not in net.cut]
        if not fresh:
            return
        for name in fresh:
            net.cut_off(name)

        def undo() -> None:
            for name in fresh:
                net.heal(name)

        self._for(self._length() * 1.5, f"cut {' '.join(fresh)}", undo)

    def _reset(self) -> None:
        names = sorted(self._world.nodes) + sorted(self._world.supervisors) + self._clients()
        name = self._dice.choice(names)
        self._note(f"reset {name}")
        self._world.net.reset(name)

    def _clients(self) -> list[str]:
        return sorted(name for name in self._world.processes if name.startswith("c"))

    def _server(self) -> None:
        net = self._world.net
        if not net.down:
            net.stop_server()
            self._for(self._length() / 2, "server down", net.start_server)

    def _restarts(self) -> None:
        """The server is back almost at once: it has forgotten ids whose messages are gone, and everybody connects again."""
        net = self._world.net
        if not net.down:
            net.stop_server()
            self._for(self._dice.uniform(0.02, 0.3), "server restart", net.start_server)

    def _election(self) -> None:
        stream = self._dice.choice(sorted(self._world.net.server.streams))
        if stream not in self._mishaps.leaderless:
            self._mishaps.leaderless.add(stream)
            length = self._dice.choice((0.05, 1.0, 6.0)) * self._dice.uniform(0.5, 1.5)
            self._for(length, f"no leader of {stream}", lambda: self._mishaps.leaderless.discard(stream))
