"""A gateway on a real server, for one agent that the registry shows and nobody runs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.read import StoredMessage, read_all
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Transport
from agentmesh.registry_values import Spec
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import encode
from agentmesh_node.gateway.gateway import Gateway
from support import Server, connected

CODER = Spec(kind="Coder", incarnation="i1", status="running")


class Served(NamedTuple):
    """What a test of a gateway needs."""

    transport: NatsTransport
    subjects: Subjects
    registry: Registry

    async def request(self, subject: str, body: bytes = b"hello", **headers: str) -> Any:
        """The JSON that a request is answered with; `Mesh_Key="x"` gives it that header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return msgspec.json.decode((await self.transport.request(subject, body, headers=named, timeout=30)).data)

    async def mail(self, lane: str = "inbox", agent: str = "coder") -> list[StoredMessage]:
        """What is stored in a lane of an agent."""
        return await read_all(self.transport, self.subjects.stream("mail"), self.subjects.lane(lane, agent))


@contextlib.asynccontextmanager
async def served(
    server: Server, subjects: Subjects, line: Callable[[Transport], Transport] = lambda t: t, **options: Any
) -> AsyncIterator[Served]:
    """A gateway whose connection is `line` of a real one; `options` go to the gateway."""
    async with connected(server.url) as t, asyncio.TaskGroup() as group:
        await ensure(t, subjects)
        registry = Registry(t, subjects)
        await registry.create(spec_key("coder"), encode(CODER))
        count = itertools.count()
        given = {"now": SYSTEM.now, "token": lambda: f"t{next(count)}", **options}
        gateway = Gateway(line(t), subjects, registry, spawn=lambda work: _spawn(group, work), **given)
        await gateway.start()
        await t.flush()
        try:
            yield Served(t, subjects, registry)
        finally:
            await gateway.close()


def _spawn(group: asyncio.TaskGroup, work: object) -> None:
    assert asyncio.iscoroutine(work)
    group.create_task(work)
