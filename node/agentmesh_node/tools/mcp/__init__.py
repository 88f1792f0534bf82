"""Tools of MCP servers, by the official SDK (docs/backends.md#mcp-servers)."""

from __future__ import annotations

from agentmesh_node.tools.mcp.server import McpServer

__all__ = ["McpServer"]
