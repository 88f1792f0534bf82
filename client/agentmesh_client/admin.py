"""Requests to nodes and supervisors (docs/protocol.md#requests-to-a-process): for operators of a mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from agentmesh.control_values import Activities, Activity, ControlRequest
from agentmesh.edge.address import UP_ID, UP_SERVER
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.transport import UNANSWERED, Disconnected, NoResponders, RequestTimeout, Transport
from agentmesh.errors import AskTimeout, BadRequest, Conflict, MeshError, NotFound, Stopped, Unavailable
from agentmesh.names import agent_name, node_id
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, node_key, placement_key, spec_key
from agentmesh.wire import ErrorBody, encode
from agentmesh_client.retry import or_absent, patiently

REQUEST_S = 5.0
REBALANCE_S = 30.0
LOOK_S = 0.1
ACTIVITY_S = 2.0
"""Wait for a node to say what its agents are doing."""
WAITS_S = 1.0
"""How often it is told for which agents a node's end waits."""
AT_ONCE = 32
"""Nodes that are asked at the same time."""


class _AdminReply(msgspec.Struct, frozen=True):
    moving: int = 0
    error: ErrorBody | None = None


_OLDER = "a supervisor knows the requests"
"""So a supervisor begins what it says of a request that its build does not know."""


class _NoSuchProcess(NotFound):
    """No process answers to an id."""


class Operator:
    """Sends requests to the processes of one mesh."""

    def __init__(self, transport: Transport, subjects: Subjects) -> None:
        self._transport = transport
        self._subjects = subjects
        self._registry = Registry(transport, subjects)

    async def drain(self, node: str) -> None:
        """Have `node` leave in order: its turns end, its agents go elsewhere, its process ends.

        Raises:
            NotFound: no such node answers.
            AskTimeout: it does not answer in time.
            Unavailable: NATS cannot be reached.
        """
        await or_absent(lambda: self._ask(node_id(node), ControlRequest(op="drain")), self._registry)

    async def cordon(self, node: str, *, on: bool = True) -> None:
        """Have `node` take no more agents, or take them again. Raises: as `drain`."""
        await or_absent(lambda: self._ask(node_id(node), ControlRequest(op="cordon", on=on)), self._registry)

    async def activities(self, nodes: Iterable[str]) -> dict[str, Activity]:
        """What the agents that are loaded on these nodes are doing, by name. A node that does not say it is left out."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask(node: str) -> tuple[Activity, ...]:
            async with slots:
                try:
                    request = encode(ControlRequest(op="agents"))
                    message = await self._transport.request(self._subjects.node(node), request, timeout=ACTIVITY_S)
                    return msgspec.json.decode(message.data, type=Activities).agents
                except (*UNANSWERED, MeshError, msgspec.MsgspecError):
                    return ()

        return {one.name: one for found in await asyncio.gather(*map(ask, nodes)) for one in found}

    async def rebalance(self) -> int:
        """Even out load over the nodes. Returns how many agents are asked to move.

        Raises:
            Unavailable: no supervisor leads now, or NATS cannot be reached.
        """
        return (await self._ask(await self._leader(), ControlRequest(op="rebalance"), REBALANCE_S)).moving

    async def move(self, agent: str, node: str) -> bool:
        """Have `agent` go on at `node`: a turn that runs is handed on between two of its calls, or ends first.

        Returns False if the agent is there, and True once the order is stored: it outlives the leader, and ends when the agent is
        there (see `arrived`) or `node` cannot take it any more. An agent has one order, the newest.

        Raises:
            NotFound: there is no such agent, or no such node is live.
            BadRequest: the node does not serve the agent's kind, or has not got its labels.
            Stopped: the agent has ended, or is ending.
            Conflict: the node takes no agents now: it drains, is cordoned or full.
            AskTimeout: the leader does not answer in time.
            Unavailable: no supervisor leads now, or NATS cannot be reached.
        """
        request = ControlRequest(op="move", agents=(agent_name(agent),), node=node_id(node))

        async def ask() -> bool:
            leader = await self._leader()
            try:
                return (await self._ask(leader, request)).moving > 0
            except _NoSuchProcess:
                raise Unavailable(f"{leader}, which led, is gone; ask again when another supervisor leads") from None
            except BadRequest as error:
                if not error.message.startswith(_OLDER):
                    raise
                raise BadRequest(f"{leader}, which leads, is of a build that does not know `move`; start newer ones") from None

        return await patiently(ask, REQUEST_S)

    async def arrived(
        self, agent: str, node: str, timeout: float, waits_for: Callable[[Activity], None] = lambda one: None
    ) -> None:
        """Return when `agent`, which was ordered to move to `node`, has its place there. `waits_for` is told from time to time
        in what turn it still is.

        Raises:
            AskTimeout: it is not there within `timeout` seconds; the order stands.
            Conflict: the order has ended otherwise: another one was given, or the node cannot take the agent any more.
            NotFound, Stopped: the agent has ended.
            Unavailable: NATS cannot be reached.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        look = loop.time() + WAITS_S
        while not await patiently(lambda: self._is_there(agent, node), REQUEST_S):
            if loop.time() > deadline:
                raise AskTimeout(f"{agent} is not on {node} within {timeout:g} s; the order stands, see `mesh ps`")
            if loop.time() > look:
                if (one := (await self._activity(agent))) is not None and one.state == "processing":
                    waits_for(one)
                look = loop.time() + WAITS_S
            await asyncio.sleep(LOOK_S)

    async def _is_there(self, agent: str, node: str) -> bool:
        """Whether an agent that was ordered to move to `node` is placed there. Raises: as `arrived`."""
        entry = await self._registry.get(spec_key(agent))  # first: an order ends behind the placement
        if await self._registry.get(placement_key(node, agent)) is not None:
            return True
        if entry is None:
            raise NotFound(f"there is no agent {agent} any more")
        spec = decode_spec(entry)
        if spec.status in ("stopping", "stopped"):
            raise Stopped(f"{agent} is {spec.status}")
        if spec.move_to == node:
            return False
        if spec.move_to is not None:
            raise Conflict(f"{agent} was ordered to move to {spec.move_to} meanwhile")
        raise Conflict(f"{agent} does not move to {node}, which cannot take it any more; see `mesh nodes`")

    async def _activity(self, agent: str) -> Activity | None:
        entries, _ = await self._registry.load_pattern(placement_key("*", agent))
        return (await self.activities(entry.key.split(".")[1] for entry in entries)).get(agent)

    async def _leader(self) -> str:
        entry = await self._registry.get(SUPERVISOR_KEY)
        if entry is None or entry.value is None:
            raise Unavailable("no supervisor leads; start one with `mesh supervisor`")
        return msgspec.json.decode(entry.value, type=SupervisorLease).id

    async def gone(self, node: str, timeout: float, waits_for: Callable[[Activity], None] = lambda one: None) -> None:
        """Return when `node`, which has been told to drain, has left: its lease is gone. The node of `mesh up` takes its server
        with it. `waits_for` is told from time to time which of its agents are still in a turn.

        Raises:
            AskTimeout: it has not left within `timeout` seconds.
            Unavailable: there is no connection any more to see it by.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        look = loop.time() + WAITS_S
        while True:
            try:
                if await self._registry.get(node_key(node)) is None:
                    return
                if loop.time() > look:
                    for one in (await self.activities([node])).values():
                        if one.state == "processing":
                            waits_for(one)
                    look = loop.time() + WAITS_S
            except Unavailable:
                if node == UP_ID and getattr(self._transport, "server_name", "") == UP_SERVER:
                    return
                if loop.time() > deadline:
                    raise
            if loop.time() > deadline:
                raise AskTimeout(f"node {node} has not left within {timeout:g} s; it goes on draining, see `mesh nodes`")
            await asyncio.sleep(LOOK_S)

    async def _ask(self, process: str, request: ControlRequest, timeout: float = REQUEST_S) -> _AdminReply:
        try:
            message = await self._transport.request(self._subjects.node(process), encode(request), timeout=timeout)
        except NoResponders:
            raise _NoSuchProcess(f"nothing called {process} is there; `mesh nodes` lists the live nodes") from None
        except RequestTimeout:
            raise AskTimeout(f"{process} did not answer within {timeout:g} s; it may hang, see `mesh nodes`") from None
        except Disconnected:
            raise Unavailable("there is no connection to NATS now; try again") from None
        reply = msgspec.json.decode(message.data, type=_AdminReply)
        if reply.error is not None:
            raise reply.error.exception()
        return reply
