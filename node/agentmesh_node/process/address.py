"""Which mesh a process belongs to."""

from __future__ import annotations

import msgspec

from agentmesh.edge.address import mesh_root, server_urls


class MeshAddress(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh that a process belongs to."""

    servers: list[str]
    root: str
    wait_s: float = 10.0
    """Longest wait for a first connection."""

    @staticmethod
    def find(nats: str | None, root: str | None, *, wait_s: float = 10.0) -> MeshAddress:
        """Arguments first, then the environment, then `.mesh/url`, then the defaults.

        Raises:
            BadRequest: a URL or the root is malformed.
        """
        return MeshAddress(servers=server_urls(nats), root=mesh_root(root), wait_s=wait_s)
