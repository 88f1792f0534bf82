"""What a node tells of itself: its lease, and the figures in its answers to pings."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version

import msgspec

from agentmesh.formats import RECORD_VERSION
from agentmesh.wire import NodeLease, format_time
from agentmesh_node.host.heartbeat import NodeFigures
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.settings import NodeSettings

MOST_BUSY = 256
"""Agents in a turn that a node names, at most."""


def first_lease(settings: NodeSettings, boot: str, now: float) -> NodeLease:
    """The lease of a process that has just begun, and has no agents yet."""
    return NodeLease(
        boot=boot,
        kinds=tuple(sorted(settings.agents)),
        labels=settings.labels,
        capacity=settings.capacity,
        version=version("agentmesh"),
        started=format_time(now),
        reads=RECORD_VERSION,
    )


def count(facts: NodeFigures, agents: Collection[PlacedAgent]) -> None:
    """Bring `facts` up to date. Each field is written whole: another thread reads them."""
    awake = [placed.owner for placed in agents if placed.owner is not None]
    busy = [owner.name for owner in awake if not owner.idle]
    facts.agents = len(agents)
    facts.awake = len(awake)
    facts.running = len(busy)
    facts.busy = tuple(busy[:MOST_BUSY])
    facts.lease = msgspec.structs.replace(facts.lease, agents=len(agents))
