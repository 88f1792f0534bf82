"""The `claude` backend: Claude Code, by its official SDK (extra `agentmesh[claude]`; docs/backends.md)."""

from __future__ import annotations

from agentmesh_node.backends.claude.backend import ClaudeBackend

__all__ = ["ClaudeBackend"]
