"""A model behind an API: tries, failures of the SDK, defects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from agentmesh.errors import BackendError
from agentmesh.steps import Unlimited
from agentmesh_node.backends.api.failures import Api
from agentmesh_node.backends.api.model import ApiModel
from agentmesh_node.backends.openai import messages
from agentmesh_node.backends.openai.chat import ChatReader
from agentmesh_node.tools.loop_steps import ModelAnswer
from node.backends.api.test_options import Some

API = Api("SOME_URL")
WHOLE = b'data: {"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class Body:
    headers = {"content-type": "text/event-stream"}

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        yield WHOLE


class Scripted(ApiModel):
    """Fails as it is told, and then answers."""

    provider = "some"
    messages = messages

    def __init__(self, *failures: Exception) -> None:
        super().__init__("m", Some(attempts=3, max_wait_s=0.001), Unlimited())
        self.failures = list(failures)
        self.sent = 0

    def _request(self, history: Any, tools: Any) -> dict[str, Any]:
        return {**self._parameters, "messages": list(history)}

    @asynccontextmanager
    async def _sent(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        assert request == {"edits": [], "messages": ["hello"]}
        self.sent += 1
        if self.failures:
            raise self.failures.pop(0)
        yield SimpleNamespace(http_response=Body())

    def _reader(self) -> ChatReader:
        return ChatReader(None)

    def _secrets(self) -> tuple[str, ...]:
        return ()

    def _translated(self, error: Exception, secrets: tuple[str, ...]) -> BackendError | None:
        return API.failure("connection", "cut") if isinstance(error, OSError) else None


def asked(model: Scripted) -> ModelAnswer:
    async def main() -> ModelAnswer:
        *_, last = [part async for part in model.answer(["hello"], ())]
        assert isinstance(last, ModelAnswer)
        return last

    return asyncio.run(main())


def test_what_may_pass_is_tried_again() -> None:
    model = Scripted(OSError("cut"), API.failure("overloaded", "busy"))
    assert (asked(model).text, model.sent) == ("yes", 3)


def test_what_may_not_pass_is_not_and_a_defect_is_no_failure_of_the_api() -> None:
    refused, defect = Scripted(API.failure("bad_request", "no")), Scripted(KeyError("ours"))
    with pytest.raises(BackendError):
        asked(refused)
    with pytest.raises(KeyError):
        asked(defect)
    assert (refused.sent, defect.sent) == (1, 1)
