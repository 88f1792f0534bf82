"""Circles of agents that wait for each other, in a graph of waits. Pure.

The mesh ends a circle of waits in the middle of turns by itself (agentmesh.turn.wait_cycles). Those of tagged and deferred
requests it leaves alone, since their agents can still answer: here they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentmesh_client.results import WaitCircle, WaitEntry

type _Edges = list[tuple[str, WaitEntry]]
"""Requests that an answer is waited for, each with the agent that waits."""


def circles(found: Iterable[WaitEntry]) -> tuple[WaitCircle, ...]:
    """The circles of a graph: for each set of agents that all wait for each other, one shortest circle.

    A request whose outcome nobody gets counts if it was made on behalf of another one that is open. One that is answered does
    not.
    """
    edges = [(entry.waiter, entry) for entry in found if entry.waiter is not None and _binds(entry)]
    exclusive = {(entry.agent, entry.ref) for entry in found if entry.exclusive}
    blocking = [(waiter, entry) for waiter, entry in edges if entry.kind == "turn" or (waiter, entry.request) in exclusive]
    shown: list[WaitCircle] = []
    tight = {agent: knot for knot in _knots(blocking) for agent in knot}
    for knot in _knots(edges):
        core = next((tight[agent] for agent in sorted(knot) if agent in tight), None)
        ring = _ring(core or knot, blocking if core else edges)
        steps = set(zip(ring, (*ring[1:], ring[0]), strict=True))
        ends = [entry.deadline for waiter, entry in edges if (waiter, entry.agent) in steps and entry.deadline is not None]
        others = tuple(sorted(knot - set(ring)))
        shown.append(WaitCircle(agents=ring, blocked=core is not None, deadline=min(ends, default=None), others=others))
    return tuple(sorted(shown, key=lambda circle: circle.agents))


def _binds(entry: WaitEntry) -> bool:
    return entry.stage != "answered" and (entry.kind != "tell" or entry.request is not None)


def _knots(edges: _Edges) -> list[frozenset[str]]:
    """The sets of agents of which each can be reached from each other one: strongly connected components that have an edge."""
    ahead: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for waiter, entry in edges:
        ahead.setdefault(waiter, set()).add(entry.agent)
        back.setdefault(entry.agent, set()).add(waiter)
    found: list[frozenset[str]] = []
    left = set(ahead)
    for last in reversed(_finished(ahead)):  # Kosaraju
        if last not in left:
            continue
        left.discard(last)
        knot, todo = {last}, [last]
        while todo:
            new = back.get(todo.pop(), set()) & left
            left -= new
            knot |= new
            todo += new
        if len(knot) > 1 or last in ahead[last]:
            found.append(frozenset(knot))
    return found


def _finished(ahead: Mapping[str, set[str]]) -> list[str]:
    """The agents in the order in which a search in depth leaves them."""
    seen: set[str] = set()
    order: list[str] = []
    for start in ahead:
        if start in seen:
            continue
        seen.add(start)
        path = [(start, iter(ahead[start]))]
        while path:
            agent, following = path[-1]
            further = next((other for other in following if other in ahead and other not in seen), None)
            if further is None:
                order.append(agent)
                path.pop()
            else:
                seen.add(further)
                path.append((further, iter(ahead[further])))
    return order


def _ring(knot: frozenset[str], edges: _Edges) -> tuple[str, ...]:
    """A shortest circle through the first agent of a knot by name."""
    start = min(knot)
    ahead: dict[str, set[str]] = {}
    for waiter, entry in edges:
        if waiter in knot and entry.agent in knot:
            ahead.setdefault(waiter, set()).add(entry.agent)
    came: dict[str, str] = {}
    todo = [start]
    for agent in todo:
        for other in sorted(ahead[agent]):
            if other == start:
                ring = [agent]
                while ring[-1] != start:
                    ring.append(came[ring[-1]])
                return tuple(reversed(ring))
            if other not in came:
                came[other] = agent
                todo.append(other)
    raise AssertionError("an agent of a knot is on a circle")
