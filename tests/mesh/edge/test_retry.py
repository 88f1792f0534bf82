"""Pauses between tries."""

from itertools import islice

import pytest

from agentmesh.edge.retry import CALL_RETRY, UPKEEP_RETRY, ExponentialBackoff


def test_each_pause_is_twice_the_one_before_up_to_the_longest() -> None:
    assert list(islice(ExponentialBackoff(0.05, 0.5), 6)) == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


def test_a_first_pause_beyond_the_longest_is_cut() -> None:
    assert list(islice(ExponentialBackoff(2.0, 0.5), 2)) == [0.5, 0.5]


def test_each_iteration_begins_anew() -> None:
    backoff = ExponentialBackoff(1.0, 8.0)
    first, second = iter(backoff), iter(backoff)
    assert [next(first), next(first), next(second)] == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("backoff", [CALL_RETRY, UPKEEP_RETRY])
def test_after_thousands_of_tries_it_is_still_the_longest(backoff: ExponentialBackoff) -> None:
    """An outage of hours is no overflow."""
    assert next(islice(backoff, 5000, None)) == backoff.longest_s
