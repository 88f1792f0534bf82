"""Text that UTF-8 cannot hold becomes text that it can; all other text stays as it is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.unicode import well_formed

TEXTS = st.text(st.characters(exclude_categories=()))
VALUES = st.recursive(TEXTS | st.integers(-9, 9) | st.none(), lambda v: st.lists(v) | st.dictionaries(TEXTS, v))


@given(VALUES)
def test_whatever_comes_out_can_be_encoded_and_what_could_be_is_the_same_object(value: Any) -> None:
    found = well_formed(value)
    msgspec.json.encode(found)
    assert well_formed(found) is found
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        assert found != value
    else:
        assert found is value


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "\U0001f600"), ("\ud83d\ud83d\ude00", "\ufffd\U0001f600")],
)
def test_halves_of_pairs_are_joined_and_lone_ones_replaced(text: str, expected: str) -> None:
    assert well_formed(text) == expected
    assert well_formed({text: [text, (1, text)]}) == {expected: [expected, (1, expected)]}
