"""A model of the Messages API, for the tool loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import TYPE_CHECKING, Any

from agentmesh.backend import Event, Turn
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.retry import ExponentialBackoff
from agentmesh.errors import BackendError
from agentmesh.tools import ToolSpec
from agentmesh_node.backends.anthropic import messages
from agentmesh_node.backends.anthropic.clients import secrets
from agentmesh_node.backends.anthropic.failures import translated
from agentmesh_node.backends.anthropic.options import AnthropicOptions
from agentmesh_node.tools import Result
from agentmesh_node.tools.loop_steps import ModelAnswer

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

FIRST_WAIT_S = 0.5
"""Wait before the second try if the API names none; doubled with each further try."""


class AnthropicModel:
    """Answers by streaming requests. Retries are made only here: the SDK makes none."""

    provider = "anthropic"

    def __init__(self, client: AsyncAnthropic, options: AnthropicOptions) -> None:
        self.name = options.model
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
        """Ask for an answer, with retries. A text event with `restart` says that the answer begins anew.

        Raises:
            BackendError: there is no answer; agentmesh_node.backends.anthropic.failures has the reasons.
        """
        request = self._request(history, tools)
        for attempt in range(1, self._options.attempts + 1):
            begun = False
            try:
                async with aclosing(self._stream(request)) as parts:
                    async for part in parts:
                        begun = begun or isinstance(part, Event)
                        yield part
                return
            except BackendError as error:
                wait = self._wait(error, attempt)
                if wait is None:
                    raise
            if begun:
                yield Event("text", {"text": "", "restart": True})
            await asyncio.sleep(wait)

    def _wait(self, error: BackendError, attempt: int) -> float | None:
        """Seconds until the next try; None if there is to be none."""
        if not error.details.get("retryable") or attempt >= self._options.attempts:
            return None
        asked: float | None = error.details.get("retry_after_s")
        if asked is not None:
            return asked if asked <= self._options.max_wait_s else None
        wait = next(islice(ExponentialBackoff(FIRST_WAIT_S, self._options.max_wait_s), attempt - 1, None))
        return wait * (1.0 - _draw() / 4)  # not all agents retry at the same moment

    def _request(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> dict[str, Any]:
        declared = [{"name": t.name, "description": t.description, "input_schema": t.schema} for t in tools]
        all_tools = [*declared, *self._options.server_tools]
        return {**self._parameters, "messages": list(history), **({"tools": all_tools} if all_tools else {})}

    async def _stream(self, request: dict[str, Any]) -> AsyncGenerator[Event | ModelAnswer]:
        """One try."""
        try:
            async with self._client.beta.messages.stream(**request) as stream:
                async for event in stream:
                    if event.type == "text":
                        yield Event.text(event.text)
                    elif event.type == "thinking":
                        yield Event("thinking", {"text": event.thinking})
                yield messages.reply(await stream.get_final_message())
        except BackendError:
            raise
        except Exception as error:
            known = translated(error, secrets(self._client))
            if known is None:
                raise
            raise known from None


def _draw() -> float:
    """A random number from 0 up to 1."""
    return int(SYSTEM.token(4), 16) / 2**32
