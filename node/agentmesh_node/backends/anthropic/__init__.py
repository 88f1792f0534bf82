"""The `anthropic` backend: the Messages API, by the official SDK, with the agent's tools run by the mesh (docs/backends.md)."""

from __future__ import annotations

from agentmesh_node.backends.anthropic.backend import AnthropicBackend

__all__ = ["AnthropicBackend"]
