"""Running an agent's tools: functions, other agents, MCP servers."""

from __future__ import annotations

from agentmesh_node.tools.calls import Call, Result
from agentmesh_node.tools.toolbox import Toolbox

__all__ = ["Call", "Result", "Toolbox"]
