"""The backend: sessions hold the conversation, turns run the tool loop on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentmesh.agent import Agent
from agentmesh.backend import Stream, Turn
from agentmesh.edge.clock import SYSTEM
from agentmesh_node.backends.anthropic.clients import CLIENTS
from agentmesh_node.backends.anthropic.model import AnthropicModel
from agentmesh_node.backends.anthropic.options import read
from agentmesh_node.backends.api.clients import Lease
from agentmesh_node.tools import Toolbox
from agentmesh_node.tools.loop import Bounds, CallGuard, ToolLoop

VERSION = 1


class AnthropicBackend:
    """A `Backend` on the Messages API.

    The session is `{"v", "session_id", "messages"}`: the whole conversation, so that any node can go on with it.
    """

    def __init__(self, agent: Agent[Any], options: Mapping[str, Any], *, guard: CallGuard | None = None) -> None:
        """
        Raises:
            BackendError: `details["reason"]` is `bad_options`.
            InvalidAgent: the agent's tools cannot be used.
        """
        self._options = read(options)
        self._toolbox = Toolbox(agent)
        self._lease = Lease(CLIENTS)
        self.guard = guard
        """Checks each model call and each tool run."""

    async def start_session(self) -> Any:
        """An empty conversation."""
        return {"v": VERSION, "session_id": SYSTEM.token(8), "messages": []}

    async def resume_session(self, session: Any) -> Any:
        """The conversation as it is; an empty one if there is none, as when the agent had another backend before."""
        if isinstance(session, dict) and isinstance(session.get("messages"), list):
            return session
        return await self.start_session()

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        """Begin a turn.

        Raises:
            BackendError: `no_credentials` or `not_installed`. Later failures are error events.
        """
        session = {**session, "messages": list(session["messages"])}
        options = self._options
        loop = ToolLoop(
            AnthropicModel(await self._lease.client(), options, turn.allowance, turn.calls),
            self._toolbox,
            bounds=Bounds(options.max_iterations, options.parallel_tools, options.max_tool_runs, options.max_result_bytes),
            guard=self.guard,
        )
        return Stream(loop.run(session["messages"], prompt, turn), session)

    def update_session(self, session: Any, result: Mapping[str, Any]) -> Any:
        """The session as it is: the loop has brought the conversation up to date already."""
        return session

    async def terminate_session(self, session: Any) -> None:
        """Release what this process holds. A session has nothing outside its journal."""
        await self.release()

    async def release(self) -> None:
        """Close MCP sessions, and the API's client if no other agent of this process uses it."""
        await self._toolbox.close()
        await self._lease.give_back()
