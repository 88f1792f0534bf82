"""Answers of servers of both APIs, as the tool loop gets them."""

from __future__ import annotations

import pytest

from agentmesh.steps import Unlimited
from agentmesh_node.backends.openai.clients import CLIENTS
from agentmesh_node.backends.openai.model import OpenAIModel
from agentmesh_node.backends.openai.options import OpenAIOptions
from fakes.messages import Answer, FakeMessages
from fakes.responses import Call, Reply, ResponsesServer, Text, Thought, say
from node.backends.conversation import Doubling
from node.backends.openai_chat import talk

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine


def test_a_broken_answer_is_asked_for_again_and_told_as_void(fake: FakeMessages) -> None:
    fake.play([Answer(text="abcdefgh" * 3, break_after=3, how="cut"), "whole"])
    events = talk(attempts=2)
    (again,) = [event for event in events if "retry" in event.data]
    assert again.data["restart"] is True
    assert events[-1].data["text"] == "whole"


def test_text_and_thinking_come_as_they_are_made_then_usage_and_result(fake: FakeMessages) -> None:
    fake.play([Answer(thinking="well", text="hello, world", chunk=7, cache_read=3)])
    events = talk()
    assert [(e.kind, e.data.get("text")) for e in events] == [
        ("thinking", "well"), ("text", "hello, "), ("text", "world"), ("usage", None), ("result", "hello, world"),
    ]  # fmt: skip
    assert events[-2].data == {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3, "model": "test-model"}
    assert events[-1].data == {"text": "hello, world", "stop_reason": "end_turn", "model": "test-model"}


def test_responses_give_the_same(responses: ResponsesServer) -> None:
    responses.script = [Reply((Thought("well"), Text("hello, world"), Call("double", {"number": 2}, id="c1"))), say("four")]
    events = talk(cls=Doubling, api="responses")
    assert [event.kind for event in events if event.kind not in ("text", "usage")] == [
        "thinking", "tool_use", "tool_result", "result",
    ]  # fmt: skip
    assert responses.requests[-1].outputs() == ["4"]


def test_a_model_is_named_as_it_is_asked_for(fake: FakeMessages) -> None:
    assert OpenAIModel(CLIENTS.make(), OpenAIOptions(model="m"), Unlimited()).name == "m"
