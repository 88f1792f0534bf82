"""A model behind one of the two APIs, for the tool loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from agentmesh.errors import BackendError
from agentmesh.steps import UNMOVED, Allowance, Calls
from agentmesh.structured import AnswerType
from agentmesh.tools import ToolSpec
from agentmesh_node.backends.api.model import ApiModel
from agentmesh_node.backends.api.protocols import Protocol
from agentmesh_node.backends.openai import messages
from agentmesh_node.backends.openai.chat import ChatReader
from agentmesh_node.backends.openai.clients import secrets
from agentmesh_node.backends.openai.failures import translated
from agentmesh_node.backends.openai.options import OpenAIOptions
from agentmesh_node.backends.openai.responses import ResponsesReader

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class OpenAIModel(ApiModel):
    """Answers by streaming requests of Chat Completions or Responses."""

    provider = "openai"
    messages = messages

    def __init__(
        self,
        client: AsyncOpenAI,
        options: OpenAIOptions,
        allowance: Allowance,
        calls: Calls = UNMOVED,
        answer_type: AnswerType[Any] | None = None,
    ) -> None:
        """As `ApiModel`."""
        super().__init__(options.model, options, allowance, calls, answer_type)
        self._client, self._options = client, options

    def _request(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> dict[str, Any]:
        options = self._options
        if options.api == "chat":
            functions = [{"name": t.name, "description": t.description, "parameters": t.schema} for t in tools]
            declared: list[dict[str, Any]] = [{"type": "function", "function": function} for function in functions]
            said = {"messages": messages.for_chat(history, options.system, reasoning=options.send_reasoning)}
        else:
            declared = [
                {"type": "function", "name": t.name, "description": t.description, "parameters": t.schema, "strict": False}
                for t in tools
            ]
            said = {"input": messages.for_responses(history)}
        all_tools = [*declared, *options.server_tools]
        asked = options.asking(self._answer_type) if self._answer_type is not None and self._is_asked_for() else {}
        return options.sent({**said, **({"tools": all_tools} if all_tools else {}), **asked, **self._parameters})

    def _is_asked_for(self) -> bool:
        return self._options.answer_by == "schema" and self._options.format_name not in self._options.leave_out

    def _sent(self, request: dict[str, Any]) -> AbstractAsyncContextManager[Any]:
        # All of it goes as `extra_body`: the SDK's signature knows neither other servers' members nor those of later versions.
        given: dict[str, Any] = {"model": self.name, "stream": True, "extra_body": request, "timeout": self._timeout_s}
        if self._options.api == "chat":
            return self._client.chat.completions.with_streaming_response.create(messages=[], **given)
        return self._client.responses.with_streaming_response.create(**given)

    def _where(self) -> tuple[Protocol, str, str | None]:
        key = self._client.api_key
        return self._options.api, str(self._client.base_url), key if isinstance(key, str) else None

    def _reader(self) -> ChatReader | ResponsesReader:
        return (ChatReader if self._options.api == "chat" else ResponsesReader)(self._options.max_tokens)

    def _secrets(self) -> tuple[str, ...]:
        return secrets(self._client)

    def _translated(self, error: Exception, secrets: tuple[str, ...]) -> BackendError | None:
        return translated(error, secrets)
