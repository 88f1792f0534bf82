"""Which mesh a process belongs to."""

from __future__ import annotations

import msgspec

from agentmesh.edge.address import API, mesh_root
from agentmesh.edge.connect_settings import connect_settings
from agentmesh.edge.login import NO_LOGIN, Login
from agentmesh.subjects import Subjects

PATIENCE_S = 10.0
"""Longest wait for a server that accepts the connection, and for a store that is not ready."""


class MeshAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh that a process belongs to."""

    servers: list[str]
    root: str
    wait_s: float = 0.0
    """Longest wait for a server that is not there yet."""
    api: str = API
    """Where the mesh's JetStream answers."""
    login: Login = NO_LOGIN
    """Who connects, and which servers are believed."""

    @property
    def registry(self) -> str:
        """The stream that tells the mesh's domain."""
        return Subjects(self.root).stream("registry")

    @staticmethod
    def find(
        nats: str | None,
        root: str | None,
        domain: str | None = None,
        *,
        wait_s: float = 0.0,
        context: str | None = None,
        login: Login = NO_LOGIN,
    ) -> MeshAddress:
        """Arguments first, then the environment, then `.mesh/url`, then the defaults.

        Raises:
            BadRequest: a URL, the root or the domain is malformed, or `agentmesh.edge.connect_settings` says so.
        """
        servers, api, whole = connect_settings(nats, context=context, domain=domain, login=login)
        return MeshAddress(servers=servers, root=mesh_root(root), wait_s=wait_s, api=api, login=whole)
