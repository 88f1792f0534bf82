"""Some seeds, as `make sim` runs them, and that a seed repeats its run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _sim(*arguments: str) -> str:
    # A process of its own, which fixes the hashes of names: only so does a seed repeat its run.
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.case(201)
@pytest.mark.case(204)
@pytest.mark.case(206)
@pytest.mark.case(225)
@pytest.mark.parametrize("first", [1, 1001, 2001, 3001])
def test_nothing_is_lost_and_nothing_happens_twice_whatever_goes_wrong(first: int) -> None:
    assert "0 failed" in _sim("--seed", str(first), "--seeds", "30", "--jobs", "2")


def test_who_knows_more_than_the_store_stops_says_so_and_writes_nothing() -> None:
    assert "0 failed" in _sim("--loss", "--seed", "1", "--seeds", "30", "--jobs", "2")


@pytest.mark.parametrize("fault", ["skew", "full", "blobs", "restarts"])
def test_each_of_these_faults_alone(fault: str) -> None:
    assert "0 failed" in _sim("--seed", "1", "--seeds", "6", "--faults", fault, "--jobs", "2")


def test_a_seed_repeats_its_run() -> None:
    # In a process of its own, and behind another in one of several workers.
    runs = [_sim("--seed", "39", "--verbose"), _sim("--seed", "38", "--seeds", "2", "--verbose", "--jobs", "2")]
    digests = [re.findall(r"seed 39: .* s, ([0-9a-f]+);", run) for run in runs]
    assert digests[0] and digests[0] == digests[1]
