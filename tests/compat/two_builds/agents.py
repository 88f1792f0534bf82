"""The agents, for nodes of both builds: they snapshot often, for that is where a build drops what it does not know."""

from __future__ import annotations

import random
from typing import Any

from msgspec import structs

from agentmesh_node.turns import agent_factory
from sim import agents

SNAPSHOT_RECORDS = 7

agents.Cell.dice = random.Random()
agents.Cell.slowness = 0.1
_config = agent_factory.AgentFactory.config


def _often(self: Any, *args: Any) -> Any:
    return structs.replace(_config(self, *args), snapshot_records=SNAPSHOT_RECORDS)


agent_factory.AgentFactory.config = _often  # type: ignore[method-assign, assignment]


class Cell(agents.Cell):
    """One agent, with a state that does not grow for ever."""

    keep = 48
    # Nodes are killed so often that an innocent input would otherwise become a dead letter (docs/architecture.md#poison).
    max_takeovers = 1000
