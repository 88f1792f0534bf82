"""Which node runs which agent: the placement rules (docs/architecture.md#placement), as one function of values.

    specs + live nodes + placements  ->  plan()  ->  Place, Remove, Unplaced, End, Depart, Settle

    an agent's spec is       it gets
    wanted, running, failed  one owner on a node that serves its kind, has its labels and has room
    stopping                 one owner on any live node: ending a life needs none of the agent's code
                             (in each case one that reads the agent's journal, as far as its spec says what that takes)
    stopped, or absent       no owner
    of a parent that ended   an end: its spec goes to stopping (its parent's node does the same, if it is still alive)

Of several placements of one agent the highest revision counts and the others go. A placement of another incarnation counts
for nothing. A placement that fits stays: an agent leaves a live node only when that no longer fits. A node that drains gets
nothing new and gives up each of its placements itself, once no turn of that agent runs: to take it away earlier would only run
that turn twice. New placements go to the fitting node with the fewest agents, so equal nodes fill evenly; among nodes with about
as few (`_band`) to the one that began last, which is replaced last: in a rollout an agent moves once. Performing a plan and
planning again yields no `Place` and no `Remove`.

An agent whose spec names a node to move to is asked for where it is (`Depart`), and goes there once its own node has given it up;
or to another first, if that node is in doubt by then: no order keeps an agent without an owner. The order ends (`Settle`) when
the agent is there, or when that node cannot take it any more.

No clock, no randomness, no I/O: whether a node is alive is decided elsewhere and comes in as data.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Literal, NamedTuple

import msgspec

from agentmesh.formats import FIRST, required, users_labels
from agentmesh.registry_values import NodeLease, Spec
from agentmesh.subjects import spec_key


class Placed(msgspec.Struct, frozen=True, gc=False):
    """One placement as the registry has it: which life of the agent, and the key's revision (the generation)."""

    incarnation: str
    revision: int


class World(msgspec.Struct, frozen=True):
    """All that a plan depends on. The mappings are read, never kept or changed."""

    specs: Mapping[str, Spec]
    """Agent -> what should run."""
    nodes: Mapping[str, NodeLease]
    """Node -> its lease; nodes that are alive only."""
    placements: Mapping[str, Mapping[str, Placed]]
    """Agent -> node -> placement."""
    loads: Mapping[str, int]
    """Node -> number of its placements. Must agree with `placements`."""
    held: Set[str] = frozenset()
    """Nodes in doubt: their agents stay where they are, and they get no new ones."""
    written: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Registry key -> its revision, where that is known: whether a spec was written before a placement."""

    @staticmethod
    def of(
        specs: Mapping[str, Spec],
        nodes: Mapping[str, NodeLease],
        placements: Mapping[tuple[str, str], Placed],
        held: Set[str] = frozenset(),
    ) -> World:
        """A world from flat values; `placements` maps `(node, agent)`."""
        by_agent: dict[str, dict[str, Placed]] = {}
        for (node, agent), placed in placements.items():
            by_agent.setdefault(agent, {})[node] = placed
        return World(specs, nodes, by_agent, Counter(node for node, _ in placements), held)


class Place(msgspec.Struct, frozen=True):
    """Make `node` the owner of this life of `agent`.

    `revision` is that of the key to replace, or 0 to create it: the new placement must be newer than all others of the agent.
    `previous` names the node that the agent is taken from, if its placement stood until now.
    """

    agent: str
    node: str
    incarnation: str
    revision: int
    previous: str | None
    reason: str


class Remove(msgspec.Struct, frozen=True):
    """Delete a placement, if it still has `revision`. A `Place` of the same agent comes first: no moment without an owner."""

    agent: str
    node: str
    revision: int
    reason: str


class Unplaced(msgspec.Struct, frozen=True):
    """No node can take `agent` now: nobody runs it."""

    agent: str
    reason: str


class End(msgspec.Struct, frozen=True):
    """Set the spec of `agent` to `stopping`: it was started with `link=True`, and its parent's life has ended."""

    agent: str
    reason: str


class Depart(msgspec.Struct, frozen=True):
    """Ask `node` to give up `agent` as soon as it can: it is ordered to go to another one, which takes it."""

    agent: str
    node: str
    to: str


class Settle(msgspec.Struct, frozen=True):
    """Take the order to move to `node` out of the spec of `agent`: it is there (`reason` None), or cannot go there. If it was
    `placed`, take out which code its turn is to go on with, too."""

    agent: str
    node: str | None
    reason: str | None
    placed: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What to do: first every `end`, then every `place`, then every `remove` and `settle` whose agent's `place` succeeded;
    `unplaced` is for people to see."""

    place: tuple[Place, ...] = ()
    remove: tuple[Remove, ...] = ()
    unplaced: tuple[Unplaced, ...] = ()
    end: tuple[End, ...] = ()
    depart: tuple[Depart, ...] = ()
    settle: tuple[Settle, ...] = ()


def plan(world: World, agents: Iterable[str] | None = None) -> Plan:
    """The actions that bring `world` to its specs.

    Args:
        world: what is known.
        agents: the agents to plan for; None is all of them. A caller that knows which have changed pays only for those.

    The same arguments give the same plan, whatever the order of the mappings.
    """
    run = _PlanRun(world)
    names = sorted(world.specs.keys() | world.placements.keys() if agents is None else set(agents))
    # Two passes: all placements that go are given up before the first new one is made, or a full node would look too full.
    homeless = [vacancy for name in names if (vacancy := run.settle(name)) is not None]
    for vacancy in homeless:
        run.house(vacancy)
    return Plan(
        tuple(run.place), tuple(run.remove), tuple(run.unplaced), tuple(run.end), tuple(run.depart), tuple(run.settled)
    )  # fmt: skip


def surplus(world: World) -> dict[str, tuple[str, ...]]:
    """Per node, the agents that should leave it so that load evens out: as few as possible, and only agents that another node can
    take.

    Nothing is taken away: a node gives them up when it can, and `plan` places them on the nodes with the fewest agents.
    """
    run = _PlanRun(world)
    here: dict[_Needs, dict[str, list[str]]] = {}
    for agent in sorted(world.placements, reverse=True):
        spec, by_node = world.specs.get(agent), world.placements[agent]
        if spec is None or spec.status in ("stopping", "stopped") or len(by_node) != 1:
            continue
        node, placed = _newest(by_node, spec.incarnation)
        if placed.revision and node in world.nodes and run.is_open(node):
            here.setdefault(_needs(spec), {}).setdefault(node, []).append(agent)
    leaving: dict[str, list[str]] = {}
    while (step := run.steepest(here)) is not None:
        needs, node, other = step
        leaving.setdefault(node, []).append(here[needs][node].pop())
        run.loads[node] -= 1
        run.loads[other] = run.loads.get(other, 0) + 1
    return {node: tuple(agents) for node, agents in sorted(leaving.items())}


def refusal(spec: Spec, node: str, lease: NodeLease | None, load: int) -> str | None:
    """Why an agent of `spec` cannot be moved to `node`, which has `load` agents, or None."""
    if lease is None:
        return f"node {node} is gone"
    match _misfit(_needs(spec), lease):
        case "kind":
            return f"node {node} does not serve kind {spec.kind}"
        case "build":
            return f"node {node} is too old to read its journal"
        case "labels":
            return f"node {node} does not have its labels"
    if lease.draining:
        return f"node {node} is draining"
    if lease.cordoned:
        return f"node {node} is cordoned"
    return f"node {node} has no room" if lease.capacity and load >= lease.capacity else None


def explain(world: World, agent: str) -> str:
    """One sentence for people: where `agent` runs and why, or why it does not."""
    spec = world.specs.get(agent)
    if spec is None:
        return f"no agent is called {agent}"
    if spec.status == "stopped":
        return f"{agent} is stopped"
    found = plan(world, [agent])
    if found.place:
        action = found.place[0]
        return f"{agent} is about to be placed on {action.node}: {action.reason}"
    if found.unplaced:
        wait = found.unplaced[0]
        return f"{agent} waits: {wait.reason}{_details(world, spec)}"
    node, placed = _newest(world.placements[agent], spec.incarnation)
    doubt = ", which has not been heard of just now" if node in world.held else ""
    moves = f", and moves to {found.depart[0].to}" if found.depart else ""
    return f"{agent} is {spec.status} on {node}{doubt} (generation {placed.revision}){moves}"


# --- one run ------------------------------------------------------------------------------------------------------
class _Needs(NamedTuple):
    """What a node must offer, as a key: agents with equal needs share one search."""

    kind: str | None
    """None: of any kind, since only a life is to be ended."""
    labels: tuple[tuple[str, str], ...]
    reads: int
    code: str | None = None
    """The version of the kind's code that it must serve; None: any."""


class _Candidate(NamedTuple):
    """An open node; of several the least is taken."""

    band: int
    age: int
    """How many moments there are at which nodes began later."""
    load: int
    node: str


class _Vacancy(msgspec.Struct, frozen=True):
    """An agent that needs a node. `stands` is the placement that counts, if there is one; `held` are all its placements."""

    agent: str
    spec: Spec
    held: Mapping[str, Placed]
    stands: str | None
    evict: bool
    """Whether it must leave `stands` even if no other node is found."""
    why: str


class _PlanRun:
    """The working state of one plan."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.loads = dict(world.loads)
        self.place: list[Place] = []
        self.remove: list[Remove] = []
        self.unplaced: list[Unplaced] = []
        self.end: list[End] = []
        self.depart: list[Depart] = []
        self.settled: list[Settle] = []
        self._fitting: dict[_Needs, frozenset[str]] = {}
        self._pools: dict[_Needs, list[_Candidate]] = {}
        self._ages: dict[str, int] = {}
        self._reasons: dict[_Needs, str] = {}

    # --- first pass -----------------------------------------------------------------------------------------------
    def settle(self, agent: str) -> _Vacancy | None:
        """Give up what must go; return the agent if it needs a node."""
        world = self.world
        held = world.placements.get(agent, {})
        spec = world.specs.get(agent)
        if spec is None or spec.status == "stopped":
            self._release(held)
            self._drop(agent, held, "the agent is stopped" if spec is not None else "there is no such agent")
            return None
        if spec.status != "stopping" and (orphaned := self._orphaned(spec)) is not None:
            self.end.append(End(agent, orphaned))
            spec = msgspec.structs.replace(spec, status="stopping")
        node, placed = _newest(held, spec.incarnation)
        if placed.revision == 0:
            self._release(held)
            why = "it is stopping and has no owner" if spec.status == "stopping" else "it has no owner"
            return _Vacancy(agent, spec, held, None, False, why)
        problem = self._problem(node, spec)
        if problem is None:
            if len(held) > 1:
                others = _without(held, node)
                self._release(others)
                self._drop(agent, others, f"the newer placement on {node} counts", spec.incarnation)
            if spec.move_to is not None:
                self._follow_order(agent, spec, node, spec.move_to)
            elif spec.turn_code is not None and 0 < world.written.get(spec_key(agent), 0) < placed.revision:
                # It was followed, and the leader that has placed the agent died before it took the word out.
                self.settled.append(Settle(agent, None, None, placed=True))
            return None
        self._release(held)
        evict = node in world.nodes and not self._fits(node, spec)
        return _Vacancy(agent, spec, held, node, evict, problem)

    def _follow_order(self, agent: str, spec: Spec, node: str, to: str) -> None:
        """Of an agent that stands well on `node`, and was ordered to move to `to`."""
        if node == to:
            self.settled.append(Settle(agent, to, None))
        elif spec.status != "stopping" and not {node, to} & self.world.held:  # of a node in doubt it is soon known what it is
            if (reason := self._refusal(spec, to)) is None:
                self.depart.append(Depart(agent, node, to))
            else:
                self.settled.append(Settle(agent, to, reason))

    def _problem(self, node: str, spec: Spec) -> str | None:
        """Why an agent may not stay on `node`, or None."""
        if node in self.world.held:
            return None
        lease = self.world.nodes.get(node)
        if lease is None:
            return f"node {node} is gone"
        if self._fits(node, spec):
            return None
        reads = lease.reads >= required(spec.labels)
        return f"node {node} no longer has its kind or labels" if reads else f"node {node} is too old to read its journal"

    def _orphaned(self, spec: Spec) -> str | None:
        """Why a linked agent must end, or None."""
        if spec.parent is None:
            return None
        parent = self.world.specs.get(spec.parent)
        if parent is None or parent.status == "stopped":
            return f"its parent {spec.parent} ended"
        another = spec.parent_life is not None and parent.incarnation != spec.parent_life
        return f"its parent {spec.parent} ended; another agent bears that name" if another else None

    def _fits(self, node: str, spec: Spec) -> bool:
        """Whether a live node may run `spec`, its capacity aside."""
        return node in self._nodes_for(_needs_now(spec))

    def _drop(self, agent: str, placements: Mapping[str, Placed], reason: str, incarnation: str | None = None) -> None:
        """Remove `placements`; `reason` is for those of the life `incarnation` (None: of any)."""
        for node in sorted(placements):
            placed = placements[node]
            foreign = incarnation is not None and placed.incarnation != incarnation
            self.remove.append(
                Remove(agent, node, placed.revision, "it belongs to another life of the agent" if foreign else reason)
            )

    def _release(self, placements: Iterable[str]) -> None:
        for node in placements:
            self.loads[node] -= 1

    # --- second pass ----------------------------------------------------------------------------------------------
    def house(self, vacancy: _Vacancy) -> None:
        """Find a node, or say why there is none."""
        agent, spec = vacancy.agent, vacancy.spec
        needs = _needs(spec)
        goes_on = spec.status != "stopping"
        # Of a node in doubt it is soon known what it is, and then the order goes on: but until then nobody would run the agent.
        to = spec.move_to if goes_on and spec.move_to not in self.world.held else None
        ordered, refused = self._take_ordered(spec, to)
        same = None
        if ordered is None and goes_on and spec.turn_code is not None:
            same = self._take(needs._replace(code=spec.turn_code))
        node = ordered or same or self._take(needs)
        if node is None and spec.status == "stopping":
            # Any node will do: its capacity bounds only agents that run.
            node = self._take(_needs_now(spec))
        if goes_on and (to or (node is not None and spec.turn_code)):
            self.settled.append(Settle(agent, to, refused, placed=node is not None))
        if node is None:
            self._leave(vacancy)
            return
        old = vacancy.held.get(node)
        had = self.loads[node] - 1
        few = f"has the fewest agents ({had})" if _band(had) == had else f"is the newest of those with the fewest agents ({had})"
        reason = f"{vacancy.why}; {node} fits and {few}"
        if ordered is not None:
            reason = f"{vacancy.why}; it was ordered to move to {node}"
        elif same is not None:
            reason = f"{vacancy.why}; {node} fits and serves the code with which its turn began"
        self.place.append(Place(agent, node, spec.incarnation, old.revision if old else 0, vacancy.stands, reason))
        self._drop(agent, _without(vacancy.held, node), f"{vacancy.why}; it is on {node} now", spec.incarnation)

    def _take_ordered(self, spec: Spec, to: str | None) -> tuple[str | None, str | None]:
        """The node `to` that the agent was ordered to move to, counted as taken; or why that cannot take it."""
        if to is None:
            return None, None
        if (reason := self._refusal(spec, to)) is not None:
            return None, reason
        self.loads[to] = self.loads.get(to, 0) + 1
        return to, None

    def _refusal(self, spec: Spec, to: str) -> str | None:
        return refusal(spec, to, self.world.nodes.get(to), self.loads.get(to, 0))

    def _leave(self, vacancy: _Vacancy) -> None:
        """No node can take it. Its placement stays, so that its node has it again if it comes back before another can take it."""
        agent, spec = vacancy.agent, vacancy.spec
        stays = None if vacancy.evict else vacancy.stands
        if stays is not None:
            self.loads[stays] += 1
        reason = vacancy.why if stays is None else f"the newer placement on {stays} counts"
        self._drop(agent, _without(vacancy.held, stays), reason, spec.incarnation)
        self.unplaced.append(Unplaced(agent, self._reason(_needs_now(spec))))

    def _take(self, needs: _Needs) -> str | None:
        """The best open node for `needs`, counted as taken."""
        pool = self._pools.get(needs)
        if pool is None:
            pool = self._pools[needs] = [self._candidate(node) for node in self._nodes_for(needs) if self.is_open(node)]
            heapq.heapify(pool)
        while pool:
            _, _, seen, node = pool[0]
            load = self.loads.get(node, 0)
            capacity = self.world.nodes[node].capacity
            if capacity and load >= capacity and needs.kind is not None:
                heapq.heappop(pool)  # loads only grow in this pass, so a full node stays full
            elif seen != load:
                heapq.heapreplace(pool, self._candidate(node))  # filled through another pool
            else:
                self.loads[node] = load + 1
                heapq.heapreplace(pool, self._candidate(node))
                return node
        return None

    def _candidate(self, node: str) -> _Candidate:
        if not self._ages:
            starts = sorted({lease.started for lease in self.world.nodes.values()}, reverse=True)
            places = {started: place for place, started in enumerate(starts)}
            self._ages = {name: places[lease.started] for name, lease in self.world.nodes.items()}
        load = self.loads.get(node, 0)
        return _Candidate(_band(load), self._ages[node], load, node)

    # --- evening out ----------------------------------------------------------------------------------------------
    def steepest(self, here: Mapping[_Needs, Mapping[str, list[str]]]) -> tuple[_Needs, str, str] | None:
        """The move that evens out most: `(needs, from, to)`; None when the agent could as well go back to where it came from."""
        best: tuple[int, _Needs, str, str] | None = None
        for needs, by_node in here.items():
            sources = [node for node, agents in by_node.items() if agents]
            targets = [node for node in self._nodes_for(needs) if self.is_open(node) and self._has_capacity(node)]
            if not sources or not targets:
                continue
            source = max(sources, key=lambda node: (self.loads.get(node, 0), node))
            target = min(targets, key=self._candidate)
            gain = self.loads.get(source, 0) - self.loads.get(target, 0)
            evens = _band(self.loads.get(source, 0) - 1) > _band(self.loads.get(target, 0))
            if evens and (best is None or gain > best[0]):
                best = (gain, needs, source, target)
        return best[1:] if best is not None else None

    def _has_capacity(self, node: str) -> bool:
        capacity = self.world.nodes[node].capacity
        return not capacity or self.loads.get(node, 0) < capacity

    def is_open(self, node: str) -> bool:
        """Whether a live node takes agents, its capacity aside."""
        lease = self.world.nodes[node]
        return not (lease.draining or lease.cordoned or node in self.world.held)

    def _nodes_for(self, needs: _Needs) -> frozenset[str]:
        found = self._fitting.get(needs)
        if found is None:
            found = frozenset(node for node, lease in self.world.nodes.items() if _misfit(needs, lease) is None)
            self._fitting[needs] = found
        return found

    def _reason(self, needs: _Needs) -> str:
        """Why no node takes `needs`. Without numbers and names of nodes: it is stored in specs, and should change only with the
        reason."""
        found = self._reasons.get(needs)
        if found is None:
            found = self._reasons[needs] = self._find_reason(needs)
        return found

    def _find_reason(self, needs: _Needs) -> str:
        nodes = self.world.nodes
        if not nodes:
            return "no node is live"
        fitting = self._nodes_for(needs)
        if fitting:
            is_open = any(self.is_open(node) for node in fitting)
            return "no node that fits has room" if is_open else "every node that fits is draining, cordoned or in doubt"
        kind = needs.kind
        if kind is not None and not any(kind in lease.kinds for lease in nodes.values()):
            return f"no live node serves kind {kind}"
        if self._nodes_for(needs._replace(reads=FIRST)):
            return f"no live node that fits reads records of version {needs.reads}, which its journal has: start newer nodes"
        wanted = ", ".join(f"{key}={value}" for key, value in needs.labels)
        return f"no live node that serves kind {kind} has the labels {wanted}"


# --- values -------------------------------------------------------------------------------------------------------
_NONE = Placed("", 0)


def _band(load: int) -> int:
    """The least load that counts as equal to `load`: all but its three leading bits are cleared, so it is less than `load` by a
    fifth at most, and by nothing below 8."""
    beyond = max(0, load.bit_length() - 3)
    return load >> beyond << beyond


def _newest(held: Mapping[str, Placed], incarnation: str) -> tuple[str, Placed]:
    """The placement of this life with the highest revision; `("", revision 0)` when there is none."""
    best, newest = "", _NONE
    for node, placed in held.items():
        if placed.incarnation == incarnation and placed.revision > newest.revision:
            best, newest = node, placed
    return best, newest


def _without(held: Mapping[str, Placed], node: str | None) -> dict[str, Placed]:
    return {other: placed for other, placed in held.items() if other != node}


def _needs(spec: Spec) -> _Needs:
    """What a node must offer to run `spec`."""
    if not spec.labels:
        return _Needs(spec.kind, (), FIRST)
    return _Needs(spec.kind, tuple(sorted(users_labels(spec.labels).items())), required(spec.labels))


def _needs_now(spec: Spec) -> _Needs:
    """The same; or to end it, if that is what remains to be done."""
    return _Needs(None, (), required(spec.labels)) if spec.status == "stopping" else _needs(spec)


def _misfit(needs: _Needs, lease: NodeLease) -> Literal["kind", "labels", "build", "code"] | None:
    """What a node lacks for `needs`, its capacity aside."""
    if needs.kind is not None and needs.kind not in lease.kinds:
        return "kind"
    if lease.reads < needs.reads:
        return "build"
    if needs.code is not None and (needs.kind is None or lease.code.get(needs.kind) != needs.code):
        return "code"
    return None if all(lease.labels.get(key) == value for key, value in needs.labels) else "labels"


def _details(world: World, spec: Spec) -> str:
    """Node by node, why it does not take `spec`."""
    lines = []
    for node in sorted(world.nodes):
        lease, lacks = world.nodes[node], _misfit(_needs_now(spec), world.nodes[node])
        states = (
            "draining" if lease.draining else "",
            "cordoned" if lease.cordoned else "",
            "in doubt" if node in world.held else "",
        )
        full = "full" if lease.capacity and world.loads.get(node, 0) >= lease.capacity else ""
        lines.append(f"{node}: {', '.join(filter(None, (lacks and f'other {lacks}', *states, full)))}")
    return f" ({'; '.join(lines)})" if lines else ""
