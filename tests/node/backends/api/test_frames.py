"""Server-sent events, wherever their bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh_node.backends.api.frames import Frame, Frames, TooMuch

STREAM = 'event: a\ndata: {"x": 1}\n\n: comment\n\ndata: one\ndata: two\r\n\r\nevent: b\rdata:\u00e4\r\rid: 5\n\n'.encode()
WHOLE = [Frame("a", '{"x": 1}'), Frame("", "one\ntwo"), Frame("b", "\u00e4")]


@given(st.lists(st.integers(0, len(STREAM))))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    frames, places = Frames(), sorted({0, *cuts, len(STREAM)})
    found = [frame for start, end in pairwise(places) for frame in frames.feed(STREAM[start:end])]
    assert found == WHOLE


def test_a_line_that_never_ends_is_held_as_it_came() -> None:
    frames = Frames(most=1 << 20)
    with pytest.raises(TooMuch):
        for _ in range(1 << 21):
            assert frames.feed(b"x") == []


def test_what_has_no_blank_line_behind_it_has_not_come() -> None:
    assert Frames().feed(b"data: half\n") == []
