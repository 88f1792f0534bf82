"""Sessions of the openai backend: any node, and either API, goes on with them."""

from __future__ import annotations

import pytest

from agentmesh_node.backends.openai.backend import OpenAIBackend
from fakes.messages import Answer, FakeMessages, Tool
from fakes.responses import ResponsesServer, say
from node.backends.conversation import Doubling, Plain
from node.backends.openai_chat import Chat, environment
from support import run

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine


def test_a_conversation_goes_on_in_the_other_api(monkeypatch: pytest.MonkeyPatch, fake: FakeMessages) -> None:
    fake.play([Answer(text="let me", tools=(Tool("double", {"number": 2}, "c1"),)), "four"])
    with ResponsesServer([say("bye")]) as other:

        async def check() -> None:
            async with Chat(Doubling) as chat:
                await chat.say("two times two?")
                environment(monkeypatch, other.url)
                await chat.change(api="responses")
                assert (await chat.say("thanks"))[-1].data["text"] == "bye"

        run(check())
        assert other.requests[0].inputs == [
            {"role": "user", "content": [{"type": "input_text", "text": "two times two?"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me"}]},
            {"type": "function_call", "call_id": "c1", "name": "double", "arguments": '{"number": 2}'},
            {"type": "function_call_output", "call_id": "c1", "output": "4"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "four"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "thanks"}]},
        ]


def test_the_session_of_another_backend_is_no_conversation_of_this_one(fake: FakeMessages) -> None:
    async def check() -> None:
        backend = OpenAIBackend(Plain(), {})
        session = await backend.resume_session({"v": 1, "session_id": "s", "messages": [{"role": "user", "content": []}]})
        assert session["history"] == []
        assert await backend.resume_session(session) is session

    run(check())
