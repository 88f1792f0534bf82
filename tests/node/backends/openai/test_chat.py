"""An answer of Chat Completions from the frames of its stream, as servers send them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh.errors import BackendError
from agentmesh_node.backends.api.frames import Frame, Frames
from agentmesh_node.backends.openai.chat import ChatReader
from agentmesh_node.tools import Call
from agentmesh_node.tools.loop_steps import ModelAnswer

RECORDINGS = Path(__file__).parents[3] / "fuzz" / "recordings"


def reading(*data: Any, most: int | None = None) -> tuple[ModelAnswer, list[Event]]:
    """The answer in these frames, and its events."""
    reader, events = ChatReader(most), []
    for item in data:
        event = reader.feed(Frame("", item if isinstance(item, str) else json.dumps(item)))
        if event is not None:
            events.append(event)
    return reader.answer(), events


def delta(finish: str | None = None, **members: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


def part(index: int | None = 0, id: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    found = {"index": index, "id": id, "function": function}
    return {key: value for key, value in found.items() if value is not None}


def reason(*data: Any, most: int | None = None) -> str:
    with pytest.raises(BackendError) as caught:
        reading(*data, most=most)
    return str(caught.value.details["reason"])


def test_text_comes_as_it_is_sent_and_usage_behind_the_end() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    answer, events = reading(
        delta(role="assistant", content=None),
        delta(content="Par"),
        delta(content="is"),
        delta("stop"),
        {"choices": [], "usage": usage},
        "[DONE]",
    )
    assert (answer.text, answer.stop, answer.model) == ("Paris", "end_turn", "m")
    assert [event.data["text"] for event in events] == ["Par", "is"]
    assert answer.usage == {"input_tokens": 6, "output_tokens": 2, "cache_read_input_tokens": 4}
    assert answer.message == {"role": "assistant", "text": "Paris"}


def test_without_usage_and_without_the_last_word_of_the_stream_it_is_an_answer_all_the_same() -> None:
    answer, _ = reading(delta(content="Paris"), delta("stop"))
    assert (answer.text, answer.usage) == ("Paris", {})


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([part(0, "a", "pay", '{"n": 5}'), part(1, "b", "pay", '{"n": 6}')], id="whole, in chunks of their own"),
        pytest.param(
            [part(0, "a", "pay", ""), part(0, arguments='{"n"'), part(0, arguments=": 5}"), part(1, "b", "pay", '{"n": 6}')],
            id="arguments in pieces",
        ),
        pytest.param(
            [part(0, "a", "pay"), part(1, "b", "pay"), part(1, arguments='{"n": 6}'), part(0, arguments='{"n": 5}')],
            id="woven into each other",
        ),
        pytest.param([part(None, "a", "pay", '{"n": 5}'), part(None, "b", "pay", '{"n": 6}')], id="without an index"),
        pytest.param(
            [part(None, "a", "pay", '{"n"'), part(None, arguments=": 5}"), part(None, "b", "pay", '{"n": 6}')],
            id="without an index, in pieces",
        ),
        pytest.param([part(0, "a", "pay", '{"n": 5}'), part(0, "b", "pay", '{"n": 6}')], id="each with the index 0"),
        pytest.param([part(0, "a", "pay", {"n": 5}), part(1, "b", "pay", {"n": 6})], id="as objects"),
        pytest.param([part(0, "a", "pay", '{"n": 5}'), part(0, "a", "pay"), part(1, "b", "pay", '{"n": 6}')], id="named twice"),
    ],
)
@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_calls_arrive_however_they_are_cut(parts: list[dict[str, Any]], finish: str) -> None:
    answer, _ = reading(*(delta(tool_calls=[each]) for each in parts), delta(finish), "[DONE]")
    assert answer.calls == (Call("a", "pay", {"n": 5}), Call("b", "pay", {"n": 6}))
    assert answer.stop == "tool_use"
    together, _ = reading(delta(tool_calls=[part(0, "a", "pay", '{"n": 5}'), part(1, "b", "pay", '{"n": 6}')]), delta(finish))
    assert together.calls == answer.calls


def test_calls_without_ids_get_some_and_calls_without_arguments_have_none() -> None:
    answer, _ = reading(delta(tool_calls=[part(0, None, "now"), part(1, None, "now", "")]), delta("tool_calls"))
    assert answer.calls == (Call("call_1", "now", {}), Call("call_2", "now", {}))


def test_text_beside_a_call_is_told_and_kept() -> None:
    answer, events = reading(delta(content="let me see", tool_calls=[part(0, "a", "now", "{}")]), delta("tool_calls"))
    assert [event.data["text"] for event in events] == ["let me see"]
    assert answer.message == {
        "role": "assistant",
        "text": "let me see",
        "calls": [{"id": "a", "name": "now", "arguments": "{}"}],
    }


def test_a_call_whose_arguments_are_not_whole_is_never_made() -> None:
    answer, _ = reading(delta(tool_calls=[part(0, "a", "pay", '{"n": 5')]), delta("tool_calls"))
    assert answer.calls[0].unfit is not None
    assert answer.message["calls"][0]["arguments"] == json.dumps({"INVALID_JSON": '{"n": 5'})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_what_a_model_reasons_is_thinking(name: str) -> None:
    answer, events = reading(delta(**{name: "hm"}), delta(content="yes"), delta("stop"))
    assert [event.kind for event in events] == ["thinking", "text"]
    assert (answer.thinking, answer.text) == ("hm", "yes")


def test_content_in_parts_is_their_text() -> None:
    answer, _ = reading(delta(content=[{"type": "text", "text": "yes"}, {"type": "image"}]), delta("stop"))
    assert answer.text == "yes"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param([delta(content="half")], "stream_broken", id="no finish reason"),
        pytest.param([delta(content="half"), "[DONE]"], "stream_broken", id="a last word, and no finish reason"),
        pytest.param([delta("content_filter", content="ha")], "refused", id="a filter"),
        pytest.param([delta(refusal="I will not"), delta("stop")], "refused", id="a refusal"),
        pytest.param([delta(tool_calls=[part(0, "a", "pay", '{"n": 5')]), delta("length")], "max_tokens", id="cut in a call"),
        pytest.param([delta("length")], "max_tokens", id="cut before its first word"),
        pytest.param(["{not json"], "server_error", id="no JSON"),
        pytest.param(["[]"], "server_error", id="no object"),
        pytest.param([], "server_error", id="nothing"),
        pytest.param([delta(tool_calls=[part(0, "a", None, "{}")]), delta("stop")], "server_error", id="a call of nothing"),
        pytest.param([delta(tool_calls=[part(0, "a", "pay", 5)]), delta("stop")], "server_error", id="a number as arguments"),
        pytest.param([{"error": {"message": "busy", "code": "rate_limit_exceeded"}}], "rate_limited", id="an error in it"),
        pytest.param(
            [{"error": {"message": "This model's maximum context length is 8192 tokens", "code": 400}}], "too_long", id="too long"
        ),
    ],
)
def test_what_is_no_answer_says_why(data: list[Any], expected: str) -> None:
    assert reason(*data) == expected


def test_an_answer_at_its_limit_is_cut_though_the_server_calls_it_whole() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 12}}
    answer, _ = reading(delta(content="one two"), delta("stop"), usage, most=12)
    assert answer.stop == "max_tokens"
    assert reason(delta(tool_calls=[part(0, "a", "pay", '{"n": 5')]), delta("tool_calls"), usage, most=12) == "max_tokens"


def test_an_answer_in_one_piece_is_taken() -> None:
    reader = ChatReader(None)
    message = {
        "content": "Paris",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
    }
    events = reader.whole({"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    assert events is not None
    assert [event.data["text"] for event in events] == ["Paris"]
    assert reader.answer().calls == (Call("a", "now", {}),)
    assert ChatReader(None).whole({"content": []}) is None


def recorded(name: str, most: int | None = None) -> ModelAnswer:
    reader = ChatReader(most)
    for frame in Frames().feed((RECORDINGS / name).read_bytes()):
        reader.feed(frame)
    assert reader.done
    return reader.answer()


def test_what_a_real_server_sent_is_read() -> None:
    assert recorded("chat-llamacpp-text.sse").text == "The capital of France is Paris."
    assert recorded("chat-llamacpp-text.sse").usage["output_tokens"] == 8
    (call,) = recorded("chat-llamacpp-tools.sse").calls
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    cut = recorded("chat-llamacpp-cut.sse")
    assert (cut.stop, cut.usage) == ("max_tokens", {})
