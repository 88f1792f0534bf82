"""Handing agents over: those given up here that have no owner elsewhere yet (docs/architecture.md#nodes; case 222)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.registry import Entry, Registry, View, Watch, decode_node, decode_spec, readable_spec
from agentmesh.edge.retry import UPKEEP_RETRY
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest
from agentmesh.registry_values import encode_spec
from agentmesh.subjects import placement_key, spec_key
from agentmesh_node.host.placed_agent import PlacedAgent

LOOK_S = 0.02
_TRIES = 5
_CODE_S = 2.0
"""How long a hand-over may be held up by what is only a preference."""
CUT_OFF_S = 2.0
"""How long a leaving node may be without a connection. Without one it can hand nothing over, and the journals have everything."""
log = logging.getLogger("agentmesh.node")


async def unless_cut_off(leaving: Coroutine[Any, Any, None], transport: Transport, monotonic: Callable[[], float]) -> None:
    """Await `leaving`, but give it up when there has been no connection for `CUT_OFF_S`."""
    tasks = asyncio.ensure_future(leaving), asyncio.ensure_future(_cut_off(transport, monotonic))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(*tasks)
    if tasks[0].done() and not tasks[0].cancelled():
        tasks[0].result()


async def _cut_off(transport: Transport, monotonic: Callable[[], float]) -> None:
    since = monotonic()
    while monotonic() < since + CUT_OFF_S:
        await asyncio.sleep(LOOK_S)
        if transport.connected:
            since = monotonic()
    log.warning("no connection: leaving without a handover; the supervisor moves the agents when the node's lease ends")


async def give_up(registry: Registry, key: str, generation: int, ended: Callable[[], bool]) -> None:
    """Delete a placement by revision, so that no agent is left without an owner and no two owners fence each other for ever."""
    for pause in UPKEEP_RETRY:
        if ended():
            return
        try:
            await registry.delete(key, generation)
            return
        except EDGE_ERRORS as error:
            log.debug("placement not deleted: %s", error, extra={"key": key})
        await asyncio.sleep(pause)


async def prefer_code(registry: Registry, others: Iterable[Entry], known: Entry | None, incarnation: str, code: str) -> None:
    """Say in an agent's spec that its turn began with the version `code`, if some of the `others` (leases of nodes) serve that
    and some do not: then the leader takes one that does. What cannot be written now is left out, and the turn goes on with what
    is served. `known` is the spec as it was seen last: where nothing is to be said, nothing is read."""
    entry, taking = known, [decode_node(lease) for lease in others if _takes_agents(lease)]
    for _ in range(_TRIES):
        spec = readable_spec(entry)
        if entry is None or spec is None or spec.incarnation != incarnation:
            return
        versions = {lease.code.get(spec.kind) for lease in taking if spec.kind in lease.kinds}
        wanted = code if code in versions and len(versions) > 1 else None
        if spec.turn_code == wanted:
            return
        key, changed = entry.key, encode_spec(msgspec.structs.replace(spec, turn_code=wanted), entry.value)
        try:
            async with asyncio.timeout(_CODE_S):
                try:
                    await registry.update(key, changed, entry.revision)
                except WrongLastSequence:
                    entry = await registry.get(key)  # its status was written meanwhile
                else:
                    return
        except EDGE_ERRORS as error:
            log.info("the code of a turn cannot be told: %s", error, extra={"key": key, "code": code})
            return


class Handover:
    """Follows the agents that a leaving node gives up, until they have owners elsewhere."""

    def __init__(self, node: str, registry: Registry, specs: View) -> None:
        self._node = node
        self._registry = registry
        self._specs = specs
        self._waiting: set[str] = set()
        self._watch: Watch | None = None

    async def start(self) -> None:
        """Follow all placements from now on. Placements from before an agent is given up do not count."""
        self._watch = await self._registry.watch(placement_key("*", ">"), self._on_placement)

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()

    async def give_up_all(
        self, placed: Mapping[str, PlacedAgent], hand_over: Callable[[PlacedAgent], Coroutine[Any, Any, None]]
    ) -> None:
        """Hand over all agents in `placed`, also those that come meanwhile: the leader may not know of the drain yet."""
        begun: set[PlacedAgent] = set()
        while placed:
            async with asyncio.TaskGroup() as group:
                for agent in [a for a in placed.values() if a not in begun]:
                    begun.add(agent)
                    self._waiting.add(agent.name)
                    group.create_task(hand_over(agent))
            await asyncio.sleep(LOOK_S)

    def _on_placement(self, entry: Entry) -> None:
        node, _, agent = entry.key.partition(".")[2].partition(".")
        if entry.value is not None and node != self._node:
            self._waiting.discard(agent)

    async def wait(self, seconds: float) -> set[str]:
        """Wait until all agents have an owner elsewhere, or cannot have one, at most `seconds`. Returns those without."""
        if not self._waiting or not await self._has_elsewhere():
            return set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._waiting and loop.time() < deadline:
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
        # With a reason the leader has written that no node can take it.
        return spec.status in ("running", "failed") or (spec.status == "wanted" and spec.reason is None)

    async def _has_elsewhere(self) -> bool:
        """Whether another node takes agents."""
        try:
            entries, _ = await self._registry.load("nodes.")
        except EDGE_ERRORS:
            return False
        return any(_takes_agents(entry) for entry in entries if entry.key != f"nodes.{self._node}")


def _takes_agents(node: Entry) -> bool:
    try:
        lease = decode_node(node)
    except BadRequest:
        return False
    return not lease.draining and not lease.cordoned
