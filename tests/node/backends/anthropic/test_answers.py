"""Answers from frames: what they say, and what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.answers import AnswerReader
from agentmesh_node.backends.api.frames import Frame
from agentmesh_node.tools.loop_steps import ModelAnswer

START: dict[str, Any] = {
    "type": "message_start",
    "message": {"id": "m", "model": "m-1", "usage": {"input_tokens": 9, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}


def block(index: int, **start: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": start}


def piece(index: int, kind: str, **data: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **data}}


def closed(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def ended(reason: str, **usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 7, **usage}}


def said(text: str, index: int = 0) -> list[dict[str, Any]]:
    return [block(index, type="text", text=""), piece(index, "text_delta", text=text), closed(index)]


def called(*pieces: str, index: int = 0, **start: Any) -> list[dict[str, Any]]:
    begun = block(index, **{"type": "tool_use", "id": "c1", "name": "pay", "input": {}, **start})
    return [begun, *(piece(index, "input_json_delta", partial_json=part) for part in pieces), closed(index)]


def answer(*events: Any, most_tokens: int = 100) -> ModelAnswer:
    reader = AnswerReader(most_tokens)
    for event in events:
        reader.feed(Frame("", event if isinstance(event, str) else json.dumps(event)))
    return reader.answer()


def reason(*events: Any, **options: Any) -> str:
    with pytest.raises(BackendError) as caught:
        answer(*events, **options)
    return str(caught.value.details["reason"])


def test_an_answer_is_put_together() -> None:
    thought = [
        block(0, type="thinking", thinking="", signature=""),
        piece(0, "thinking_delta", thinking="hm"),
        piece(0, "signature_delta", signature="s"),
        closed(0),
    ]
    cited = [*said("so", 1)[:2], piece(1, "citations_delta", citation={"url": "u"}), closed(1)]
    found = answer(START, *thought, *cited, *called('{"amount":', " 5000}", index=2), ended("tool_use", input_tokens=12), STOP)
    assert (found.thinking, found.text, found.stop, found.model) == ("hm", "so", "tool_use", "m-1")
    assert [(call.id, call.name, call.input, call.unfit) for call in found.calls] == [("c1", "pay", {"amount": 5000}, None)]
    assert found.message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "so", "citations": [{"url": "u"}]},
        {"type": "tool_use", "id": "c1", "name": "pay", "input": {"amount": 5000}},
    ]
    assert found.usage["input_tokens"] == 12
    assert found.usage["output_tokens"] == 7


@pytest.mark.case(400)
@pytest.mark.parametrize("text", ['{"amount": 5', '{"amount": 5000', "pay", '{"a":1,"a":2}', '{"to": "\ud800"}', "[1]"])
def test_an_input_that_is_not_whole_is_no_input(text: str) -> None:
    found = answer(START, *called(text), ended("tool_use"), STOP)
    (call,) = found.calls
    assert call.unfit is not None
    assert found.message["content"][0]["input"] == {"INVALID_JSON": text}


def test_a_call_without_an_input_has_none() -> None:
    (call,) = answer(START, *called(""), ended("tool_use"), STOP).calls
    assert (call.input, call.unfit) == ({}, None)
    (call,) = answer(START, *called(input=None), ended("tool_use"), STOP).calls
    assert (call.input, call.unfit) == ({}, None)
    (call,) = answer(START, *called(input={"amount": 5}), ended("tool_use"), STOP).calls
    assert (call.input, call.unfit) == ({"amount": 5}, None)


@pytest.mark.case(400)
def test_a_call_whose_end_did_not_come_is_not_made() -> None:
    (call,) = answer(START, *called()[:-1], ended("tool_use"), STOP).calls
    assert call.unfit is not None


@pytest.mark.case(402)
def test_an_answer_that_was_cut_says_so_with_the_text_that_came() -> None:
    cut = [*said("I shall pay"), *called('{"amount": 5', index=1)]
    for ending, most in ((ended("max_tokens"), 100), (ended("length"), 100), (ended("tool_use"), 7), (ended("end_turn"), 7)):
        with pytest.raises(BackendError) as caught:
            answer(START, *cut, ending, STOP, most_tokens=most)
        assert (caught.value.details["reason"], caught.value.details["text"]) == ("max_tokens", "I shall pay")
    assert answer(START, *said("half"), ended("end_turn"), STOP, most_tokens=7).stop == "max_tokens"
    assert answer(START, *said("half"), ended("length"), STOP).stop == "max_tokens"
    assert reason(START, ended("max_tokens"), STOP) == "max_tokens"
    whole = answer(START, *called('{"amount": 5}'), ended("tool_use"), STOP, most_tokens=7)
    assert whole.calls[0].unfit is None


@pytest.mark.case(403)
@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((), "server_error"),
        ((said("x")[1],), "server_error"),
        ((START, said("x")[1]), "server_error"),
        ((START, START), "server_error"),
        ((START, *said("x"), *said("y")), "server_error"),
        ((START, closed(0)), "server_error"),
        ((START, *said("x"), piece(0, "text_delta", text="y")), "server_error"),
        ((START, block(0, type="text"), piece(0, "input_json_delta", partial_json="{")), "server_error"),
        ((START, block(0, type="text", text=5)), "server_error"),
        ((START, {"type": "content_block_start", "index": "0", "content_block": {}}), "server_error"),
        ((START, block(0)), "server_error"),
        ((START, block(0, type="tool_use", name="pay")), "server_error"),
        ((START, {"type": "message_delta"}), "server_error"),
        ((START, {"type": "message_delta", "delta": {"stop_reason": 5}}), "server_error"),
        (({"type": "message_start"},), "server_error"),
        (("[]",), "server_error"),
        (("{not json",), "server_error"),
        ((START, *said("x")), "stream_broken"),
        ((START, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), "overloaded"),
        ((START, {"error": {"message": "slow down", "code": "429"}}), "rate_limited"),
        ((START, {"error": {"type": [], "message": {"x": 1}, "code": {}, "details": 5}}), "server_error"),
        ((START, {"type": "error"}), "server_error"),
        ((START, ended("refusal"), STOP), "refused"),
        ((START, ended("content_filter"), STOP), "refused"),
        ((START, *said("x"), ended("model_context_window_exceeded"), STOP), "too_long"),
    ],
)
def test_what_is_no_answer_has_a_reason(events: tuple[Any, ...], why: str) -> None:
    assert reason(*events) == why


def test_what_is_not_known_is_passed_over() -> None:
    odd = [{"type": "news", "x": 1}, piece(0, "new_delta", x=1), "[DONE]"]
    found = answer(START, *said("x")[:1], *odd, *said("x")[1:], ended("end_turn"), STOP)
    assert found.text == "x"


@pytest.mark.parametrize("count", [None, -1, True, "9", 10**400, 1.5, []])
def test_counts_of_another_form_count_nothing(count: Any) -> None:
    found = answer(START, *said("x"), ended("end_turn", cache_read_input_tokens=count), STOP)
    assert found.usage["cache_read_input_tokens"] == 0


def test_blank_texts_are_not_sent_again() -> None:
    assert answer(START, *said(" \n"), ended("end_turn"), STOP).message is None


def test_a_summary_begins_the_history() -> None:
    summary = [block(1, type="compaction", content=None), piece(1, "compaction_delta", content="so far"), closed(1)]
    found = answer(START, *said("old"), *summary, *said("new", 2), ended("end_turn"), STOP)
    assert found.compacted
    assert [part["type"] for part in found.message["content"]] == ["compaction", "text"]
    assert found.message["content"][0]["content"] == "so far"
