"""A model of the Messages API, for the tool loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from agentmesh.errors import BackendError
from agentmesh.steps import UNMOVED, Allowance, Calls
from agentmesh.structured import AnswerType
from agentmesh.tools import ToolSpec
from agentmesh_node.backends.anthropic import messages
from agentmesh_node.backends.anthropic.answers import AnswerReader
from agentmesh_node.backends.anthropic.clients import secrets
from agentmesh_node.backends.anthropic.failures import translated
from agentmesh_node.backends.anthropic.options import AnthropicOptions
from agentmesh_node.backends.api.model import ApiModel
from agentmesh_node.backends.api.protocols import Protocol

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class AnthropicModel(ApiModel):
    """Answers by streaming requests of the Messages API."""

    provider = "anthropic"
    messages = messages

    def __init__(
        self,
        client: AsyncAnthropic,
        options: AnthropicOptions,
        allowance: Allowance,
        calls: Calls = UNMOVED,
        answer_type: AnswerType[Any] | None = None,
    ) -> None:
        """As `ApiModel`."""
        super().__init__(options.model, options, allowance, calls, answer_type)
        self._client, self._options = client, options

    def _request(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> dict[str, Any]:
        declared = [{"name": t.name, "description": t.description, "input_schema": t.schema} for t in tools]
        all_tools = [*declared, *self._options.server_tools]
        found = {**self._parameters, "messages": list(history), **({"tools": all_tools} if all_tools else {})}
        if self._answer_type is not None and self._is_asked_for():
            wanted = {"format": {"type": "json_schema", "schema": self._answer_type.strict}}
            found["output_config"] = wanted | (self._options.output_config or {})
        return found

    def _is_asked_for(self) -> bool:
        # The API compiles a schema into a grammar: it refuses one that it cannot express.
        return self._options.answer_by == "schema" and self._answer_type is not None and self._answer_type.strict is not None

    def _sent(self, request: dict[str, Any]) -> AbstractAsyncContextManager[Any]:
        return self._client.beta.messages.with_streaming_response.create(**request, stream=True)

    def _where(self) -> tuple[Protocol, str, str | None]:
        return "messages", str(self._client.base_url), self._client.api_key or self._client.auth_token

    def _reader(self) -> AnswerReader:
        return AnswerReader(self._options.max_tokens)

    def _secrets(self) -> tuple[str, ...]:
        return secrets(self._client)

    def _translated(self, error: Exception, secrets: tuple[str, ...]) -> BackendError | None:
        return translated(error, secrets)
