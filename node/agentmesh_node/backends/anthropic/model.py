"""A model of the Messages API, for the tool loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from agentmesh.backend import Event, Turn
from agentmesh.errors import BackendError
from agentmesh.steps import UNMOVED, Allowance, Calls
from agentmesh.tools import ToolSpec
from agentmesh_node.backends.anthropic import messages
from agentmesh_node.backends.anthropic.answers import AnswerReader
from agentmesh_node.backends.anthropic.clients import secrets
from agentmesh_node.backends.anthropic.failures import translated
from agentmesh_node.backends.anthropic.options import AnthropicOptions
from agentmesh_node.backends.api.body import read
from agentmesh_node.backends.retries import Retries, again
from agentmesh_node.tools import Result
from agentmesh_node.tools.loop_steps import ModelAnswer

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class AnthropicModel:
    """Answers by streaming requests. Retries are made only here: the SDK makes none."""

    provider = "anthropic"

    def __init__(self, client: AsyncAnthropic, options: AnthropicOptions, allowance: Allowance, calls: Calls = UNMOVED) -> None:
        """
        Args:
            allowance: what the turn may still spend, and how long it may run.
            calls: hears when a call only waits for its next try.
        """
        self.name = options.model
        self._allowance = allowance
        self._calls = calls
        self._retries = Retries(options.attempts, options.max_wait_s)
        self._client = client
        self._options = options
        self._parameters = options.parameters()

    def prompt(self, text: str, turn: Turn) -> Any:
        return messages.prompt(text, turn)

    def results(self, results: Sequence[Result]) -> Any:
        return messages.results(results)

    def noted(self, message: Any, note: str) -> Any:
        return messages.noted(message, note)

    async def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        """Ask for an answer, with retries, each of which is told by an event (agentmesh_node.backends.retries).

        Raises:
            BackendError: there is no answer; agentmesh_node.backends.anthropic.failures has the reasons.
        """
        request = self._request(history, tools)
        async with aclosing(again(lambda: self._stream(request), self._retries, self._allowance, self._calls)) as parts:
            async for part in parts:
                yield part

    def _request(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> dict[str, Any]:
        declared = [{"name": t.name, "description": t.description, "input_schema": t.schema} for t in tools]
        all_tools = [*declared, *self._options.server_tools]
        return {**self._parameters, "messages": list(history), **({"tools": all_tools} if all_tools else {})}

    async def _stream(self, request: dict[str, Any]) -> AsyncGenerator[Event | ModelAnswer]:
        """One try."""
        options, hidden = self._options, secrets(self._client)
        create = self._client.beta.messages.with_streaming_response.create
        try:
            async with create(**request, stream=True) as response:
                reader = AnswerReader(options.max_tokens)
                body = read(response.http_response, reader, silence_s=options.timeout_s, secrets=hidden)
                async with aclosing(body) as parts:
                    async for part in parts:
                        yield part
        except BackendError:
            raise
        except Exception as error:
            known = translated(error, hidden)
            if known is None:
                raise
            raise known from None
