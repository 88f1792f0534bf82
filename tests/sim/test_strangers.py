"""Some runs with strangers, as `python -m tests.sim --foreign N` and `--unreadable N` make them."""

from __future__ import annotations

import re

import pytest

from sim.command import sim

pytestmark = pytest.mark.processes


@pytest.mark.case(252)
@pytest.mark.case(254)
@pytest.mark.case(255)
@pytest.mark.case(256)
def test_messages_of_strangers_end_no_agent_and_change_no_turn() -> None:
    said = sim("--foreign", "1500", "--seed", "10", "--seeds", "4", "--jobs", "2")
    assert "0 failed" in said and "6000 foreign messages" in said
    assert re.search(r" [1-9]\d* journals rolled up", said), "those agents say it, and nothing follows"


@pytest.mark.case(253)
def test_no_record_that_cannot_be_read_is_passed_over() -> None:
    said = sim("--unreadable", "60", "--seed", "1", "--seeds", "3", "--jobs", "2")
    assert "0 failed" in said and "180 unreadable records" in said


def test_a_seed_with_strangers_repeats_its_run() -> None:
    runs = [sim("--foreign", "300", "--seed", "3", "--verbose") for _ in range(2)]
    digests = [re.findall(r"seed 3: .* s, ([0-9a-f]+);", run) for run in runs]
    assert digests[0] and digests[0] == digests[1]
