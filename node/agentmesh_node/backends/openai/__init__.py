"""The `openai` backend: Chat Completions or Responses of any server that speaks them, by the official SDK, with the agent's tools
run by the mesh (docs/backends.md)."""

from __future__ import annotations

from agentmesh_node.backends.openai.backend import OpenAIBackend

__all__ = ["OpenAIBackend"]
