"""The agents of the simulation, set for a mesh of processes that runs for minutes."""

from __future__ import annotations

import random

from sim import agents

agents.Cell.dice = random.Random()
agents.Cell.slowness = 0.3


class Cell(agents.Cell):
    """One agent, with a state that does not grow for ever."""

    keep = 48
    # Nodes are killed so often that an innocent input would otherwise become a dead letter (docs/architecture.md#poison).
    max_takeovers = 1000
