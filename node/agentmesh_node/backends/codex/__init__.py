"""Codex as a backend (extra `agentmesh[codex]`)."""
