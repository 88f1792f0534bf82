"""An answer of Responses from the frames of its stream, as servers send them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh.errors import BackendError
from agentmesh_node.backends.api.frames import Frame, Frames
from agentmesh_node.backends.openai.responses import ResponsesReader
from agentmesh_node.tools import Call
from agentmesh_node.tools.loop_steps import ModelAnswer
from fakes import responses as fake

RECORDINGS = Path(__file__).parents[3] / "fuzz" / "recordings"


def reading(events: list[dict[str, Any]], most: int | None = None) -> tuple[ModelAnswer, list[Event]]:
    """The answer in these events, and its own events."""
    reader, found = ResponsesReader(most), []
    for item in events:
        event = reader.feed(Frame(item["type"], json.dumps(item)))
        if event is not None:
            found.append(event)
    return reader.answer(), found


def ids() -> Callable[[str], str]:
    numbers = itertools.count(1)
    return lambda prefix: f"{prefix}_{next(numbers)}"


def sent(*items: fake.Item, **how: Any) -> list[dict[str, Any]]:
    return [event for _, event in fake.events(fake.Reply(items, **how), ids())]


def reason(events: list[dict[str, Any]], most: int | None = None) -> str:
    with pytest.raises(BackendError) as caught:
        reading(events, most)
    return str(caught.value.details["reason"])


def test_text_thinking_and_calls_are_read() -> None:
    answer, events = reading(sent(fake.Thought("hm"), fake.Text("let me see"), fake.Call("pay", {"n": 5}, id="c1")))
    assert [event.kind for event in events] == ["thinking", "text", "text"]
    assert (answer.thinking, answer.text, answer.stop) == ("hm", "let me see", "tool_use")
    assert answer.calls == (Call("c1", "pay", {"n": 5}),)
    assert answer.usage == {"input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 2}


def test_items_of_the_whole_response_count_where_none_came_alone() -> None:
    events = sent(fake.Text("yes"), fake.Call("pay", {"n": 5}, id="c1"))
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    last = {**events[-1], "response": {**events[-1]["response"], "output": items}}
    answer, told = reading([events[0], last])
    assert (answer.text, answer.calls) == ("yes", (Call("c1", "pay", {"n": 5}),))
    assert [event.data["text"] for event in told] == ["yes"]


def test_without_places_items_are_told_apart_by_their_ids() -> None:
    events = sent(fake.Call("pay", {"n": 5}, id="c1"), fake.Call("pay", {"n": 6}, id="c2"))
    for event in events:
        event.pop("output_index", None)
    assert [call.id for call in reading(events)[0].calls] == ["c1", "c2"]


def test_a_call_whose_end_did_not_arrive_is_never_made() -> None:
    events = [event for event in sent(fake.Call("pay", '{"n": 5', id="c1")) if event["type"] != "response.output_item.done"]
    (call,) = reading(events)[0].calls
    assert call.unfit is not None
    (call,) = reading(sent(fake.Call("pay", '{"n": 5', id="c1")))[0].calls
    assert call.unfit is not None


def test_encrypted_reasoning_is_kept_to_be_sent_again() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA", "status": "completed"}
    events = sent(fake.Text("yes"))
    answer, _ = reading([*events[:1], {"type": "response.output_item.done", "item": thought}, *events[1:]])
    assert answer.message["items"] == [{name: value for name, value in thought.items() if name != "status"}]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(sent(fake.Text("half"), end="cut"), "stream_broken", id="broken off"),
        pytest.param(sent(fake.Call("pay", {"n": 5}), end="incomplete"), "max_tokens", id="cut behind a call"),
        pytest.param(sent(end="failed"), "server_error", id="failed"),
        pytest.param(
            sent(end="failed", failure={"code": "context_length_exceeded", "message": "too many"}), "too_long", id="too long"
        ),
        pytest.param([{"type": "error", "code": "rate_limit_exceeded", "message": "busy"}], "rate_limited", id="an error"),
        pytest.param([], "server_error", id="nothing"),
        pytest.param([{"type": "response.output_text.delta", "delta": 5}], "server_error", id="a delta that is no text"),
        pytest.param([{"type": "response.completed"}], "server_error", id="an end without a response"),
    ],
)
def test_what_is_no_answer_says_why(events: list[dict[str, Any]], expected: str) -> None:
    assert reason(events) == expected


def test_a_refusal_is_one() -> None:
    item = {"type": "message", "content": [{"type": "refusal", "refusal": "I will not"}]}
    whole = [{"type": "response.output_item.done", "item": item}, {"type": "response.completed", "response": {}}]
    assert reason(whole) == "refused"


def test_a_text_that_was_cut_off_says_so() -> None:
    assert reading(sent(fake.Text("one two"), end="incomplete"))[0].stop == "max_tokens"
    assert reading(sent(fake.Text("one two"), usage=(1, 12, 0)), most=12)[0].stop == "max_tokens"


def recorded(name: str, most: int | None = None) -> ModelAnswer:
    reader = ResponsesReader(most)
    for frame in Frames().feed((RECORDINGS / name).read_bytes()):
        reader.feed(frame)
    assert reader.done
    return reader.answer()


def test_what_a_real_server_sent_is_read() -> None:
    assert recorded("responses-llamacpp-text.sse").text == "The capital of France is Paris."
    (call,) = recorded("responses-llamacpp-tools.sse").calls
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    assert recorded("responses-llamacpp-cut.sse", 12).stop == "max_tokens", "the server calls it completed"
