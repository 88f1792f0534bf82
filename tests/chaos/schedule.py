"""What goes wrong, on what, when and for how long: a pure function of the seed.

Nodes, supervisors, servers and clients have each their own faults, drawn from a source of chance of their own. Faults of one
target do not overlap. A target may be a part instead of a name ("leading supervisor", "leader of journal"): who plays it shows
only when the time has come, and if nobody does, `instead` is it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from sim.workload import IMMORTAL

NODES = ("n1", "n2", "n3", "n4")
SUPERVISORS = ("s1", "s2")
SERVERS = ("nats-1", "nats-2", "nats-3")
CLIENTS = ("c0", "c1", "c2")
LEADING_SUPERVISOR = "leading supervisor"
LEADER_OF = "leader of "
"""Begins the target that is the server which leads a stream; the stream's role follows."""
ALL_SERVERS = "all servers"
MESH = "mesh"
"""The target of what is asked of the mesh itself."""
MOVES = ("drain", "rebalance", "move")
"""What moves agents in order, in the middle of their turns too."""
WAYS = ("both", "out", "in")
"""What a cut holds up: all, only what the victim sends, or only what it receives."""
PARTS = ("all", "main", "heartbeat")
"""Which connections of a node a cut is about."""

_BACK_S = 4.0
"""How long a process needs to be itself again after it was started anew."""
_ELECTION_S = 10.0
"""Quiet behind a fault of a server: streams elect leaders, which takes 4 to 8 s. Without it nothing else would happen."""
_TWICE_S = 10.0
"""Between two kills of all servers: they have elected leaders, and some work was done."""
_LENGTHS_S = (0.2, 1.0, 4.0, 9.0)


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault. `at` counts from the first moment of the storm; what it does to the target ends `seconds` later."""

    at: float
    kind: str
    """`kill` (SIGKILL, and started again), `restart` (SIGTERM, and started again), `stop` (SIGSTOP, SIGCONT), `cut`; or one of
    `MOVES`, which a node or the mesh is asked for: a drained node is started again too."""
    target: str
    seconds: float
    instead: str = ""
    """Who it is if nobody plays the part `target`."""
    way: str = ""
    """Of a cut: one of `WAYS`."""
    part: str = ""
    """Of a cut: one of `PARTS`."""
    agent: str = ""
    """Of a move: which agent goes to the target."""
    late: bool = False
    """Of a cut: what was held up arrives when it ends. Otherwise those connections end with it."""

    def line(self) -> str:
        """What it is, for people."""
        cut = f" ({self.way}, {self.part}{', late' if self.late else ''})" if self.kind == "cut" else ""
        if self.kind in MOVES:
            return f"{self.kind} {self.agent + ' to ' if self.agent else ''}{self.target}"
        return f"{self.kind} {self.target}{cut} for {self.seconds:.1f} s"


def schedule(seed: int, seconds: float) -> list[Fault]:
    """All faults of a run that has such for `seconds`, in order. Each of them is over by then."""
    faults = [
        *_nodes(random.Random(f"{seed}/nodes"), seconds),
        *_supervisors(random.Random(f"{seed}/supervisors"), seconds),
        *_servers(random.Random(f"{seed}/servers"), seconds),
        *_clients(random.Random(f"{seed}/clients"), seconds),
        *_moves(random.Random(f"{seed}/moves"), seconds),
    ]
    return sorted(faults, key=lambda fault: fault.at)


class _Busy:
    """Until when each target is not to be touched."""

    def __init__(self, names: Sequence[str]) -> None:
        self._until = dict.fromkeys(names, 0.0)

    def free(self, at: float) -> list[str]:
        return [name for name, until in self._until.items() if until <= at]

    def take(self, name: str, until: float) -> None:
        self._until[name] = until


def _pick(dice: random.Random, weights: Mapping[str, float]) -> str:
    return dice.choices(tuple(weights), tuple(weights.values()))[0]


def _length(dice: random.Random) -> float:
    return round(dice.choice(_LENGTHS_S) * dice.uniform(0.5, 1.5), 2)


def _cut(dice: random.Random, parts: Sequence[str] = ("all",)) -> dict[str, str | bool]:
    return {"way": dice.choice(WAYS), "part": dice.choice(parts), "late": dice.random() < 0.5}


_NODE_FAULTS = MappingProxyType({"kill": 4.0, "stop": 2.0, "cut": 4.0, "restart": 1.5})
_SUPERVISOR_FAULTS = MappingProxyType({"kill": 3.0, "stop": 2.0, "cut": 2.0, "restart": 1.0})
_SERVER_FAULTS = MappingProxyType({"kill": 4.0, "stop": 2.0, "restart": 2.0})
_STREAMS = ("journal", "mail", "registry", "result", "timer")


def _nodes(dice: random.Random, seconds: float) -> list[Fault]:
    faults: list[Fault] = []
    busy, at = _Busy(NODES), 0.0
    pause = dice.choice((1.5, 2.5, 5.0))
    while (at := at + dice.expovariate(1 / pause)) < seconds:
        free = busy.free(at)
        kind, length = _pick(dice, _NODE_FAULTS), _length(dice)
        if not free or at + length > seconds:
            continue
        target = dice.choice(free)
        extra = _cut(dice, PARTS) if kind == "cut" else {}
        faults.append(_fault(at, kind, target, length, **extra))
        busy.take(target, at + length + _BACK_S)
    return faults


def _supervisors(dice: random.Random, seconds: float) -> list[Fault]:
    faults: list[Fault] = []
    free_at, at = 0.0, 0.0
    pause = dice.choice((5.0, 10.0))
    while (at := at + dice.expovariate(1 / pause)) < seconds:
        kind, length = _pick(dice, _SUPERVISOR_FAULTS), _length(dice)
        target, instead = dice.choice((LEADING_SUPERVISOR, *SUPERVISORS)), dice.choice(SUPERVISORS)
        extra = _cut(dice, PARTS) if kind == "cut" else {}
        if at < free_at or at + length > seconds:
            continue
        faults.append(_fault(at, kind, target, length, instead=instead, **extra))
        # One at a time: who leads at that moment is not known here.
        free_at = at + length + _BACK_S
    return faults


def _servers(dice: random.Random, seconds: float) -> list[Fault]:
    faults: list[Fault] = []
    at = dice.uniform(2.0, 8.0)
    while True:
        kind, length, instead = _pick(dice, _SERVER_FAULTS), _length(dice), dice.choice(SERVERS)
        target = dice.choice((*SERVERS, *(LEADER_OF + stream for stream in _STREAMS)))
        if kind == "kill" and dice.random() < 0.15:
            target = ALL_SERVERS
        if at + length > seconds:
            return faults
        faults.append(_fault(at, kind, target, length, instead=instead))
        if target == ALL_SERVERS and at + length + _TWICE_S + 1.0 <= seconds:
            # A second kill without a clean stop between: more of what was deleted comes back then.
            faults.append(_fault(at + length + _TWICE_S, kind, target, 1.0, instead=instead))
            at += _TWICE_S + 1.0
        at += length + _ELECTION_S + dice.uniform(0.0, 12.0)


def _clients(dice: random.Random, seconds: float) -> list[Fault]:
    faults: list[Fault] = []
    busy, at = _Busy(CLIENTS), 0.0
    while (at := at + dice.expovariate(1 / 15.0)) < seconds:
        free, length = busy.free(at), _length(dice)
        if not free or at + length > seconds:
            continue
        target = dice.choice(free)
        faults.append(_fault(at, "cut", target, length, **_cut(dice)))
        busy.take(target, at + length + _BACK_S)
    return faults


def _moves(dice: random.Random, seconds: float) -> list[Fault]:
    faults: list[Fault] = []
    at, pause = 0.0, dice.choice((4.0, 8.0))
    while (at := at + dice.expovariate(1 / pause)) < seconds:
        kind, node, agent = dice.choice(MOVES), dice.choice(NODES), dice.choice(IMMORTAL)
        extra = {"agent": agent} if kind == "move" else {}
        faults.append(_fault(at, kind, MESH if kind == "rebalance" else node, 0.0, **extra))
    return faults


def _fault(at: float, kind: str, target: str, seconds: float, **extra: object) -> Fault:
    return msgspec.convert({"at": round(at, 3), "kind": kind, "target": target, "seconds": seconds, **extra}, Fault)
