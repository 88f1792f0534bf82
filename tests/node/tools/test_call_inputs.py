"""Inputs of tool calls: one whole JSON object, as it was sent, or none."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.strict_json import NotJson, checked, strictly
from agentmesh_node.tools import Call
from agentmesh_node.tools.call_inputs import input_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_a_whole_object_is_what_was_sent(value: dict[str, Any]) -> None:
    assert input_of(json.dumps(value)) == value
    assert input_of(json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.case(400)
@given(st.dictionaries(st.text(), JSON, min_size=1), st.data())
def test_no_part_of_an_object_is_an_input(value: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(value)
    part = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(NotJson):
        input_of(part)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"amount": 5', "delimiter"),
        ("", "Expecting value"),
        ("pay 5", "Expecting value"),
        ('{"amount": 5} ,', "Extra data"),
        ('{"amount": 5, "amount": 5000}', "'amount' twice"),
        ('{"amount": NaN}', "NaN is no JSON"),
        ('{"amount": 1e999}', "too large"),
        ('{"to": "\\ud800"}', "half a character"),
        ('{"to": "\ud800"}', "half a character"),
        ('{"\\udc00": 1}', "half a character"),
        ('[{"amount": 5}]', "no object"),
        ("5", "no object"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "too deeply"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "too deeply|recursion"),
    ],
)
def test_what_is_no_input_says_why(text: str, why: str) -> None:
    with pytest.raises(NotJson, match=why):
        input_of(text)
    call = Call.sent("c", "pay", text)
    refused = call.refusal()
    assert refused is not None
    assert (refused.ok, refused.error, refused.id) == (False, "bad_input", "c")
    assert msgspec.json.encode(refused)


def test_halves_of_a_character_that_came_one_behind_the_other_are_one() -> None:
    assert input_of('{"to": "\ud83d' + '\ude00"}') == {"to": "\U0001f600"}
    assert input_of('{"to": "\\ud83d' + '\\ude00"}') == {"to": "\U0001f600"}


def test_large_numbers_stay_as_they_are() -> None:
    assert input_of('{"amount": 123456789012345678901234567890}') == {"amount": 123456789012345678901234567890}


def test_frames_may_hold_half_a_character() -> None:
    assert strictly('"\\ud800"') == "\ud800"


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "\ud800", {"a": ["\udc00"]}, {1: 2}])
def test_values_that_the_journal_cannot_keep_are_refused(value: Any) -> None:
    with pytest.raises(NotJson):
        checked(value)
    assert Call("c", "pay", {"x": value}).checked().unfit is not None


def test_a_build_that_does_not_know_of_it_refuses_such_a_call_too() -> None:
    """It has the text for the input, which fits no tool."""

    class Before(msgspec.Struct):
        id: str
        name: str
        input: Any = None

    stored = msgspec.json.encode(Call.sent("c", "pay", '{"amount": 5'))
    assert msgspec.json.decode(stored, type=Before).input == '{"amount": 5'
