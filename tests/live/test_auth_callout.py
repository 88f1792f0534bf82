"""The example of an auth callout (examples/auth_callout), beside the generated layout on a real server."""

from __future__ import annotations

import os

import pytest
from callout import KnownCaller, serve

from agentmesh.access.jwt import new_key
from agentmesh.access.static_conf import User, rendered
from agentmesh.edge.connection import connect
from agentmesh.edge.login import Login
from agentmesh.edge.transport import NoResponders
from agentmesh.errors import MeshError, NotPermitted
from agentmesh.subjects import Subjects
from support import Server, run


@pytest.mark.case(658)
@pytest.mark.processes
def test_a_service_says_who_a_caller_is_and_the_mesh_connects_without_it() -> None:
    issuer = new_key("account", os.urandom(32))
    more = '  AUTH { users: [ { user: "callout", password: "p" } ] }'
    users = [User("node", "node", "p"), User("operator", "operator", "p")]
    accounts = rendered("mesh", users, more=more)
    callout = f'issuer: {issuer.public}, account: AUTH, auth_users: ["callout", "node", "operator"]'
    config = f"{accounts}\nauthorization {{ auth_callout {{ {callout} }} }}"
    callers = {"shop": KnownCaller("secret", ("team-a.",))}

    async def main(server: Server) -> None:
        node = await connect(server.url, name="node", login=Login(user="node", password="p"))
        with pytest.raises(MeshError):  # nobody answers for callers yet
            await connect(server.url, name="shop", login=Login(user="shop", password="secret"), connect_timeout=4)
        service = await serve(server.url.replace("//", "//callout:p@"), callers, issuer, Subjects("mesh"))
        try:
            shop = await connect(server.url, name="shop", login=Login(user="shop", password="secret"))
            try:
                with pytest.raises(NoResponders):  # the import leads to the mesh, where no node runs
                    await shop.request("mesh.ask.team-a.x", timeout=60)
                for subject in ("mesh.ask.team-b.x", "mesh.inbox.team-a.x"):
                    with pytest.raises(NotPermitted):
                        await shop.request(subject, timeout=60)
            finally:
                await shop.close()
            for login in (Login(user="shop", password="wrong"), Login(user="other", password="secret")):
                with pytest.raises(NotPermitted):
                    await connect(server.url, name="test", login=login)
        finally:
            await service.close()
            await node.close()

    with Server(config=config) as server:
        run(main(server))
