"""Handing agents over: those given up here that have no owner elsewhere yet (docs/architecture.md#nodes; case 222)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from agentmesh.control_values import ControlRequest
from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.registry import Entry, Registry, View, Watch, decode_node, decode_spec, readable_spec
from agentmesh.edge.retry import UPKEEP_RETRY
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout, Transport
from agentmesh.errors import BadRequest, NotPermitted
from agentmesh.registry_values import NodeLease, encode_spec
from agentmesh.subjects import Subjects, placement_key, spec_key
from agentmesh.wire import encode
from agentmesh_node.host.pace import LOOK_S, HandOver, MovePace, can_move
from agentmesh_node.host.placed_agent import PlacedAgent

_TRIES = 5
_CODE_S = 2.0
"""How long a hand-over may be held up by what is only a preference."""
_AGAIN_S = 1.0
"""Pause before an agent is given up once more that is still here."""
PACED_S = 3.0
"""For so long at most running turns are handed on a few at a time; then all that are left are."""
GOES_ON_S = 1.0
"""How long it is waited for that an agent goes on elsewhere, before it counts no more."""
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
    if known is None:
        return
    taking = [decode_node(lease) for lease in others if _takes_agents(lease)]
    try:
        async with asyncio.timeout(_CODE_S):
            await _write_code(registry, taking, known, incarnation, code)
    except EDGE_ERRORS as error:
        log.info("the code of a turn cannot be told: %s", error, extra={"key": known.key, "code": code})


async def _write_code(registry: Registry, taking: Iterable[NodeLease], known: Entry, incarnation: str, code: str) -> None:
    """Raises: what the registry does."""
    entry: Entry | None = known
    for _ in range(_TRIES):
        spec = readable_spec(entry)
        if entry is None or spec is None or spec.incarnation != incarnation:
            return
        versions = {lease.code.get(spec.kind) for lease in taking if spec.kind in lease.kinds}
        wanted = code if code in versions and len(versions) > 1 else None
        if spec.turn_code == wanted:
            return
        try:
            await registry.update(
                entry.key, encode_spec(msgspec.structs.replace(spec, turn_code=wanted), entry.value), entry.revision
            )
            return
        except WrongLastSequence:
            entry = await registry.get(entry.key)  # its status was written meanwhile


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

    async def give_up_all(self, placed: Mapping[str, PlacedAgent], hand_over: HandOver, pace: MovePace | None = None) -> None:
        """Hand over all agents in `placed`, also those that come meanwhile: the leader may not know of the drain yet.

        Args:
            pace: lets running turns go a few at a time, for a while.
        """
        if pace is not None and not await self._has_elsewhere():
            pace = None
        begun: set[PlacedAgent] = set()
        clock = asyncio.get_running_loop().time
        until = clock() + PACED_S

        async def one(agent: PlacedAgent, *, moves: bool) -> None:
            try:
                await hand_over(agent)
            except Exception:  # the others are handed over whatever happens to one of them
                log.exception("an agent was not given up", extra={"agent": agent.name})
            if placed.get(agent.name) is agent:  # that failed, or somebody else had begun it
                await asyncio.sleep(_AGAIN_S)
                begun.discard(agent)
            elif moves and pace is not None and clock() < until:
                pace.follow(agent.name)

        async with asyncio.TaskGroup() as group:
            while placed:
                fresh = [agent for agent in placed.values() if agent not in begun]
                for agent in fresh if pace is None or clock() >= until else pace.next_of(fresh):
                    begun.add(agent)
                    self._waiting.add(agent.name)
                    group.create_task(one(agent, moves=can_move(agent)))
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


async def answers(transport: Transport, subjects: Subjects, agent: str) -> None:
    """Return when an owner of `agent` answers, or after `GOES_ON_S`."""
    body = encode(ControlRequest(op="status"))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GOES_ON_S):
            while True:
                try:
                    await transport.request(subjects.control(agent), body, timeout=GOES_ON_S)
                except NoResponders:
                    await asyncio.sleep(LOOK_S)  # nobody has it yet
                except (RequestTimeout, Disconnected, NotPermitted):
                    return
                else:
                    return


def _takes_agents(node: Entry) -> bool:
    try:
        lease = decode_node(node)
    except BadRequest:
        return False
    return not lease.draining and not lease.cordoned
