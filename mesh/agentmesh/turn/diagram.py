"""The turn machine's tables as Mermaid state diagrams, for docs/agent.md. `python -m agentmesh.turn.diagram` prints them."""

from __future__ import annotations

import sys

from agentmesh.turn.machine import TABLE, THEN
from agentmesh.turn.values import Misbehaved, Phase, Raised, Returned

P = Phase
SKIPPED = frozenset({P.ACTIVATE, P.PRE_RUN, P.PRE_TURN, P.DECIDING, P.POST_TURN, P.HANDLING, P.CRASHING, P.ENDING})
"""Phases that are skipped if the class does not define their callback, or nothing waits."""
TURN = (P.IDLE, P.PRE_TURN, P.TURN, P.DECIDING, P.POST_TURN, P.HANDLING, P.POST_RUN, P.COMMITTING, P.CRASHING)
LIFE = tuple(phase for phase in P if phase in (P.IDLE, P.COMMITTING, P.CRASHING) or phase not in TURN)

_CALLBACK = (Returned, Misbehaved, Raised)

type Arrow = tuple[Phase, Phase, str]


def arrows() -> list[Arrow]:
    """Every `(from, to, why)` of the tables, except arrows from a phase to itself."""
    found: list[Arrow] = []
    for phase, moves in TABLE.items():
        for kind, move in moves.items():
            for to in move.to:
                same = kind in _CALLBACK and all(k in moves and to in moves[k].to for k in _CALLBACK)
                found.append((phase, to, "ended" if same else kind.__name__))
    found.extend((P.COMMITTING, to, then.replace("_", " ")) for then, (_, phases) in THEN.items() for to in phases)
    return [a for a in dict.fromkeys(found) if a[0] is not a[1]]


def reduced(every: list[Arrow]) -> list[Arrow]:
    """`every` without the short cuts past phases that may be skipped: the arrows through them say the same."""
    onward: dict[Phase, set[Phase]] = {}
    for source, to, _ in every:
        onward.setdefault(source, set()).add(to)

    def reachable(phase: Phase, goal: Phase, seen: frozenset[Phase]) -> bool:
        steps = onward.get(phase, set())
        return goal in steps or any(reachable(n, goal, seen | {n}) for n in steps & SKIPPED - seen)

    def short_cut(arrow: Arrow) -> bool:
        source, goal, why = arrow
        ways = {to for start, to, label in every if start is source and label == why and to in SKIPPED and to is not goal}
        return any(reachable(way, goal, frozenset({way, source})) for way in ways)

    return [arrow for arrow in every if not short_cut(arrow)]


def diagram(phases: tuple[Phase, ...]) -> str:
    """Mermaid text of the arrows among `phases`."""
    labels: dict[tuple[Phase, Phase], list[str]] = {}
    for source, to, why in reduced(arrows()):
        if source in phases and to in phases:
            labels.setdefault((source, to), []).append(why)
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {p}" for p in (P.BOOT,) if p in phases]
    lines += [f"    {source} --> {to}: {', '.join(sorted(set(whys)))}" for (source, to), whys in labels.items()]
    lines += [f"    {p} --> [*]" for p in (P.OVER,) if p in phases]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(f"{diagram(TURN)}\n{diagram(LIFE)}")
