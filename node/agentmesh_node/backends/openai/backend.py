"""The backend on Chat Completions and Responses (`agentmesh_node.backends.api.backend`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentmesh.agent import Agent
from agentmesh.backend import Turn
from agentmesh_node.backends.api.backend import ApiBackend
from agentmesh_node.backends.api.clients import Clients
from agentmesh_node.backends.openai.clients import CLIENTS
from agentmesh_node.backends.openai.model import OpenAIModel
from agentmesh_node.backends.openai.options import read
from agentmesh_node.tools.loop import CallGuard

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class OpenAIBackend(ApiBackend["AsyncOpenAI"]):
    """A `Backend` on Chat Completions or Responses."""

    KEPT = "history"
    imports = ("openai",)

    def __init__(
        self,
        agent: Agent[Any],
        options: Mapping[str, Any],
        *,
        guard: CallGuard | None = None,
        clients: Clients[AsyncOpenAI] = CLIENTS,
    ) -> None:
        """
        Args:
            clients: those of the server that is asked; by default of the one that the environment names.

        Raises:
            BackendError: `details["reason"]` is `bad_options`.
            InvalidAgent: the agent's tools cannot be used.
        """
        self._options = read(options)
        super().__init__(agent, self._options, clients, guard=guard)

    def _model(self, client: AsyncOpenAI, turn: Turn) -> OpenAIModel:
        return OpenAIModel(client, self._options, turn.allowance, turn.calls, turn.answer_type)
