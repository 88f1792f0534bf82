"""The estimate of the servers' time, from stamps and a monotonic clock."""

from __future__ import annotations

import random
from math import inf

import pytest

from agentmesh.server_clock import SLOWEST, WIDEST_S, WINDOW_S, ServerClock

START = 1_800_000_000.0
"""The servers' time when the monotonic clock is 0."""


class Bench:
    """A clock with hands: `at` is the monotonic one, `own` what the process's own clock is ahead of the servers'."""

    def __init__(self, own: float = 0.0) -> None:
        self.at = 0.0
        self.own = own
        self.clock = ServerClock(lambda: self.at, lambda: START + self.at + self.own)

    def hear(self, ahead: float = 0.0, took: float = 0.0) -> None:
        """A stamp by a server that is `ahead`, halfway of a request that takes `took`."""
        sent = self.at
        self.at += took
        self.clock.observe(START + sent + took / 2 + ahead, sent, self.at)

    @property
    def wrong(self) -> float:
        """By how much the estimate is ahead of the time."""
        return self.clock.now() - START - self.at


def test_before_the_first_stamp_the_own_clock_is_followed() -> None:
    bench = Bench(own=90.0)
    assert (bench.wrong, bench.clock.known, bench.clock.ahead_s()) == (90.0, False, None)


@pytest.mark.parametrize("own", [-3600.0, -90.0, 0.0, 90.0, 3600.0])
def test_from_the_first_stamp_on_the_own_clock_is_nothing(own: float) -> None:
    bench = Bench(own=own)
    bench.hear(took=0.2)
    assert bench.clock.known and bench.wrong == pytest.approx(0.1)
    assert bench.clock.ahead_s() == pytest.approx(own - 0.1)
    bench.own += 7.0  # it is put right, or wrong, while the process runs
    bench.at += 5.0
    assert bench.wrong == pytest.approx(0.1) and bench.clock.ahead_s() == pytest.approx(own + 6.9)


def test_the_least_of_several_counts() -> None:
    bench = Bench()
    bench.hear(took=0.9)
    bench.hear(took=0.01)
    bench.hear(took=0.5)
    assert 0 <= bench.wrong <= 0.01


@pytest.mark.parametrize("ahead", [90.0, 3600.0])
def test_a_server_that_is_ahead_moves_nothing_as_long_as_another_is_heard(ahead: float) -> None:
    bench = Bench()
    for _ in range(100):
        bench.hear(ahead)
        bench.at += WINDOW_S / 4
        bench.hear()
        bench.at += WINDOW_S / 4
        assert abs(bench.wrong) < 0.1


@pytest.mark.parametrize("ahead", [90.0, 3600.0])
def test_the_time_of_the_only_server_counts_after_a_window(ahead: float) -> None:
    bench = Bench()
    bench.hear()
    bench.at += WINDOW_S - 1
    bench.hear(ahead)
    assert abs(bench.wrong) < 0.1
    bench.at += 2
    bench.hear(ahead)
    assert bench.wrong == pytest.approx(ahead, abs=0.1)


def test_it_may_be_put_right_before_anybody_has_read_it() -> None:
    bench = Bench()
    bench.hear(ahead=3600.0)
    bench.hear()
    assert bench.wrong == 0


@pytest.mark.parametrize("behind", [0.5, 90.0])
def test_it_never_jumps_back_but_goes_slower_until_it_is_right(behind: float) -> None:
    bench = Bench()
    bench.hear(ahead=behind)
    before = bench.clock.now()
    bench.hear()
    assert bench.clock.now() == before
    bench.at += behind
    assert bench.clock.now() == pytest.approx(before + behind * SLOWEST)
    bench.hear()
    bench.at += behind
    assert bench.wrong == pytest.approx(0, abs=1e-6)
    bench.at += 1
    assert bench.wrong == pytest.approx(0, abs=1e-6)


def test_without_a_window_the_newest_stamp_counts_and_the_time_as_it_says_may_go_back() -> None:
    bench = Bench()
    clock = ServerClock(lambda: bench.at, lambda: 0.0, window_s=0.0)
    for ahead in (0.0, 3600.0, -90.0, 0.0):
        clock.observe(START + bench.at + ahead, bench.at, bench.at)
        assert clock.newest() == START + bench.at + ahead
        bench.at += 1.0
        assert clock.newest() == START + bench.at + ahead


def test_a_stamp_of_a_slow_request_counts_only_where_there_is_no_other() -> None:
    bench = Bench(own=3600.0)
    bench.hear(took=WIDEST_S * 8)
    assert bench.clock.known and -8 <= bench.wrong <= 0, "never ahead"
    bench.hear(took=0.1)
    assert 0 <= bench.wrong <= 0.1
    bench.hear(took=WIDEST_S * 8)
    assert 0 <= bench.wrong <= 0.1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_heard_it_never_goes_back_and_one_right_server_is_enough(seed: int) -> None:
    dice = random.Random(seed)
    bench = Bench(own=dice.uniform(-3600, 3600))
    bench.hear(took=0.01)
    latest = -inf
    for _ in range(500):
        if dice.random() < 0.3:
            bench.hear(took=dice.choice((0.001, 0.4, 5.0)))
        else:
            bench.hear(ahead=dice.choice((0.0, 90.0, 3600.0)), took=dice.choice((0.001, 0.4, 5.0)))
        bench.at += dice.uniform(0, WINDOW_S / 40)
        now = bench.clock.now()
        assert now >= latest and -0.1 <= bench.wrong <= WIDEST_S
        latest = now
    assert len(bench.clock._samples) < 500
