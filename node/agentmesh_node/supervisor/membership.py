"""Which nodes live: each is judged by its lease and by what its pings give (docs/architecture.md#failure-detection).

Dead is a node whose pings met no responders throughout the grace (`failure_detector`), or whose lease is gone for longer than a
node needs to renew it. The lease of a dead node is deleted before its agents are placed elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.registry import Registry
from agentmesh.subjects import node_key
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.failure_detector import PingState
from agentmesh_node.supervisor.registry_index import NodeState, RegistryIndex

log = logging.getLogger("agentmesh.supervisor")

_LEASE_S = 0.5
"""How long the deletion of the leases of dead nodes may hold up the placing of their agents, however many there are."""


class Pings(Protocol):
    """What pings have given of each node (`LeaseAndPings`)."""

    def ping_state(self, node: str) -> PingState:
        """The state of a node; `UNKNOWN` if it is not watched."""

    def busy(self, node: str) -> tuple[str, ...]:
        """Agents of a node that were in a turn at its last answer."""

    def forget(self, node: str) -> None:
        """Forget what is known of a node, because another process has taken its id."""


class Membership:
    """Judges the nodes of the index, and enters there what it finds."""

    def __init__(
        self,
        registry: Registry,
        index: RegistryIndex,
        pings: Pings,
        decisions: DecisionLog,
        settings: SupervisorSettings,
    ) -> None:
        self._registry = registry
        self._index = index
        self._pings = pings
        self._decisions = decisions
        self._settings = settings
        self.settles_at = 0.0
        """Until this time of the loop nobody is dead because its lease is gone; 0: it has passed."""
        self._dead_boots: dict[str, str] = {}
        """Which process of a node its pings found dead: another may have taken its id since."""
        self._foreign_since: dict[str, float] = {}
        """Since when a node's lease is of foreign form."""
        self._doomed: dict[str, int] = {}
        """Leases of dead nodes, by their revisions: to be deleted."""

    def on_pings(self, node: str, ping_state: PingState) -> None:
        """Note that the result of a node's pings has changed."""
        if ping_state is PingState.DEAD:
            lease = self._index.leases.get(node)
            self._dead_boots[node] = lease.boot if lease is not None else ""

    def begin_anew(self) -> None:
        """What was known of the nodes may be wrong: each gets the time to renew its lease."""
        self.settles_at = asyncio.get_running_loop().time() + self._settings.settle_s
        self._dead_boots.clear()

    def judge(self, node: str) -> None:
        """Decide the state of `node`, by its lease and its pings. Idempotent."""
        if not self._index.matters(node):
            return
        lease = self._index.leases.get(node)
        ping_state = self._pings.ping_state(node)
        if ping_state is PingState.DEAD and lease is not None and self._dead_boots.get(node) != lease.boot:
            self._pings.forget(node)  # another process under this id
            ping_state = PingState.UNKNOWN
        if ping_state is PingState.DEAD:
            state, reason = NodeState.GONE, f"no responders for {self._settings.grace_s:g} s"
        elif lease is None:
            settled = asyncio.get_running_loop().time() >= max(self.settles_at, self._rewritten_by(node))
            state, reason = (NodeState.GONE if settled else NodeState.DOUBTED), "its lease is gone"
        elif ping_state is PingState.SILENT:
            state, reason = NodeState.DOUBTED, "no responders"
        else:
            state, reason = NodeState.LIVE, "it has a lease"
        if state is NodeState.GONE and (lease is not None or node in self._index.foreign_leases):
            self._doomed[node] = self._index.revision(node_key(node))
        if self._index.set_state(node, state):
            level = logging.WARNING if state is NodeState.GONE else logging.INFO
            self._decisions.add(f"node_{state.value}", reason, level=level, node=node)
            if state is NodeState.GONE:
                self._index.hurry(self._pings.busy(node))

    def _rewritten_by(self, node: str) -> float:
        """When a node that lives has written its lease again, if a message that is not the mesh's has replaced it; 0 if not."""
        if node not in self._index.foreign_leases:
            self._foreign_since.pop(node, None)
            return 0.0
        since = self._foreign_since.setdefault(node, asyncio.get_running_loop().time())
        return since + self._settings.settle_s

    def judge_all(self) -> None:
        """Decide the state of every node."""
        for node in sorted(self._index.nodes()):
            self.judge(node)

    async def drop_leases(self) -> None:
        """Delete the leases of nodes that are judged dead. A lease that was renewed meanwhile stays.

        This is done before their agents are placed elsewhere: by the lease the next owner sees whether the last one died.
        """
        doomed, self._doomed = self._doomed, {}
        gone = [(node, revision) for node, revision in doomed.items() if not self._index.is_live(node)]  # the others answer again
        if not gone:
            return
        try:
            async with asyncio.timeout(_LEASE_S), asyncio.TaskGroup() as group:
                for node, revision in gone:
                    group.create_task(self._drop_lease(node, revision), name=f"delete the lease of {node}")
        except TimeoutError:
            log.debug("lease_delete_failed", extra={"nodes": len(gone), "reason": f"it took longer than {_LEASE_S:g} s"})

    async def _drop_lease(self, node: str, revision: int) -> None:
        try:
            await self._registry.delete(node_key(node), revision)
        except EDGE_ERRORS as error:
            log.debug("lease_delete_failed", extra={"node": node, "reason": repr(error)})
