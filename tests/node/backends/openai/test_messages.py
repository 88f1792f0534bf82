"""The conversation as it is sent to servers of Chat Completions and of Responses."""

from __future__ import annotations

import base64

import pytest

from agentmesh.wire import Attachment
from agentmesh_node.backends.openai import messages
from agentmesh_node.tools import Result
from fakes.messages import Answer, FakeMessages, Tool
from fakes.responses import ResponsesServer
from node.backends.conversation import Doubling
from node.backends.openai_chat import Chat, talk
from support import run

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine


def file(name: str, content: bytes) -> Attachment:
    return Attachment(filename=name, content=base64.b64encode(content).decode())


def test_attachments_go_ahead_of_the_prompt(fake: FakeMessages) -> None:
    talk("look", file("cat.png", b"\x89PNG"), file("a.pdf", b"%PDF"), file("notes.md", b"# Notes"))
    image, pdf, notes, text = fake.calls[0].messages[0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert pdf["file"]["filename"] == "a.pdf"
    assert (notes["text"], text["text"]) == ("notes.md:\n\n# Notes", "look")
    (refused,) = talk("look", file("program.exe", b"\xff\xfe\x00"))
    assert refused.data["reason"] == "bad_attachment"
    assert len(fake.calls) == 1


def test_attachments_have_the_form_of_responses_there(responses: ResponsesServer) -> None:
    talk("look", file("cat.png", b"\x89PNG"), file("a.pdf", b"%PDF"), api="responses")
    image, pdf, text = responses.requests[0].inputs[0]["content"]
    assert (image["type"], image["image_url"][:21]) == ("input_image", "data:image/png;base64")
    assert (pdf["type"], pdf["filename"]) == ("input_file", "a.pdf")
    assert text == {"type": "input_text", "text": "look"}


def test_a_conversation_is_sent_whole_with_its_calls(fake: FakeMessages) -> None:
    calls = (Tool("double", {"number": 2}, "c1"), Tool("double", {}, "c2"))
    fake.play([Answer(thinking="hm", text="let me", tools=calls), "four", "bye"])

    async def check() -> None:
        async with Chat(Doubling) as chat:
            await chat.say("two times two?")
            await chat.say("thanks")

    run(check())
    user, answer, good, bad, last, thanks = fake.calls[-1].messages
    assert (user["content"], last["content"], thanks["content"]) == ("two times two?", "four", "thanks")
    assert answer == {
        "role": "assistant",
        "content": "let me",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "double", "arguments": '{"number": 2}'}},
            {"id": "c2", "type": "function", "function": {"name": "double", "arguments": "{}"}},
        ],
    }
    assert good == {"role": "tool", "tool_call_id": "c1", "content": "4"}
    assert (bad["tool_call_id"], bad["content"][:7]) == ("c2", "error: "), "the API has no mark for a call that failed"


def test_what_the_model_reasoned_is_sent_back_to_servers_that_want_it(fake: FakeMessages) -> None:
    fake.play([Answer(thinking="hm", tools=(Tool("double", {"number": 2}, "c1"),)), "four"])
    talk(cls=Doubling, send_reasoning=True)
    assert fake.calls[-1].messages[1]["reasoning_content"] == "hm"


def test_a_note_goes_behind_results_as_a_message_of_its_own() -> None:
    message = messages.noted(messages.results([Result("c1", "double", True, "4")]), "half is spent")
    assert [sent["role"] for sent in messages.for_chat([message], None, reasoning=False)] == ["tool", "user"]
    assert messages.for_responses([message])[-1] == {"role": "user", "content": [{"type": "input_text", "text": "half is spent"}]}
