"""How a program gets its connection to a mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from agentmesh.edge import address, connection
from agentmesh.edge.connect_settings import connect_settings
from agentmesh.edge.login import Login
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
    context: str | None = None,
    creds: str | None = None,
    nkey: str | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    tls_ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_first: bool = False,
    inbox_prefix: str | None = None,
) -> AsyncIterator[Mesh]:
    """Connect to a mesh for the length of an `async with` block.

    Args:
        url: NATS servers, as a list or separated by commas, or `@FILE` with them. Default: `MESH_NATS_URL`, else the file
            `.mesh/url`, else `nats://127.0.0.1:4222`.
        root: the mesh's root token. Default: `MESH_ROOT`, else `mesh`.
        domain: JetStream domain of the mesh, if its server is behind a leaf node that this connects to; or the prefix of its API,
            which has a dot. Default: `MESH_DOMAIN`, else the server's own.
        name: how the connection shows in the server's list.
        connect_timeout: seconds to wait for the first connection; afterwards the client reconnects for ever.
        silent_timeout: the same for a server that accepts the connection and does not answer. Default: `connect_timeout`.
        wait_s: the same for a server that is not there: nobody listens at its address, or its name does not resolve. 0 ends at
            once. Default: `connect_timeout`.
        context: name of a context of the NATS CLI, or a path to one. What else is given here goes before it.
        creds: file with a user's credentials (`.creds`).
        nkey: file with the seed of a user's nkey.
        user: with `password`: as they are, without the escapes that a URL needs.
        password: see `user`.
        token: instead of a user.
        tls_ca: PEM file of the authorities to believe. With it, or with `tls_cert`, nothing is sent without TLS.
        tls_cert: PEM file of this client's certificate.
        tls_key: PEM file of its key.
        tls_first: make TLS before the server speaks (its `handshake_first`).
        inbox_prefix: where answers are heard. Default: `_INBOX.<user>`, if the user is known, else `_INBOX`.

    What is not given comes from variables, as the verbs of `mesh` take it (docs/operations.md#connecting).

    Raises:
        Unavailable: no server can be reached.
        NotPermitted: the server refuses the credentials.
        TlsFailed: no TLS connection can be made with it.
        BadRequest: the URL, the root or the domain is malformed, or a file cannot be read or does not hold what it should.
    """
    subjects = Subjects(address.mesh_root(root))
    given = {
        "creds": creds,
        "nkey": nkey,
        "user": user,
        "password": password,
        "token": token,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "inbox_prefix": inbox_prefix,
    }
    login = Login(**{name: text for name, text in given.items() if text}, tls_first=tls_first)
    settings = await asyncio.to_thread(partial(connect_settings, url, context=context, domain=domain, login=login))
    transport = await connection.connect(
        settings.servers,
        name=name,
        connect_timeout=connect_timeout,
        silent_timeout=silent_timeout,
        wait_s=wait_s,
        api=settings.api,
        mesh=subjects.stream("registry"),
        login=settings.login,
        heeds=True,
    )
    try:
        derived = transport.credentials.derived
        mesh = Mesh(transport, subjects, inbox=transport.new_inbox(), access=transport.access, secret=derived)
        await mesh.open()
        try:
            yield mesh
        finally:
            await mesh.close()
    finally:
        await transport.close()
