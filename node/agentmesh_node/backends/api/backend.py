"""A backend whose session holds the conversation, and whose turns run the tool loop on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from agentmesh.agent import Agent
from agentmesh.backend import Stream, Turn
from agentmesh.edge.clock import SYSTEM
from agentmesh_node.backends.api.clients import Clients, Closable, Lease
from agentmesh_node.backends.api.options import ApiOptions
from agentmesh_node.tools import Toolbox
from agentmesh_node.tools.loop import CallGuard, Model, ToolLoop

VERSION = 1


class ApiBackend[C: Closable]:
    """A `Backend` on an API that is sent the whole conversation with each request.

    The session is `{"v", "session_id", KEPT}`, where `KEPT` has the messages, so that any node can go on with it. Each API has a
    name of its own for them: no backend takes another's for its own.
    """

    KEPT: ClassVar[str]
    imports: ClassVar[tuple[str, ...]]

    def __init__(self, agent: Agent[Any], options: ApiOptions, clients: Clients[C], *, guard: CallGuard | None = None) -> None:
        """
        Raises:
            InvalidAgent: the agent's tools cannot be used.
        """
        self.options: Any = options
        """The agent's, in the form of its API."""
        self._bounds = options.bounds
        self._toolbox = Toolbox(agent)
        self._lease = Lease(clients)
        self.guard = guard
        """Checks each model call and each tool run."""

    def _model(self, client: C, turn: Turn) -> Model:
        """The model that a turn asks."""
        raise NotImplementedError

    async def start_session(self) -> Any:
        """An empty conversation."""
        return {"v": VERSION, "session_id": SYSTEM.token(8), self.KEPT: []}

    async def resume_session(self, session: Any) -> Any:
        """The conversation as it is; an empty one if there is none, as when the agent had another backend before."""
        if isinstance(session, dict) and isinstance(session.get(self.KEPT), list):
            return session
        return await self.start_session()

    async def prompt(self, session: Any, prompt: str, turn: Turn) -> Stream:
        """Begin a turn.

        Raises:
            BackendError: `no_credentials` or `not_installed`. Later failures are error events.
        """
        session = {**session, self.KEPT: list(session[self.KEPT])}
        model = self._model(await self._lease.client(), turn)
        loop = ToolLoop(model, self._toolbox, bounds=self._bounds, guard=self.guard)
        return Stream(loop.run(session[self.KEPT], prompt, turn), session)

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
