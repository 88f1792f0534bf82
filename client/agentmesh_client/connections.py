"""How a program gets its connection to a mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from agentmesh.edge import address, connection
from agentmesh.subjects import Subjects
from agentmesh_client.client import Mesh


@asynccontextmanager
async def connect(
    url: str | Sequence[str] | None = None,
    *,
    root: str | None = None,
    domain: str | None = None,
    name: str = "agentmesh-client",
    connect_timeout: float = 5.0,
    silent_timeout: float | None = None,
    wait_s: float | None = None,
) -> AsyncIterator[Mesh]:
    """Connect to a mesh for the length of an `async with` block.

    Args:
        url: NATS servers, as a list or separated by commas. Default: `MESH_NATS_URL`, else the file `.mesh/url`, else
            `nats://127.0.0.1:4222`.
        root: the mesh's root token. Default: `MESH_ROOT`, else `mesh`.
        domain: JetStream domain of the mesh, if its server is behind a leaf node that this connects to; or the prefix of its API,
            which has a dot. Default: `MESH_DOMAIN`, else the server's own.
        name: how the connection shows in the server's list.
        connect_timeout: seconds to wait for the first connection; afterwards the client reconnects for ever.
        silent_timeout: the same for a server that accepts the connection and does not answer. Default: `connect_timeout`.
        wait_s: the same for a server that is not there: nobody listens at its address, or its name does not resolve. 0 ends at
            once. Default: `connect_timeout`.

    Raises:
        Unavailable: no server can be reached.
        NotPermitted: the server refuses the credentials.
        TlsFailed: no TLS connection can be made with it.
        BadRequest: the URL, the root or the domain is malformed.
    """
    subjects = Subjects(address.mesh_root(root))
    transport = await connection.connect(
        address.server_urls(url),
        name=name,
        connect_timeout=connect_timeout,
        silent_timeout=silent_timeout,
        wait_s=wait_s,
        api=address.js_api(domain),
        mesh=subjects.stream("registry"),
    )
    try:
        mesh = Mesh(transport, subjects, inbox=transport.new_inbox())
        await mesh.open()
        try:
            yield mesh
        finally:
            await mesh.close()
    finally:
        await transport.close()
