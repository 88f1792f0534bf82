"""What a process of the mesh does at its beginning and at its end."""

from __future__ import annotations

import json
import signal
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


WAITING = """
import asyncio, os, signal
from agentmesh_node.process.signals import StopSignal, run

async def main(told: StopSignal) -> None:
    {ready}
    os.kill(os.getpid(), signal.{first})
    {again}
    await asyncio.sleep(60)

raise SystemExit(run(main{called_off}))
"""
READY = 'told.ready("ready")'
AGAIN = "await asyncio.sleep(0.01); os.kill(os.getpid(), signal.SIGTERM)"


@pytest.mark.case(460)
@pytest.mark.processes
@pytest.mark.parametrize(
    ("code", "first", "ready", "again", "called_off"),
    [
        (0, signal.SIGTERM, "", "", ""),
        (130, signal.SIGINT, "", "", ""),
        (130, signal.SIGTERM, "", "", ", called_off=130"),  # `mesh setup`: its work is not done
        (130, signal.SIGTERM, READY, AGAIN, ""),  # turns under way are cut off
    ],
)
def test_the_exit_code_of_a_signal(code: int, first: signal.Signals, ready: str, again: str, called_off: str) -> None:
    script = WAITING.format(ready=ready or "pass", first=first.name, again=again or "pass", called_off=called_off)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, "")


UNRETRIEVED = """
import asyncio, gc, logging, socket
from agentmesh_node.process.signals import StopSignal, run

logging.basicConfig(level=logging.ERROR, format="%(message)s")

async def main(told: StopSignal) -> None:
    for error in (socket.gaierror(-3, "a name that nobody waits for"), OSError("a defect")):
        asyncio.get_running_loop().create_future().set_exception(error)
    gc.collect()

raise SystemExit(run(main))
"""


@pytest.mark.processes
def test_a_look_up_that_fails_for_nobody_is_not_told_as_a_defect_and_anything_else_is() -> None:
    done = subprocess.run([sys.executable, "-c", UNRETRIEVED], capture_output=True, text=True, timeout=60, check=True)
    assert "a defect" in done.stderr
    assert "nobody waits for" not in done.stderr
