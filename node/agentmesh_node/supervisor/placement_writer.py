"""Carries out plans. Every write is a compare-and-set, so a plan that is based on old data does no harm: it is made again."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.failures import EDGE_ERRORS, WrongLastSequence
from agentmesh.edge.registry import Entry, Registry
from agentmesh.formats import requiring
from agentmesh.planner import End, Place, Plan, Remove, Settle, Unplaced
from agentmesh.registry_values import Placement, Spec, encode_spec
from agentmesh.subjects import placement_key, spec_key
from agentmesh.wire import ErrorBody, encode, format_time
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.registry_index import RegistryIndex

log = logging.getLogger("agentmesh.supervisor")


class PlacementWriter:
    """Writes placements and the reasons of waiting agents, many at a time.

    Args:
        index: gets each write at once, and not only by the change feed: the next plan must know what this one did.
        in_flight: most writes under way at one time.
        may_act: called before each write; False ends the work.
    """

    def __init__(
        self,
        registry: Registry,
        index: RegistryIndex,
        decisions: DecisionLog,
        *,
        in_flight: int,
        may_act: Callable[[], bool],
        wall_clock: Callable[[], float] = SYSTEM.now,
    ) -> None:
        self._registry = registry
        self._index = index
        self._decisions = decisions
        self._in_flight = in_flight
        self._may_act = may_act
        self._wall_clock = wall_clock
        self._performed: list[tuple[str, str, dict[str, Any]]] = []
        self._later: dict[tuple[str, str], Remove] = {}

    async def carry_out(self, made: Plan) -> bool:
        """Carry out a plan. True if all of it was done; else the agents concerned are marked to be planned again.

        Placements on nodes that are gone are left to `tidy`: no process acts on them, and other agents wait to be placed.
        """
        since = format_time(self._wall_clock())
        undone = await self._each(made.end, self._end)
        undone |= await self._each(made.place, lambda action: self._place(action, since))
        self._report()
        # An agent that could not be placed anew keeps the placement that it has.
        removals = [action for action in made.remove if action.agent not in undone]
        leftovers = [action for action in removals if not self._index.is_live(action.node)]
        self._later.update(((action.node, action.agent), action) for action in leftovers)
        undone |= await self._each([action for action in removals if self._index.is_live(action.node)], self._remove)
        undone |= await self._each([action for action in made.settle if action.agent not in undone], self._settle)
        self._report()
        self._index.mark(undone)
        return not undone

    @property
    def untidy(self) -> bool:
        """Whether `tidy` has something to do."""
        return bool(self._later)

    def forget(self) -> None:
        """Drop what was left to `tidy`: everything is planned anew, and that will be part of it."""
        self._later.clear()

    async def tidy(self, limit: int) -> bool:
        """Delete up to `limit` placements on nodes that are gone. True if that could be done. Their moves have been
        reported already."""
        keys = list(itertools.islice(self._later, limit))
        undone = await self._each([self._later.pop(key) for key in keys], self._delete)
        self._index.mark(undone)
        return not undone

    async def write_reasons(self, waits: Iterable[Unplaced]) -> bool:
        """Write into the specs of agents that wait for a node why they wait. True if every spec that needs it has it."""
        needed = [wait for wait in waits if needs_reason(self._index.specs.get(wait.agent), wait)]
        undone = await self._each(needed, self._write_reason)
        self._report()
        self._index.mark(undone)
        return not undone

    # --- inside ---------------------------------------------------------------------------------------------------
    def _report(self) -> None:
        # Behind the writes and not between them: a thousand log lines would hold up a takeover.
        performed, self._performed = self._performed, []
        for kind, reason, fields in performed:
            self._decisions.add(kind, reason, **fields)

    async def _each[A: (Place, Remove, Unplaced, End, Settle)](
        self, actions: Sequence[A], perform: Callable[[A], Awaitable[bool]]
    ) -> set[str]:
        """Perform all actions, some at a time. Returns the agents of those that were not done."""
        todo: deque[A] = deque(actions)
        undone: set[str] = set()
        failure: Exception | None = None

        async def work() -> None:
            nonlocal failure
            # After a failure the next write would wait just as long: stop, because the plan is made again soon.
            while todo and failure is None and self._may_act():
                action = todo.popleft()
                try:
                    if not await perform(action):
                        undone.add(action.agent)
                except EDGE_ERRORS as error:
                    failure = error
                    undone.add(action.agent)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._in_flight, len(actions))):
                group.create_task(work())
        undone.update(action.agent for action in todo)
        if failure is not None:
            log.warning("registry_failed", extra={"undone": len(undone), "reason": repr(failure)})
        return undone

    async def _place(self, action: Place, since: str) -> bool:
        key = placement_key(action.node, action.agent)
        value = encode(Placement(incarnation=action.incarnation, since=since))
        try:
            if action.revision:
                revision = await self._registry.update(key, value, action.revision)
            else:
                revision = await self._registry.create(key, value)
        except WrongLastSequence:
            await self._look(key)
            return False
        self._index.observe(Entry(key, value, revision))
        fields = {"agent": action.agent, "node": action.node, "generation": revision}
        if action.previous is None:
            self._performed.append(("placed", action.reason, fields))
        else:
            self._performed.append(("moved", action.reason, fields | {"from_node": action.previous}))
        return True

    async def _delete(self, action: Remove) -> bool:
        key = placement_key(action.node, action.agent)
        if not await self._registry.delete(key, action.revision):
            await self._look(key)
            return False
        self._index.bury(key, action.revision)
        return True

    async def _remove(self, action: Remove) -> bool:
        if not await self._delete(action):
            return False
        fields = {"agent": action.agent, "node": action.node, "generation": action.revision}
        self._performed.append(("removed", action.reason, fields))
        return True

    async def _end(self, action: End) -> bool:
        spec = self._index.specs.get(action.agent)
        if spec is None or spec.status in ("stopping", "stopped"):
            return True
        reason = ErrorBody(code="stopped", message=action.reason)
        now = format_time(self._wall_clock())
        if not await self._change_spec(action.agent, msgspec.structs.replace(spec, status="stopping", since=now, reason=reason)):
            return False
        self._performed.append(("ended", action.reason, {"agent": action.agent}))
        return True

    async def _settle(self, action: Settle) -> bool:
        spec = self._index.specs.get(action.agent)
        if spec is None:
            return True
        move_to = None if spec.move_to == action.node else spec.move_to
        changed = msgspec.structs.replace(spec, move_to=move_to, turn_code=None if action.placed else spec.turn_code)
        if changed == spec:
            return True
        if not await self._change_spec(action.agent, changed):
            return False
        if action.reason is not None:
            self._performed.append(("move_given_up", action.reason, {"agent": action.agent, "node": action.node}))
        return True

    async def order(self, agent: str, node: str) -> bool:
        """Write into the agent's spec that it is to move to `node`. False if somebody else has written meanwhile.

        Raises: what `Registry.update` does."""
        return await self._change_spec(agent, msgspec.structs.replace(self._index.specs[agent], move_to=node))

    async def _write_reason(self, wait: Unplaced) -> bool:
        spec = self._index.specs.get(wait.agent)
        if spec is None or not needs_reason(spec, wait):
            return True
        changed = msgspec.structs.replace(
            spec,
            status="wanted",
            since=spec.since if spec.status == "wanted" else format_time(self._wall_clock()),
            reason=ErrorBody(code="unavailable", message=wait.reason),
            ran=spec.ran or spec.status == "running",
        )
        if not await self._change_spec(wait.agent, changed):
            return False
        self._performed.append(("waiting", wait.reason, {"agent": wait.agent}))
        return True

    async def require(self, agent: str, version: int) -> None:
        """Have the agent's spec ask for nodes that read `version`. Raises: what `Registry.update` does."""
        spec = self._index.specs.get(agent)
        if spec is not None:
            await self._change_spec(agent, msgspec.structs.replace(spec, labels=requiring(spec.labels, version)))

    async def _change_spec(self, agent: str, changed: Spec) -> bool:
        """Write a spec over the one that is known. False if somebody else has written meanwhile."""
        key, value = spec_key(agent), encode_spec(changed, self._index.unknown.get(agent))
        try:
            revision = await self._registry.update(key, value, self._index.revision(key))
        except WrongLastSequence:
            await self._look(key)
            return False
        self._index.observe(Entry(key, value, revision))
        return True

    async def _look(self, key: str) -> None:
        """Somebody else wrote `key`: read it from the leader of the stream, so that the same plan is not made again."""
        entry = await self._registry.get(key)
        if entry is None:
            self._index.bury(key, self._index.revision(key))
        else:
            self._index.observe(entry)


def needs_reason(spec: Spec | None, wait: Unplaced) -> bool:
    """Whether `spec` should say why its agent waits, and does not. A failed or stopping spec has a reason of its own."""
    if spec is None or spec.status not in ("wanted", "running"):
        return False
    return spec.status == "running" or spec.reason is None or spec.reason.message != wait.reason
