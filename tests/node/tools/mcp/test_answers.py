"""What a tool's answer says, whatever it is made of."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh_node.tools.mcp.answers import readable


@pytest.mark.case(421)
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"structuredContent": {"paid": [1, 2]}}, '{"paid":[1,2]}'),
        ({"structuredContent": {"paid": 5}, "content": None}, '{"paid":5}'),
        ({"structuredContent": {"paid": 5}, "content": []}, '{"paid":5}'),
        ({"structuredContent": {"paid": 5}, "content": [{"type": "text", "text": "paid five"}]}, "paid five"),
        ({"structuredContent": {"much": 2**70}}, '{"much":1180591620717411303424}'),
        ({"content": [{"type": "text", "text": "a"}, {"type": "hologram"}]}, "a\n[hologram: not text, left out]"),
        (
            {"content": [{"type": "text"}, 3, None]},
            "[text: not text, left out]" + "\n[unknown: not text, left out]" * 2,
        ),
        ({"content": [{"type": "image", "mimeType": "image/png", "data": "AAAA"}]}, "[image: image/png, left out]"),
        ({"content": [{"type": "resource", "resource": {"uri": "x:y", "text": "t"}}]}, "t"),
        ({"content": [{"type": "resource_link", "uri": "x:y", "name": "n"}]}, "[resource_link: x:y]"),
        ({"content": "no list", "isError": "yes"}, ""),
    ],
)
def test_an_answer_is_one_text(answer: dict[str, Any], text: str) -> None:
    assert readable(answer) == {"content": [{"type": "text", "text": text}], "isError": False}


def test_other_results_stay_as_they_are() -> None:
    others: list[dict[str, Any]] = [{"tools": []}, {"contents": [1]}, {"resultType": "input_required", "inputRequests": {}}, {}]
    assert [readable(dict(other)) for other in others] == others


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "text", "resource", "uri", "x"]), inner),
)


@given(json_values, json_values, json_values)
def test_whatever_a_server_says_is_read(content: Any, structured: Any, failed: Any) -> None:
    found = readable({"content": content, "structuredContent": structured, "isError": failed})
    assert isinstance(found["content"][0]["text"], str)
