"""A mesh in the generated layout: one server or three, with a user for each role and callers of two teams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from agentmesh.access.roles import INSIDE, Role
from agentmesh.access.static_conf import User, rendered
from agentmesh.agent import Agent
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.errors import Unavailable
from agentmesh.subjects import EPOCH_KEY, Subjects
from agentmesh_node.host.node import Node
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.settings import NodeSettings
from agentmesh_node.supervisor.supervisor import Supervisor
from live.mesh import kinds
from support import Cluster, Server, eventually

SUBJECTS = Subjects("mesh")
PASSWORD = "p"
CALLERS = {
    "shop": User("shop", "caller", PASSWORD, agents=("team-a.",)),
    "till": User("till", "caller", PASSWORD, agents=("team-a.",)),
    "patient": User("patient", "caller", PASSWORD, agents=("team-a.",), ops=("status", "set")),
    "exact": User("exact", "caller", PASSWORD, agents=("team-a.coder",)),
    "bank": User("bank", "caller", PASSWORD, agents=("team-b.",)),
}


def layout(threshold: str = "24h", more: str = "") -> str:
    """The generated configuration, with plain passwords, which the server takes as well: hashing is not what is shown here.
    The user `bare` is a caller without any list, which nobody makes: it shows what the accounts do by themselves."""
    inside = [User(role, role, PASSWORD) for role in INSIDE]
    made = rendered(SUBJECTS.root, [*inside, *CALLERS.values()], threshold=threshold, more=more)
    listed = '{ user: "bank",'
    assert listed in made
    return made.replace(listed, f'{{ user: "bare", password: "{PASSWORD}" }}\n      {listed}')


class Place(NamedTuple):
    """One server or three in that layout."""

    servers: tuple[Server, ...]

    def url(self, user: str, server: int | None = None) -> str:
        """How a user reaches all of them, or one."""
        chosen = self.servers if server is None else (self.servers[server],)
        return ",".join(one.url.replace("//", f"//{user}:{PASSWORD}@") for one in chosen)

    def violations(self) -> set[str]:
        """What was refused to roles inside the mesh's account, as the servers have logged it."""
        lines = (line for one in self.servers for line in one.log.splitlines() if "Violation" in line)
        return {line for line in lines if any(f'/user:{role}"' in line for role in INSIDE)}


@contextlib.contextmanager
def place(servers: int = 1, threshold: str = "24h", extra: str = "", more: str = "") -> Iterator[Place]:
    """Start it, with `extra` lines of configuration and `more` accounts."""
    config = f"{layout(threshold, more)}\n{extra}"
    if servers == 1:
        with Server(config=config) as one:
            yield Place((one,))
    else:
        with Cluster(config=config) as cluster:
            yield Place(tuple(cluster.servers))


async def _readable(t: NatsTransport) -> bool:
    """Whether this server knows by now who has the streams that were just made."""
    try:
        return await Registry(t, SUBJECTS).get(EPOCH_KEY) is not None
    except Unavailable:
        return False


@contextlib.asynccontextmanager
async def secured_mesh(there: Place, *nodes: str, more: Mapping[str, type[Agent[Any]]] | None = None) -> AsyncIterator[None]:
    """The streams made by `setup`, a supervisor and nodes on this loop, each logged in as what it is, on different servers."""
    async with contextlib.AsyncExitStack() as stack:

        async def transport(role: Role, name: str, server: int) -> tuple[str, NatsTransport]:
            url = there.url(role, server % len(there.servers))
            made = await connect(url, name=name)
            stack.push_async_callback(made.close)
            return url, made

        _, setup = await transport("setup", "setup", 0)
        await ensure(setup, SUBJECTS, replicas=min(3, len(there.servers)))
        for number in range(len(there.servers)):
            _, looking = await transport("operator", "looking", number)
            await eventually(partial(_readable, looking), what=f"the streams at server {number}")
        url, line = await transport("supervisor", "s1", 0)
        supervisor = Supervisor(line, SUBJECTS, "s1", liveness=LivenessThread(url))
        stack.push_async_callback(supervisor.close)
        await supervisor.start()
        for number, own_id in enumerate(nodes or ("n1",), 1):
            url, line = await transport("node", own_id, number)
            node = Node(line, url, NodeSettings(node_id=own_id, agents={**kinds(), **(more or {})}, root=SUBJECTS.root))
            stack.push_async_callback(node.close)
            await node.start()
        yield
