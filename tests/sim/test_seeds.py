"""Some seeds, as `make sim` runs them, and that a seed repeats its run."""

from __future__ import annotations

import re

import pytest

from sim.command import sim

pytestmark = pytest.mark.processes


@pytest.mark.case(201)
@pytest.mark.case(204)
@pytest.mark.case(206)
@pytest.mark.case(225)
@pytest.mark.case(685)
@pytest.mark.parametrize("first", [1, 1001, 2001, 3001])
def test_nothing_is_lost_and_nothing_happens_twice_whatever_goes_wrong(first: int) -> None:
    assert "0 failed" in sim("--seed", str(first), "--seeds", "30", "--jobs", "2")


LEFT = "cut_node,freeze_node,kill_node,drain_node,stale,delayed"
"""Faults by which owners leave attempts without an end, and the reads of the next one come to nothing."""


@pytest.mark.case(544)
@pytest.mark.case(675)
@pytest.mark.parametrize(
    "found", [("40077",), ("710073", "--faults", LEFT), ("710385", "--faults", LEFT)], ids=["drained", "looking", "looking-2"]
)
def test_a_process_that_ends_leaves_no_attempt_of_which_nobody_tells(found: tuple[str, ...]) -> None:
    assert "0 failed" in sim("--seed", *found)


def test_who_knows_more_than_the_store_stops_says_so_and_writes_nothing() -> None:
    assert "0 failed" in sim("--loss", "--seed", "1", "--seeds", "30", "--jobs", "2")


@pytest.mark.parametrize(
    "fault",
    [
        "skew",
        "full",
        "blobs",
        "restarts",
        "forgotten_ids",
        "returned,full",
        "undead,kill_node",
        "fired_twice",
        "lacking,kill_node",
        "server_clocks,kill_node,cut_node",
    ],
)
def test_each_of_these_faults_alone(fault: str) -> None:
    assert "0 failed" in sim("--seed", "1", "--seeds", "6", "--faults", fault, "--jobs", "2")


def test_a_seed_repeats_its_run() -> None:
    # In a process of its own, and behind another in one of several workers.
    runs = [sim("--seed", "39", "--verbose", alone=True), sim("--seed", "38", "--seeds", "2", "--verbose", "--jobs", "2")]
    digests = [re.findall(r"seed 39: .* s, ([0-9a-f]+);", run) for run in runs]
    assert digests[0] and digests[0] == digests[1]


def test_a_seed_repeats_its_trace_byte_for_byte() -> None:
    # Each in a process of its own; the last line tells how long it took.
    traces = [sim("--seed", "42", "--trace", alone=True).splitlines()[:-1] for _ in range(2)]
    assert len(traces[0]) > 500
    assert traces[0] == traces[1]
