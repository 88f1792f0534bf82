"""Which mesh a process belongs to."""

from __future__ import annotations

import msgspec

from agentmesh.edge.address import API, js_api, mesh_root, server_urls
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

    @property
    def registry(self) -> str:
        """The stream that tells the mesh's domain."""
        return Subjects(self.root).stream("registry")

    @staticmethod
    def find(nats: str | None, root: str | None, domain: str | None = None, *, wait_s: float = 0.0) -> MeshAddress:
        """Arguments first, then the environment, then `.mesh/url`, then the defaults.

        Raises:
            BadRequest: a URL, the root or the domain is malformed.
        """
        return MeshAddress(servers=server_urls(nats), root=mesh_root(root), wait_s=wait_s, api=js_api(domain))
