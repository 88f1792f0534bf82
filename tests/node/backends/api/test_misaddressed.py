"""A base URL that answers with another protocol: which it is, and what is to be set (case 744)."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from agentmesh.backend import Event
from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic import AnthropicBackend
from agentmesh_node.backends.api.misaddressed import suspect
from agentmesh_node.backends.openai import OpenAIBackend
from fakes.model_paths import CHAT, COMPLAINT, MESSAGES, RESPONSES, Given, ModelPaths
from node.backends.conversation import Conversation, Plain, one_turn
from support import Server

pytestmark = [pytest.mark.case(744), pytest.mark.processes]
SPOKEN = Given(400, COMPLAINT)


class Claude(Conversation):
    made = AnthropicBackend


class Chat(Conversation):
    made = OpenAIBackend


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "sk-never-to-be-seen")


def failed(monkeypatch: pytest.MonkeyPatch, kind: type[Conversation], url: str, **options: Any) -> dict[str, Any]:
    """The error of a turn with this base URL, in one try."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL" if kind is Claude else "OPENAI_BASE_URL", url)
    events: list[Event] = one_turn(kind, Plain, "hello", attempts=8, **options)
    assert events[-1].kind == "error"
    assert "never-to-be-seen" not in str(events[-1].data)
    assert not [event for event in events if event.data.get("retry")], "the address is not tried again"
    return events[-1].data


MESSAGES_NOT, CHAT_NOT, RESPONSES_NOT = "not the Messages API: ", "not Chat Completions: ", "not Responses: "


class Wrong(NamedTuple):
    """An address of the wrong kind."""

    kind: type[Conversation]
    paths: list[str]
    suffix: str
    said: list[str]
    options: dict[str, Any] = {}


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong(Claude, [CHAT], "", [MESSAGES_NOT, "start the agent with `--backend openai`, on a node with OPENAI_BASE_URL="]),
        Wrong(Claude, [MESSAGES], "/v1", ["is not where the Messages API is: set ANTHROPIC_BASE_URL="]),
        Wrong(Chat, [CHAT], "", ["is not where Chat Completions is: set OPENAI_BASE_URL="]),
        Wrong(Chat, [RESPONSES], "/v1", [CHAT_NOT, "`mesh set AGENT --backend-option api=responses`"]),
        Wrong(Chat, [CHAT], "/v1", [RESPONSES_NOT, "`mesh set AGENT --backend-option api=chat`"], {"api": "responses"}),
        Wrong(
            Chat, [MESSAGES], "/v1", [CHAT_NOT, "start the agent with `--backend anthropic`, on a node with ANTHROPIC_BASE_URL="]
        ),
    ],
)
def test_what_the_address_speaks_is_said_with_the_setting(monkeypatch: pytest.MonkeyPatch, wrong: Wrong) -> None:
    with ModelPaths(dict.fromkeys(wrong.paths, SPOKEN)) as server:
        error = failed(monkeypatch, wrong.kind, server.url + wrong.suffix, **wrong.options)
        for words in [*wrong.said, server.url]:
            assert words in error["message"]
    assert (error["reason"], error["retryable"]) == ("bad_address", False)


def test_a_server_that_speaks_none_of_them_may_mean_the_model_or_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelPaths({}) as server:
        error = failed(monkeypatch, Chat, f"{server.url}/v1")
    assert error["reason"] == "not_found"
    assert "--backend-option model=...`, or mend OPENAI_BASE_URL: " in error["message"]
    assert "answers, but as no server of models does" in error["message"]


def test_what_is_not_http_is_said(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    error = failed(monkeypatch, Chat, server.url.replace("nats://", "http://") + "/v1")
    assert "what listens there speaks NATS, not HTTP; mend OPENAI_BASE_URL" in error["message"]


def test_a_model_that_the_server_has_not_is_no_matter_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Given(404, {"error": {"message": "the model gpt-none does not exist", "code": "model_not_found"}})
    with ModelPaths({CHAT: absent}) as server:
        error = failed(monkeypatch, Chat, f"{server.url}/v1", model="gpt-none")
        assert error["reason"] == "not_found"
        assert "--backend-option model=" in error["message"]
        assert len(server.asked) == 1


def test_other_failures_ask_nothing() -> None:
    for details in ({"reason": "overloaded", "status": 503}, {"reason": "connection"}, {"reason": "bad_request", "status": 400}):
        assert not suspect(BackendError("no", details=details), ConnectionRefusedError(), "m")
