"""A node's first lease, and the figures in its answers to pings."""

from __future__ import annotations

import functools
from collections.abc import Collection
from importlib.metadata import version

import msgspec

from agentmesh.control_values import Activities
from agentmesh.formats import RECORD_VERSION, node_labels
from agentmesh.registry_values import NodeLease
from agentmesh.wire import format_time
from agentmesh_node.host.heartbeat import NodeFigures
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.settings import NodeSettings

MOST_BUSY = 256
"""Most agents in a turn that a node names."""
MOST_SHOWN = 2000
"""Most agents of which a node says what they do, so that a message can hold the reply."""


def first_lease(settings: NodeSettings, boot: str, now: float) -> NodeLease:
    """The lease of a process that has just begun, and has no agents yet."""
    return NodeLease(
        boot=boot,
        kinds=tuple(sorted(settings.agents)),
        labels={**settings.labels, **node_labels(RECORD_VERSION)},
        capacity=settings.capacity,
        version=_version(),
        started=format_time(now),
        reads=RECORD_VERSION,
        facts=settings.trace_facts,
    )


@functools.cache
def _version() -> str:
    return version("agentmesh")  # it reads a file


def activities(agents: Collection[PlacedAgent]) -> Activities:
    """What the loaded ones of `agents` are doing."""
    found = [placed.owner.activity() for placed in agents if placed.owner is not None]
    doing = sorted((one for one in found if one is not None), key=lambda one: (one.state == "idle", -one.queued, one.name))
    return Activities(agents=tuple(doing[:MOST_SHOWN]), more=max(0, len(doing) - MOST_SHOWN))


def count(figures: NodeFigures, agents: Collection[PlacedAgent], dropped: int) -> None:
    """Bring `figures` up to date. Each field is written whole, because another thread reads them.

    Args:
        dropped: live events and facts that were not sent.
    """
    awake = [placed.owner for placed in agents if placed.owner is not None]
    busy = [owner.name for owner in awake if not owner.idle]
    figures.agents = len(agents)
    figures.dropped = dropped
    figures.awake = len(awake)
    figures.running = len(busy)
    figures.busy = tuple(busy[:MOST_BUSY])
    figures.lease = msgspec.structs.replace(figures.lease, agents=len(agents))
