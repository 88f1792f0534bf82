"""The registry, indexed for the planner, and the agents that the next plan must look at.

A full plan of ten thousand agents takes some 30 ms: too long for placing one new agent, and too long a thousand times in a row.
The index gets every change and knows which agents it can concern, so the cost of a plan depends on what has changed. No I/O, no
clock.
"""

from __future__ import annotations

import enum
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from agentmesh.edge.registry import Entry, decode_node, decode_placement, decode_spec
from agentmesh.errors import BadRequest
from agentmesh.formats import RECORD_VERSION, required
from agentmesh.names import agent_name
from agentmesh.planner import Placed, Plan, Unplaced, World
from agentmesh.registry_values import NodeLease, Spec, unknown_fields

log = logging.getLogger("agentmesh.supervisor")


class NodeState(enum.Enum):
    """The state of a node, as the supervisor judges it."""

    LIVE = "live"
    DOUBTED = "doubted"
    """It does not answer at the moment: its agents stay, and it gets no new ones."""
    GONE = "gone"


class Dropped(NamedTuple):
    """A spec whose key is gone."""

    spec: Spec
    """As it was seen last."""
    unknown: dict[str, msgspec.Raw]
    """Its fields of a newer build."""
    revision: int


class RegistryIndex:
    """Specs, leases and placements as last observed, with the state of each node."""

    def __init__(self) -> None:
        self.specs: dict[str, Spec] = {}
        self.leases: dict[str, NodeLease] = {}
        self.placements: dict[str, dict[str, Placed]] = {}
        self.waits: dict[str, Unplaced] = {}
        self.unknown: dict[str, dict[str, msgspec.Raw]] = {}
        """Per agent whose spec has some: fields of a newer build, which are kept when the spec is written anew."""
        self.dropped: dict[str, Dropped] = {}
        """Agents whose specs, which had not ended, are gone; `SpecRepair` finds out how, and removes them here."""
        self._children: dict[str, set[str]] = {}
        self._ordered: dict[str, str] = {}
        """Agents that are ordered to move, and where to."""
        self._on_node: dict[str, set[str]] = {}
        self._states: dict[str, NodeState] = {}
        self._revisions: dict[str, int] = {}
        self._buried: dict[str, int] = {}
        self.foreign_leases: set[str] = set()
        """Nodes whose leases are of foreign form."""
        self._unreadable: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._first: set[str] = set()
        self._may_fit = False
        """Whether the agents that wait must be planned for: one of them may fit somewhere now."""

    # --- what is known --------------------------------------------------------------------------------------------
    def world(self) -> World:
        """The planner's view of now. It reads this index: use it before the next change."""
        gone = {node for node, state in self._states.items() if state is NodeState.GONE}
        doubted = {node for node, state in self._states.items() if state is NodeState.DOUBTED}
        return World(
            self.specs,
            {node: lease for node, lease in self.leases.items() if node not in gone},
            self.placements,
            {node: len(agents) for node, agents in self._on_node.items()},
            doubted,
            self._revisions,
        )

    def copy(self) -> World:
        """As `world`, but a copy, for another thread."""
        now = self.world()
        return msgspec.structs.replace(
            now,
            specs=dict(now.specs),
            placements={agent: dict(by_node) for agent, by_node in now.placements.items()},
            written=dict(now.written),
        )

    def nodes(self) -> set[str]:
        """Every node that has a lease, or placements."""
        return self.leases.keys() | self._on_node.keys()

    def is_live(self, node: str) -> bool:
        """Whether `node` has a lease, and is not known to be gone."""
        return node in self.leases and self._states.get(node) is not NodeState.GONE

    def readers(self, version: int) -> list[str]:
        """Live nodes that stay and read records of `version`."""
        return sorted(node for node, lease in self.leases.items() if not lease.draining and lease.reads >= version)

    def behind(self) -> set[str]:
        """Agents that begin or end on live nodes which do not read all that this build writes, and whose specs ask for less."""
        older = [node for node, lease in self.leases.items() if lease.reads < RECORD_VERSION and self.is_live(node)]
        return {agent for node in older for agent in self._on_node.get(node, ()) if self._may_wait(agent)}

    def _may_wait(self, agent: str) -> bool:
        spec = self.specs.get(agent)
        return spec is not None and spec.status in ("wanted", "stopping") and required(spec.labels) < RECORD_VERSION

    def matters(self, node: str) -> bool:
        """Whether `node` has a lease, or placements."""
        return node in self.leases or node in self._on_node

    def keys(self) -> list[str]:
        """Every key that exists."""
        return list(self._revisions)

    def revision(self, key: str) -> int:
        """Newest revision seen of `key`; 0 if it does not exist."""
        return self._revisions.get(key, 0)

    def foreign_specs(self) -> dict[str, int]:
        """Agents whose specs are of foreign form, with the revisions of those."""
        return dict(self._unreadable)

    # --- what changes ---------------------------------------------------------------------------------------------
    def observe(self, entry: Entry) -> None:
        """Note a change, unless a newer one of that key is known."""
        key, revision = entry.key, entry.revision
        if revision <= max(self._revisions.get(key, 0), self._buried.get(key, 0)):
            return
        if entry.value is None:
            self.bury(key, revision)
            return
        self._buried.pop(key, None)
        self._revisions[key] = revision
        role, _, name = key.partition(".")
        if role == "agents":
            self._take_spec(name, entry)
        elif role == "nodes":
            self._take_lease(name, entry)
        elif role == "placements":
            self._take_placement(name, entry)

    def bury(self, key: str, revision: int) -> None:
        """Note that `key` was deleted. Changes of it up to `revision` that arrive later are ignored."""
        self._buried[key] = revision
        if (known := self._revisions.pop(key, None)) is None:
            return
        role, _, name = key.partition(".")
        if role == "agents":
            spec, unknown = self.specs.pop(name, None), self.unknown.pop(name, None)
            if spec is not None and spec.status != "stopped":
                self.dropped[name] = Dropped(spec, unknown or {}, known)
            self._note_parent(name, spec, None)
            self._ordered.pop(name, None)
            self._unreadable.pop(name, None)
            self._dirty.add(name)
        elif role == "nodes":
            self.foreign_leases.discard(name)
            self.leases.pop(name, None)
            self._node_changed(name)
        elif role == "placements":
            node, _, agent = name.partition(".")
            self._drop_placement(node, agent)

    def drop_missing(self, keys: Iterable[str], entries: Mapping[str, Entry], floor: int) -> None:
        """Bury those of `keys` that a copy of the registry, complete up to revision `floor`, does not have.

        Keys that are newer than the floor stay: the copy may not have a write of our own, which is known from its answer.
        """
        for key in keys:
            revision = self._revisions.get(key)
            if revision is not None and revision <= floor and key not in entries:
                self.bury(key, revision)

    def forget_buried(self) -> None:
        """Forget deleted keys, to free memory. Call it only while no write is under way."""
        self._buried.clear()

    def state(self, node: str) -> NodeState:
        """The state of a node; `LIVE` until it is judged to be another."""
        return self._states.get(node, NodeState.LIVE)

    def set_state(self, node: str, state: NodeState) -> bool:
        """Note the state of a node. Returns whether it has changed."""
        if state is self.state(node):
            return False
        if state is NodeState.LIVE:
            del self._states[node]
        else:
            self._states[node] = state
        self._node_changed(node)
        return True

    # --- agents to plan for ----------------------------------------------------------------------------------------
    def all_dirty(self) -> None:
        """Let the next plan look at all agents."""
        self._dirty.update(self.specs, self.placements, self.waits)

    def mark(self, agents: Iterable[str]) -> None:
        """Let the next plan look at `agents`."""
        self._dirty.update(agents)

    def hurry(self, agents: Iterable[str]) -> None:
        """Of the agents that must be looked at, take these first."""
        self._first.update(agents)

    def take_dirty(self, limit: int) -> set[str]:
        """At most `limit` of the agents that the next plan must look at; they are no longer dirty then."""
        self._mark_waiting()
        self._dirty.difference_update([agent for agent in self._unreadable if agent not in self.specs])
        first, self._first = self._first & self._dirty, set()
        if len(self._dirty) <= limit:
            dirty, self._dirty = self._dirty, set()
            return dirty
        dirty = set(itertools.islice(first, limit))
        self._first = first - dirty
        self._dirty -= dirty
        while len(dirty) < limit:
            dirty.add(self._dirty.pop())
        return dirty

    @property
    def dirty(self) -> int:
        """How many agents must be looked at."""
        self._mark_waiting()
        return len(self._dirty)

    def note_waits(self, looked_at: set[str], plan: Plan) -> None:
        """Note the agents that wait after a plan over `looked_at`."""
        for agent in looked_at & self.waits.keys():
            del self.waits[agent]
        for wait in plan.unplaced:
            self.waits[wait.agent] = wait

    # --- inside ---------------------------------------------------------------------------------------------------
    def _take_spec(self, agent: str, entry: Entry) -> None:
        try:
            agent_name(agent)  # any NATS client can write any key
            spec = decode_spec(entry)
        except BadRequest as error:
            # Until it is put back, the last spec that could be read counts. Without one it is not known what should run: leaving
            # the agent exactly as it is does the least harm.
            self._unreadable[agent] = entry.revision
            self._recall(agent)
            log.error("spec_unreadable", extra={"agent": agent, "reason": error.message})
            return
        self._note_parent(agent, self.specs.get(agent), spec)
        self.specs[agent] = spec
        if spec.move_to is not None:
            self._ordered[agent] = spec.move_to
        else:
            self._ordered.pop(agent, None)
        self.dropped.pop(agent, None)
        if unknown := unknown_fields(entry.value):
            self.unknown[agent] = unknown
        else:
            self.unknown.pop(agent, None)
        self._unreadable.pop(agent, None)
        self._dirty.add(agent)

    def _recall(self, agent: str) -> None:
        """Of a spec that was gone, and whose key holds what cannot be read now, the last one that could be read counts, too."""
        if agent not in self.specs and (gone := self.dropped.pop(agent, None)) is not None:
            self._note_parent(agent, None, gone.spec)
            self.specs[agent] = gone.spec
            self.unknown.update({agent: gone.unknown} if gone.unknown else {})

    def _note_parent(self, agent: str, old: Spec | None, new: Spec | None) -> None:
        """Keep the index of linked agents, and mark those of `agent`."""
        if old is not None and old.parent is not None:
            self._children.get(old.parent, set()).discard(agent)
        if new is not None and new.parent is not None:
            self._children.setdefault(new.parent, set()).add(agent)
        children = self._children.get(agent)
        if children:
            self._dirty.update(children)
        elif children is not None:
            del self._children[agent]

    def _take_lease(self, node: str, entry: Entry) -> None:
        try:
            lease = decode_node(entry)
        except BadRequest as error:
            # A value of foreign form is no lease. Its node, if there is one, writes the lease again within a third of its TTL.
            log.error("lease_unreadable", extra={"node": node, "reason": error.message})
            self.foreign_leases.add(node)
            if self.leases.pop(node, None) is not None:
                self._node_changed(node)
            return
        self.foreign_leases.discard(node)
        old = self.leases.get(node)
        self.leases[node] = lease
        if old is None or _facts(old) != _facts(lease):
            self._node_changed(node)

    def _take_placement(self, name: str, entry: Entry) -> None:
        node, _, agent = name.partition(".")
        if not agent:
            log.error("placement_unreadable", extra={"key": entry.key, "reason": "it names no agent; delete the key"})
            return
        try:
            life = decode_placement(entry).incarnation
        except BadRequest:
            life = ""  # of no life: the planner removes it
        self.placements.setdefault(agent, {})[node] = Placed(life, entry.revision)
        self._on_node.setdefault(node, set()).add(agent)
        self._dirty.add(agent)

    def _drop_placement(self, node: str, agent: str) -> None:
        by_node = self.placements.get(agent, {})
        by_node.pop(node, None)
        if not by_node:
            self.placements.pop(agent, None)
        agents = self._on_node.get(node, set())
        agents.discard(agent)
        if not agents:
            self._on_node.pop(node, None)
            if node not in self.leases:
                self._states.pop(node, None)
        self._dirty.add(agent)
        self._may_fit = True

    def _mark_waiting(self) -> None:
        # Once for all changes since: many placements are removed at a time, and many agents may wait.
        if self._may_fit:
            self._may_fit = False
            self._dirty.update(self.waits)

    def _node_changed(self, node: str) -> None:
        self._dirty.update(self._on_node.get(node, ()))
        self._dirty.update([agent for agent, to in self._ordered.items() if to == node])
        self._may_fit = True
        if node not in self.leases and node not in self._on_node:
            self._states.pop(node, None)


def _facts(lease: NodeLease) -> tuple[object, ...]:
    """The parts of a lease that a plan reads; renewals change only the others."""
    return (lease.boot, lease.kinds, lease.labels, lease.capacity, lease.draining, lease.cordoned, lease.reads)
