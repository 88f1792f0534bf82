"""A node may die at any of its calls to the outside: what is stored and answered in the end is the same
(docs/architecture.md#the-promise).

Each script is run once undisturbed, and beside it once for each call of the node and each side of it, with the node dying there.
"""

from __future__ import annotations

import re

import pytest

from sim.command import sim
from sim.crash_scripts import SCRIPTS
from sim.crashes import play

PARTS = 4
"""Tests for each script: they share its calls, so that none takes long and all cores have something to do."""
RECORDS = {
    "activated", "init", "ready", "turn", "event", "control", "refused", "step", "crashed", "gave_up", "rest", "stopped", "swept",
    "tombstone", "snapshot", "set",
}  # fmt: skip
EFFECTS = {"Resolve", "SendMail", "StartAgent", "StopAgent", "SetTimer", "CancelTimer", "Bury"}


@pytest.mark.processes
@pytest.mark.case(203)
@pytest.mark.case(202)
@pytest.mark.case(205)
@pytest.mark.parametrize("part", range(1, PARTS + 1))
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_node_that_dies_at_any_call_changes_nothing(script: str, part: int) -> None:
    said = sim("--crash", script, "--part", f"{part}/{PARTS}")
    points, calls = (int(number) for number in re.findall(r"(\d+) points of (\d+) calls, 0 failed", said)[0])
    assert points == 2 * len(range(part, calls + 1, PARTS))


def test_the_scripts_meet_every_record_and_every_effect() -> None:
    seen = set().union(*(play(script).seen for script in SCRIPTS.values()))
    assert seen >= RECORDS | EFFECTS
