"""JSON that is read strictly."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.strict_json import MOST_DEPTH, NotJson, checked, strictly

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_a_value_is_read_as_it_was_written(value: Any) -> None:
    assert checked(strictly(json.dumps(value))) == value


@pytest.mark.parametrize("text", ["", "NaN", "-Infinity", "1e400", '{"a":1,"a":1}', "[1", "1 2", "[" * 100_000])
def test_what_not_everybody_reads_in_the_same_way_is_no_json(text: str) -> None:
    with pytest.raises(NotJson):
        strictly(text)


def test_what_the_journal_cannot_keep_is_refused() -> None:
    deep: Any = 0
    for _ in range(MOST_DEPTH + 1):
        deep = [deep]
    for value in (deep, "\ud800", {"\ud800": 1}, math.nan, {1: 2}):
        with pytest.raises(NotJson):
            checked(value)
    assert checked(deep[0]) == deep[0]
