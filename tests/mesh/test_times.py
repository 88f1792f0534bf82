"""Times as they cross the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.errors import BadRequest
from agentmesh.times import MAX_TIME, check_time, duration_s, format_time, parse_time, time_in_range


@given(st.integers(0, int(MAX_TIME)))
def test_a_time_is_the_same_there_and_back(seconds: int) -> None:
    assert parse_time(format_time(float(seconds))) == seconds


def test_what_is_out_of_range_is_brought_into_it_or_refused() -> None:
    assert time_in_range("1900-01-01T00:00:00Z") == 0.0 and time_in_range("9999-01-01T00:00:00Z") == MAX_TIME
    for wrong in (-1.0, MAX_TIME + 1, float("nan")):
        with pytest.raises(BadRequest):
            check_time(wrong)


def test_durations() -> None:
    assert [duration_s(text) for text in ("24h", "90m", "1h30m", "5s")] == [86_400, 5_400, 5_400, 5]
    assert duration_s("30d12h", "dhm") == 30 * 86_400 + 43_200
    for text in ("", "24", "h", "1d", "1.5h"):
        with pytest.raises(BadRequest, match="is no duration"):
            duration_s(text)
