"""A model behind an API, for the tool loop: each call is a request whose answer is read as it streams, with retries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from types import ModuleType
from typing import Any

from agentmesh.backend import Event, Turn
from agentmesh.errors import BackendError
from agentmesh.steps import UNMOVED, Allowance, Calls
from agentmesh.structured import AnswerType
from agentmesh.tools import ToolSpec
from agentmesh_node.backends.api.body import Reader, read
from agentmesh_node.backends.api.misaddressed import explained, suspect
from agentmesh_node.backends.api.options import ApiOptions
from agentmesh_node.backends.api.protocols import Protocol
from agentmesh_node.backends.retries import again
from agentmesh_node.tools import Result
from agentmesh_node.tools.loop_steps import ModelAnswer


class ApiModel:
    """Answers by streaming requests. Retries are made only here: the SDKs make none. A subclass says what a request is, how it is
    sent, what reads its answer, and what its failures mean."""

    provider: str
    messages: ModuleType
    """How the API's messages are written: `prompt`, `results`, `noted`."""

    def __init__(
        self,
        name: str,
        options: ApiOptions,
        allowance: Allowance,
        calls: Calls = UNMOVED,
        answer_type: AnswerType[Any] | None = None,
    ) -> None:
        """
        Args:
            name: the model that is asked for.
            allowance: what the turn may still spend, and how long it may run.
            calls: hears when a call only waits for its next try.
            answer_type: what the model's answer is to be.
        """
        self.name = name
        self._answer_type = answer_type
        self._allowance, self._calls = allowance, calls
        self._retries, self._timeout_s = options.retries, options.timeout_s
        self._parameters = options.parameters()

    def prompt(self, text: str, turn: Turn) -> Any:
        message = self.messages.prompt(text, turn)
        if self._answer_type is None or self._is_asked_for():
            return message
        return self.messages.noted(message, self._answer_type.demand())

    def results(self, results: Sequence[Result]) -> Any:
        return self.messages.results(results)

    def noted(self, message: Any, note: str) -> Any:
        return self.messages.noted(message, note)

    async def answer(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> AsyncGenerator[Event | ModelAnswer]:
        """Ask for an answer, with retries, each of which is told by an event (agentmesh_node.backends.retries).

        Raises:
            BackendError: there is no answer; agentmesh_node.backends.api.failures has the reasons.
        """
        request = self._request(history, tools)
        async with aclosing(again(lambda: self._stream(request), self._retries, self._allowance, self._calls)) as parts:
            async for part in parts:
                yield part

    async def _stream(self, request: dict[str, Any]) -> AsyncGenerator[Event | ModelAnswer]:
        """One try."""
        try:
            async with self._sent(request) as response:
                body = read(response.http_response, self._reader(), silence_s=self._timeout_s, secrets=self._secrets())
                async with aclosing(body) as parts:
                    async for part in parts:
                        yield part
        except BackendError:
            raise
        except Exception as error:
            known = self._translated(error, self._secrets())
            if known is None:
                raise
            if suspect(known, error, self.name):
                known = await explained(known, *self._where())
            raise known from None

    # --- what an API has of its own -----------------------------------------------------------------------------------
    def _is_asked_for(self) -> bool:
        """Whether each request has the schema of the agent's type in the API's own way. If not, the prompt has it in words."""
        raise NotImplementedError

    def _request(self, history: Sequence[Any], tools: Sequence[ToolSpec]) -> dict[str, Any]:
        """The request for an answer."""
        raise NotImplementedError

    def _sent(self, request: dict[str, Any]) -> AbstractAsyncContextManager[Any]:
        """The SDK's response to a request, within its context."""
        raise NotImplementedError

    def _where(self) -> tuple[Protocol, str, str | None]:
        """What it speaks, where, and with which key."""
        raise NotImplementedError

    def _reader(self) -> Reader:
        """What puts an answer together: a new one for each try."""
        raise NotImplementedError

    def _secrets(self) -> tuple[str, ...]:
        """Texts that must not show anywhere."""
        raise NotImplementedError

    def _translated(self, error: Exception, secrets: tuple[str, ...]) -> BackendError | None:
        """The error for an exception of the SDK or its transport; None if it is a defect of our own."""
        raise NotImplementedError
