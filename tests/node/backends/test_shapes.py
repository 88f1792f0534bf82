"""The form of events."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh_node.backends.shapes import Misshapen, shaped


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("text", {"text": None}),
        ("thinking", {}),
        ("tool_use", {"id": 5, "name": "x"}),
        ("tool_result", {"id": "1", "text": []}),
        ("usage", {"input_tokens": -1}),
        ("usage", {"output_tokens": True}),
        ("usage", {"model": 5}),
        ("result", {"text": 5}),
    ],
)
def test_events_of_another_form_are_refused(kind: Any, data: dict[str, Any]) -> None:
    with pytest.raises(Misshapen):
        shaped(Event(kind, data))


def test_an_input_that_is_nested_without_end_is_refused() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(Misshapen):
        shaped(Event("tool_use", {"id": "1", "name": "x", "input": value}))


def test_others_pass() -> None:
    for event in (Event.text("x"), Event.usage(input_tokens=1), Event.result("x"), Event.error("y")):
        assert shaped(event) is event
