"""What the options of the openai backend make of a request."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.openai import OpenAIBackend
from agentmesh_node.backends.openai.options import OpenAIOptions
from fakes.messages import FakeMessages
from fakes.responses import ResponsesServer
from node.backends.conversation import Doubling, Plain
from node.backends.openai_chat import KEY, talk

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine


def test_a_request_is_what_the_options_say(fake: FakeMessages) -> None:
    talk(
        cls=Doubling,
        system="Be brief.",
        max_tokens=99,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["END"],
        tool_choice="auto",
        parallel_tool_calls=False,
        response_format={"type": "json_object"},
        reasoning_effort="low",
        service_tier="flex",
        metadata={"user": "u"},
        server_tools=[{"type": "web_search"}],
        extra={"top_k": 3},
    )
    (call,) = fake.calls
    body = call.body
    assert body.pop("messages") == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    own, server = body.pop("tools")
    assert (own["type"], own["function"]["name"], own["function"]["description"]) == ("function", "double", "Double a number.")
    assert own["function"]["parameters"]["properties"] == {"number": {"type": "integer", "description": "any"}}
    assert server == {"type": "web_search"}
    assert body == {
        "model": "test-model", "max_completion_tokens": 99, "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"], "tool_choice": "auto", "parallel_tool_calls": False,
        "response_format": {"type": "json_object"}, "reasoning_effort": "low", "service_tier": "flex",
        "metadata": {"user": "u"}, "top_k": 3,
    }  # fmt: skip
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert "traceparent" not in call.headers


def test_a_request_of_responses_is_what_the_options_say(responses: ResponsesServer) -> None:
    schema = {"name": "city", "schema": {"type": "object"}}
    talk(
        cls=Doubling,
        api="responses",
        system="Be brief.",
        max_tokens=99,
        reasoning_effort="low",
        response_format={"type": "json_schema", "json_schema": schema},
    )
    (seen,) = responses.requests
    body = dict(seen.body)
    assert body.pop("input") == [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    (own,) = body.pop("tools")
    assert (own["type"], own["name"], own["strict"]) == ("function", "double", False)
    assert body == {
        "model": "test-model", "stream": True, "store": False, "instructions": "Be brief.", "max_output_tokens": 99,
        "reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "json_schema", **schema}},
    }  # fmt: skip


def test_what_a_server_does_not_know_is_left_out(fake: FakeMessages) -> None:
    talk(max_tokens=9, max_tokens_as="max_tokens", leave_out=["stream_options", "model"])
    body = fake.calls[0].body
    assert body["max_tokens"] == 9
    assert {"stream_options", "max_completion_tokens"}.isdisjoint(body)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"modell": "x"}, "modell"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"base_url": "https://elsewhere"}, "base_url"),
        ({"api_key": "sk"}, "api_key"),
        ({"api": "completions"}, "api"),
        ({"api": "responses", "stop": ["END"]}, "stop is none that Responses knows"),
    ],
)
def test_options_that_are_unknown_or_misshapen_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        OpenAIBackend(Plain(), options)
    assert caught.value.details == {"reason": "bad_options", "retryable": False}


def test_no_option_is_a_secret() -> None:
    assert not [name for name in OpenAIOptions.__struct_fields__ if "key" in name or "url" in name or name == "token"]
