"""Handing agents over: who was given up here, and who has not been taken up elsewhere yet (design 5; semantics, case 222)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentmesh.edge.jetstream import ApiError
from agentmesh.edge.registry import Entry, Registry, View, Watch, decode_node, decode_spec
from agentmesh.errors import BadRequest, MeshError
from agentmesh.subjects import placement_key, spec_key

LOOK_S = 0.02


class Handover:
    """Follows what becomes of the agents that a leaving node gives up."""

    def __init__(self, node: str, registry: Registry, specs: View) -> None:
        self._node = node
        self._registry = registry
        self._specs = specs
        self._waiting: set[str] = set()
        self._watch: Watch | None = None

    async def start(self) -> None:
        """Follow all placements from now on: what comes before an agent is given up says nothing about it."""
        self._watch = await self._registry.watch(placement_key("*", ">"), self._on_placement)

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()

    def giving_up(self, agent: str) -> None:
        """This node is about to delete its placement of `agent`."""
        self._waiting.add(agent)

    def _on_placement(self, entry: Entry) -> None:
        _, node, agent = entry.key.split(".", 2)
        if entry.value is not None and node != self._node:
            self._waiting.discard(agent)

    async def wait(self, seconds: float, *, ended: Callable[[], bool] = lambda: False) -> set[str]:
        """Wait until all have an owner elsewhere or cannot have one, at most `seconds`. Returns those that have none yet."""
        if not self._waiting or not await self._has_elsewhere():
            return set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._waiting and loop.time() < deadline and not ended():
            self._waiting = {agent for agent in self._waiting if self._expects_owner(agent)}
            await asyncio.sleep(LOOK_S)
        return self._waiting

    def _expects_owner(self, agent: str) -> bool:
        entry = self._specs.get(spec_key(agent))
        if entry is None:
            return False
        try:
            spec = decode_spec(entry)
        except BadRequest:
            return False
        # With a reason the leader has said that no node can take it.
        return spec.status in ("running", "failed") or (spec.status == "wanted" and spec.reason is None)

    async def _has_elsewhere(self) -> bool:
        """Whether another node takes agents."""
        try:
            entries, _ = await self._registry.load("nodes.")
            leases = [decode_node(entry) for entry in entries if entry.key != f"nodes.{self._node}"]
        except (MeshError, ApiError):
            return False
        return any(not lease.draining and not lease.cordoned for lease in leases)
