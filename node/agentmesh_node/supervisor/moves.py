"""Moves of agents that somebody asks for: one agent to one node (`mesh move`), or from full nodes to emptier ones.

Both ask the node that has an agent to give it up as soon as it can; then the leader places it. Where an agent is ordered to go
stands in its spec (`Spec.move_to`), so the order outlives the leader, and the planner follows it and ends it. Only the time at
which a node was asked last is kept here: it is asked again until the order is at its end
(docs/design/053-an-order-to-move-stands-in-the-spec.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Set

import msgspec

from agentmesh.control_values import ControlRequest
from agentmesh.edge.failures import Uncertain, WrongLastSequence
from agentmesh.edge.registry import Registry
from agentmesh.edge.tasks import wait_for
from agentmesh.edge.transport import UNANSWERED, Transport
from agentmesh.errors import BadRequest, Conflict, MeshError, NotFound, Stopped, Unavailable
from agentmesh.names import agent_name, node_id
from agentmesh.planner import Depart, Plan, refusal, surplus
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects, node_key, spec_key
from agentmesh.wire import encode
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.placement_writer import PlacementWriter
from agentmesh_node.supervisor.registry_index import RegistryIndex

_AT_ONCE = 1000
"""Agents that a node is asked for in one request."""
_REQUEST_S = 2.0
_AGAIN_S = 3.0
"""After so long a node is asked again for an agent that it still has."""
_IDLE_S = 0.2
"""Pause before what is due is looked at again by a supervisor that may not act."""
_TRIES = 5
"""So often an order is written anew because somebody else has written the spec meanwhile."""


class Moves:
    """Takes orders, and asks nodes for agents while `run` runs.

    Args:
        may_act: whether this supervisor leads, and has missed nothing.
        wake: have a plan made.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        index: RegistryIndex,
        writer: PlacementWriter,
        decisions: DecisionLog,
        *,
        may_act: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._registry = Registry(transport, subjects)
        self._index = index
        self._writer = writer
        self._decisions = decisions
        self._may_act = may_act
        self._wake = wake
        self._open: dict[str, Depart] = {}
        self._due: dict[str, float] = {}
        """Agent of an open move -> when its node is asked, by the loop's clock."""
        self._news = asyncio.Event()

    # --- orders ---------------------------------------------------------------------------------------------------
    async def order(self, agent: str, node: str) -> bool:
        """Have `agent` move to `node`. Returns False if it is there, and True once the order stands in its spec. Idempotent.

        Raises:
            BadRequest: the names are none, or the node does not serve the agent's kind or have its labels.
            NotFound: there is no such agent, or no such node is live.
            Stopped: the agent has ended, or is ending.
            Conflict: the node takes no agents now: it drains, is cordoned or full; or the agent is on its way elsewhere.
            Unavailable: the registry cannot be read or written now.
        """
        agent_name(agent)
        node_id(node)
        for _ in range(_TRIES):
            with contextlib.suppress(WrongLastSequence, Uncertain):
                for key in (node_key(node), spec_key(agent)):  # the feed of changes may be a little behind
                    if (entry := await self._registry.get(key)) is not None:
                        self._index.observe(entry)
                here = self._stands(agent)
                spec = self._judged(agent, node, here)
                if node in (here, spec.move_to):
                    return here != node
                if await self._writer.order(agent, node):
                    self._decisions.add("move_ordered", "an operator has asked for it", agent=agent, node=node)
                    self._wake()
                    return True
        raise Unavailable(f"the spec of {agent} is being written by others; ask again")

    def _judged(self, agent: str, node: str, here: str | None) -> Spec:
        """The spec of `agent`, which may move to `node`. Raises: as `order`."""
        spec = self._index.specs.get(agent)
        if spec is None:
            raise NotFound(f"no agent is called {agent}; see `mesh ps`")
        if spec.status in ("stopping", "stopped"):
            raise Stopped(f"{agent} is {spec.status}; there is nothing to move")
        if here == node:
            if spec.move_to not in (None, node):
                raise Conflict(f"{agent} is about to leave {node}, for it was ordered to move to {spec.move_to}; ask again then")
            return spec
        if not self._index.is_live(node):
            raise NotFound(f"no node called {node} is live; see `mesh nodes`")
        world = self._index.world()
        lease = world.nodes[node]
        reason = refusal(spec, node, lease, world.loads.get(node, 0))
        if reason is None:
            return spec
        if refusal(spec, node, msgspec.structs.replace(lease, draining=False, cordoned=False, capacity=0), 0) is None:
            raise Conflict(f"{agent} cannot move there now: {reason}; see `mesh nodes`")
        raise BadRequest(f"{agent} cannot move there: {reason}; see `mesh nodes`")

    def _stands(self, agent: str) -> str | None:
        """The node that has the agent: that of its newest placement, if that lives."""
        by_node = self._index.placements.get(agent, {})
        newest = max(by_node, key=lambda node: by_node[node].revision, default=None)
        return newest if newest is not None and self._index.is_live(newest) else None

    # --- moves that are open ----------------------------------------------------------------------------------------
    def note(self, looked_at: Set[str], made: Plan) -> None:
        """Note which agents are to move, after a plan over `looked_at`."""
        wanted = {move.agent: move for move in made.depart}
        now = asyncio.get_running_loop().time()
        for agent in looked_at & (self._open.keys() - wanted.keys()):
            del self._open[agent], self._due[agent]
        for agent, move in wanted.items():
            if self._open.get(agent) != move:
                self._open[agent], self._due[agent] = move, now
                self._news.set()

    def forget(self) -> None:
        """Forget all moves: everything is planned anew, and that finds them again."""
        self._open.clear()
        self._due.clear()

    async def run(self) -> None:
        """Ask nodes for the agents that are to move, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await wait_for(self._news, max(0.0, min(self._due.values(), default=loop.time() + _AGAIN_S) - loop.time()))
            if not self._may_act():
                await asyncio.sleep(_IDLE_S)  # what is due stays so: without a pause this would hold the loop
                continue
            now = loop.time()
            asked: dict[str, list[str]] = {}
            for agent, due in self._due.items():
                if due <= now:
                    asked.setdefault(self._open[agent].node, []).append(agent)
                    self._due[agent] = now + _AGAIN_S
            await self._ask_all(asked, any_turn=True)

    async def rebalance(self) -> int:
        """Ask the nodes that have too many agents to hand some over; those are then placed like all others.

        Returns how many agents were asked for. A node keeps those of them that are then in a turn which cannot go on elsewhere.
        """
        leaving = await asyncio.to_thread(surplus, self._index.copy())
        for node, agents in leaving.items():
            reason = f"{node} has more agents than others that could run them"
            self._decisions.add("rebalancing", reason, node=node, agents=len(agents))
        await self._ask_all(leaving, any_turn=False)
        return sum(len(agents) for agents in leaving.values())

    async def _ask_all(self, asked: Mapping[str, Iterable[str]], *, any_turn: bool) -> None:
        """Ask each node for its agents. One that hangs holds up no other."""
        async with asyncio.TaskGroup() as group:
            for node, agents in sorted(asked.items()):
                group.create_task(self._ask(node, agents, any_turn=any_turn), name=f"ask {node}")

    async def _ask(self, node: str, agents: Iterable[str], *, any_turn: bool) -> None:
        """Ask `node` to give up `agents`. One that does not answer is asked again, or is found dead."""
        names = tuple(agents)
        for start in range(0, len(names), _AT_ONCE):
            request = ControlRequest(op="release", agents=names[start : start + _AT_ONCE], any_turn=any_turn)
            with contextlib.suppress(*UNANSWERED, MeshError):
                await self._transport.request(self._subjects.node(node), encode(request), timeout=_REQUEST_S)
