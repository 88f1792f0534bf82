"""What a process of the mesh does at its beginning and at its end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import gc, json
from agentmesh_node.process.signals import StopSignal, run

async def main(told: StopSignal) -> None:
    before = gc.get_freeze_count()
    told.ready("ready")
    print(json.dumps([before, gc.get_freeze_count(), gc.get_threshold()[0], gc.isenabled()]))

raise SystemExit(run(main))
"""


@pytest.mark.processes
def test_what_a_process_has_made_before_its_work_begins_is_not_collected_again() -> None:
    # A process of its own: what is frozen here would stay so for every other test.
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    line, told = done.stdout.splitlines()
    before, frozen, young, enabled = json.loads(told)
    assert line == "ready"
    assert frozen > before + 10_000  # Python 3.12 begins with some of its own
    assert enabled
    assert young == 10_000
