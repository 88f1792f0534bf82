"""Requests to nodes and supervisors (docs/protocol.md#requests-to-a-process): for operators of a mesh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from agentmesh.control_values import Activities, Activity, ControlRequest
from agentmesh.edge.address import UP_ID, UP_SERVER
from agentmesh.edge.registry import Registry
from agentmesh.edge.transport import UNANSWERED, Disconnected, NoResponders, RequestTimeout, Transport
from agentmesh.errors import AskTimeout, MeshError, NotFound, Unavailable
from agentmesh.names import node_id
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, node_key
from agentmesh.wire import ErrorBody, encode
from agentmesh_client.retry import or_absent

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
        entry = await self._registry.get(SUPERVISOR_KEY)
        if entry is None or entry.value is None:
            raise Unavailable("no supervisor leads; start one with `mesh supervisor`")
        leader = msgspec.json.decode(entry.value, type=SupervisorLease).id
        return (await self._ask(leader, ControlRequest(op="rebalance"), REBALANCE_S)).moving

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
            raise NotFound(f"nothing called {process} is there; `mesh nodes` lists the live nodes") from None
        except RequestTimeout:
            raise AskTimeout(f"{process} did not answer within {timeout:g} s; it may hang, see `mesh nodes`") from None
        except Disconnected:
            raise Unavailable("there is no connection to NATS now; try again") from None
        reply = msgspec.json.decode(message.data, type=_AdminReply)
        if reply.error is not None:
            raise reply.error.exception()
        return reply
