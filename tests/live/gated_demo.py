"""The demo of the triage example, with turns and a kill at a test's pace: `python tests/live/gated_demo.py LOGFILE`.

The variable TRIAGE_GATES names the folder of the gates: those of `gated_triage.py`, and `kill`. The readers wait at theirs until
their coordinator's node is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "triage"))

import demo
from timeline import Timeline

from agentmesh_client import Mesh
from live.agents import GATE_S

GATED = Path(__file__).with_name("gated_triage.py")
_kill = demo.kill_its_node


async def kill_when_open(show: Timeline, processes: demo.Processes, mesh: Mesh) -> None:
    """Kill as the demo does, when the gate is open."""
    gates = Path(os.environ["TRIAGE_GATES"])
    while not await asyncio.to_thread((gates / "kill").exists):  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(GATE_S)
    await _kill(show, processes, mesh)
    (gates / "read").touch()


if __name__ == "__main__":
    demo.kill_its_node = kill_when_open
    demo.stage = partial(demo.stage, file=GATED)
    raise SystemExit(asyncio.run(demo.main(Path(sys.argv[1]))))
