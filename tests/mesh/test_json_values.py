"""Numbers that JSON does not have, and parts that cannot be encoded: where they stand is found."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.json_values import locate, not_finite, search


class Point(msgspec.Struct):
    x: float | None = None
    more: Any = None


@dataclasses.dataclass
class Place:
    points: list[Point]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "state is NaN"),
        ({"a": [1, None, -math.inf]}, "state['a'][2] is minus infinite"),
        (Point(math.nan), "state.x is NaN"),
        (Point(None, {"deep": (1.5, {"y": math.inf})}), "state.more['deep'][1]['y'] is infinite"),
        (Place([Point(1.0), Point(math.inf)]), "state.points[1].x is infinite"),
        (Point(), None),
        ({"text": "null", "none": None, "decimal": Decimal("NaN"), "large": 2**70}, None),
    ],
)
def test_the_field_is_named(value: Any, said: str | None) -> None:
    body = msgspec.json.encode(value) if value != {} else b"{}"
    assert not_finite(value, body, "state") == said


def test_without_a_name_the_field_stands_alone() -> None:
    assert not_finite({"options": {"t": math.nan}}, b"null") == "options['t'] is NaN"
    assert not_finite(math.nan, b"null") == "it is NaN"
    assert list(search([math.nan, 1.0, [math.inf]], "r")) == ["r[0] is NaN", "r[2][0] is infinite"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_json)
def test_it_says_so_exactly_where_something_is_lost(value: Any) -> None:
    body = msgspec.json.encode(value)
    lost = "nan" in repr(search_floats(value)) or "inf" in repr(search_floats(value))
    assert (not_finite(value, body) is not None) == lost


def search_floats(value: Any) -> list[float]:
    if isinstance(value, float):
        return [value]
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [number for part in parts for number in search_floats(part)]


def test_what_cannot_be_encoded_is_located() -> None:
    assert locate(Point(1.0, {"f": [1, object()]})) == "state.more['f'][1]"
