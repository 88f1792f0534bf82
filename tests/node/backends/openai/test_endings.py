"""How an answer ends."""

from __future__ import annotations

import pytest

from agentmesh_node.backends.openai.endings import counted
from fakes.messages import Answer, FakeMessages, Tool
from node.backends.conversation import Doubling
from node.backends.openai_chat import Chat, talk
from support import run

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine


def test_a_text_that_was_cut_off_is_a_result_that_says_so(fake: FakeMessages) -> None:
    fake.play([Answer(text="and then", stop_reason="max_tokens")])
    assert talk()[-1].data == {"text": "and then", "stop_reason": "max_tokens", "model": "test-model"}


def test_a_call_that_was_cut_off_is_never_made(fake: FakeMessages) -> None:
    fake.play([Answer(tools=(Tool("double", sent='{"number": 5'),), stop_reason="tool_use"), "sorry"])
    events = talk(cls=Doubling)
    (result,) = [event for event in events if event.kind == "tool_result"]
    assert result.data["error"] == "bad_input"


def test_an_answer_of_nothing_is_not_sent_back(fake: FakeMessages) -> None:
    fake.play([Answer(), "here"])

    async def check() -> None:
        async with Chat() as chat:
            assert (await chat.say("one"))[-1].data["text"] == ""
            assert (await chat.say("two"))[-1].data["text"] == "here"

    run(check())
    assert [message["role"] for message in fake.calls[-1].messages] == ["user", "user"]


def test_cached_tokens_are_not_counted_twice() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    counts = {"input_tokens": 6, "output_tokens": 2, "cache_read_input_tokens": 4}
    assert counted(usage, "prompt_tokens", "completion_tokens") == counts
    assert counted(None, "prompt_tokens", "completion_tokens") == {}
