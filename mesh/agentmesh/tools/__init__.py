"""Tools: what an agent lets its model do.

    @tool(effect="pure", timeout_s=10)
    async def look_up(word: str) -> str:
        '''Look a word up.

        Args:
            word: in its basic form.
        '''

    class Librarian(Agent[Notes]):
        backend = "anthropic"
        tools = (look_up, agent_tool("reviewer"), McpStdio("docs-server"))

This package declares them and says what they look like to a model; `agentmesh_node.tools` runs them. docs/backends.md is the
reference.
"""

from __future__ import annotations

from agentmesh.tools.declared import (
    AgentTool,
    Done,
    FunctionTool,
    McpHttp,
    McpStdio,
    NotDone,
    ToolCall,
    ToolError,
    ToolSpec,
    agent_tool,
    declared,
    outlasting,
    tool,
)
from agentmesh.tools.declared import (
    ToolEffect as Effect,
)

__all__ = [
    "AgentTool",
    "Done",
    "Effect",
    "FunctionTool",
    "McpHttp",
    "McpStdio",
    "NotDone",
    "ToolCall",
    "ToolError",
    "ToolSpec",
    "agent_tool",
    "declared",
    "outlasting",
    "tool",
]
