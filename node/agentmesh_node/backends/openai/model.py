"""A model behind one of the two APIs, for the tool loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from agentmesh.backend import Event, Turn
from agentmesh.errors import BackendError
from agentmesh.steps import UNMOVED, Allowance, Calls
from agentmesh.tools import ToolSpec
from agentmesh_node.backends.api.body import read
from agentmesh_node.backends.openai import messages
from agentmesh_node.backends.openai.chat import ChatReader
from agentmesh_node.backends.openai.clients import secrets
from agentmesh_node.backends.openai.failures import translated
from agentmesh_node.backends.openai.options import OpenAIOptions
from agentmesh_node.backends.openai.responses import ResponsesReader
from agentmesh_node.backends.retries import Retries, again
from agentmesh_node.tools import Result
from agentmesh_node.tools.loop_steps import ModelAnswer

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class OpenAIModel:
    """Answers by streaming requests. Retries are made only here: the SDK makes none."""

    provider = "openai"

    def __init__(self, client: AsyncOpenAI, options: OpenAIOptions, allowance: Allowance, calls: Calls = UNMOVED) -> None:
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
            BackendError: there is no answer; agentmesh_node.backends.api.failures has the reasons.
        """
        body = self._options.sent(self._body(history, tools))
        async with aclosing(again(lambda: self._stream(body), self._retries, self._allowance, self._calls)) as parts:
            async for part in parts:
                yield part

    def _body(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> dict[str, Any]:
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
        return {**said, **({"tools": all_tools} if all_tools else {}), **self._parameters}

    async def _stream(self, body: dict[str, Any]) -> AsyncGenerator[Event | ModelAnswer]:
        """One try."""
        options, hidden = self._options, secrets(self._client)
        reader = ChatReader(options.max_tokens) if options.api == "chat" else ResponsesReader(options.max_tokens)
        try:
            async with self._request(body) as response:
                parts = read(response.http_response, reader, silence_s=options.timeout_s, secrets=hidden)
                async with aclosing(parts):
                    async for part in parts:
                        yield part
        except BackendError:
            raise
        except Exception as error:
            known = translated(error, hidden)
            if known is None:
                raise
            raise known from None

    def _request(self, body: dict[str, Any]) -> Any:
        # All of it goes as `extra_body`: the SDK's signature knows neither other servers' members nor those of later versions.
        given: dict[str, Any] = {"model": self.name, "stream": True, "extra_body": body, "timeout": self._options.timeout_s}
        if self._options.api == "chat":
            return self._client.chat.completions.with_streaming_response.create(messages=[], **given)
        return self._client.responses.with_streaming_response.create(**given)
