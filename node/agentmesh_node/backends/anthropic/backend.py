"""The backend on the Messages API (`agentmesh_node.backends.api.backend`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentmesh.agent import Agent
from agentmesh.backend import Turn
from agentmesh_node.backends.anthropic.clients import CLIENTS
from agentmesh_node.backends.anthropic.model import AnthropicModel
from agentmesh_node.backends.anthropic.options import read
from agentmesh_node.backends.api.backend import ApiBackend
from agentmesh_node.backends.api.clients import Clients
from agentmesh_node.tools.loop import CallGuard

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class AnthropicBackend(ApiBackend["AsyncAnthropic"]):
    """A `Backend` on the Messages API."""

    KEPT = "messages"
    imports = ("anthropic",)

    def __init__(
        self,
        agent: Agent[Any],
        options: Mapping[str, Any],
        *,
        guard: CallGuard | None = None,
        clients: Clients[AsyncAnthropic] = CLIENTS,
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

    def _model(self, client: AsyncAnthropic, turn: Turn) -> AnthropicModel:
        return AnthropicModel(client, self._options, turn.allowance, turn.calls, turn.answer_type)
