"""The triage example at a test's pace: a turn lasts until the file of its gate is there, and then no longer than it must.

The variable TRIAGE_GATES of the nodes names the folder of the gates: `plan`, `read`, `synthesis`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "triage"))  # as a node does for the example's own file

import agents
import stand_in

from agentmesh_node.backends.scripted import Delay
from live.agents import GATE_S


async def _gated(gate: str, answer: stand_in.Answer) -> stand_in.Answer:
    while not await asyncio.to_thread(Path(os.environ["TRIAGE_GATES"], gate).exists):  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(GATE_S)
    return [step for step in answer if not isinstance(step, Delay)]


async def planned(prompt: str) -> stand_in.Answer:
    """The coordinator's model, when the gate `plan` or `synthesis` is open."""
    answer = await stand_in.triage(prompt)
    return await _gated("synthesis" if "Your readers have found this" in prompt else "plan", answer)


async def was_read(prompt: str) -> stand_in.Answer:
    """A reader's model, when the gate `read` is open."""
    return await _gated("read", await stand_in.read(prompt))


class Triage(agents.Triage):
    """The example's coordinator."""

    script: ClassVar[Any] = staticmethod(planned)


class Reader(agents.Reader):
    """The example's reader."""

    script: ClassVar[Any] = staticmethod(was_read)
