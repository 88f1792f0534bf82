"""A node's first lease, and the figures in its answers to pings."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from importlib.metadata import version

import msgspec

from agentmesh import semconv
from agentmesh.control_values import Activities
from agentmesh.formats import RECORD_VERSION, node_labels
from agentmesh.registry_values import NodeLease
from agentmesh.turn.draft import depth
from agentmesh.wire import format_time
from agentmesh_node.host.heartbeat import NodeFigures
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.owner.owner import Owner
from agentmesh_node.settings import NodeSettings
from agentmesh_node.telemetry.instruments import Instruments

MOST_BUSY = 256
"""Most agents in a turn that a node names."""
MANY = 100
"""Messages of one prefix that wait, from which on the lease tells of them."""
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
        by_operation=True,
        code=settings.code,
    )


@functools.cache
def _version() -> str:
    return version("agentmesh")  # it reads a file


def activities(agents: Collection[PlacedAgent]) -> Activities:
    """What the loaded ones of `agents` are doing."""
    found = [placed.owner.activity() for placed in agents if placed.owner is not None]
    doing = sorted((one for one in found if one is not None), key=lambda one: (one.state == "idle", -one.queued, one.name))
    return Activities(agents=tuple(doing[:MOST_SHOWN]), more=max(0, len(doing) - MOST_SHOWN))


class AgentGauges:
    """The node's gauges, as numbers that another thread may read: each is written whole."""

    def __init__(self) -> None:
        self.states: dict[str, int] = {}
        self.depths: dict[str, int] = {}
        """Prompts that wait, by kind."""

    def refresh(self, figures: NodeFigures, agents: Collection[PlacedAgent]) -> None:
        """Bring them up to date."""
        depths = dict.fromkeys(self.depths, 0)
        for placed in agents:
            owner = placed.owner
            if owner is not None and owner.core is not None:
                kind = owner.spec.kind
                depths[kind] = depths.get(kind, 0) + depth(owner.core)
        self.depths = depths
        self.states = {"placed": figures.agents, "awake": figures.awake, "running": figures.running}

    def observed(self, instruments: Instruments) -> tuple[Callable[[], None], ...]:
        """Have `instruments` read them. Returns what ends that."""
        return (
            instruments.observed(semconv.AGENTS_GAUGE, lambda: [(n, {semconv.AGENT_STATE: s}) for s, n in self.states.items()]),
            instruments.observed(semconv.MAILBOX_DEPTH, lambda: [(n, {semconv.KIND: kind}) for kind, n in self.depths.items()]),
        )


def waiting_for(owners: Iterable[Owner]) -> dict[str, int]:
    """How many messages wait for these owners' agents, by the first token of the names, where they are many."""
    found: Counter[str] = Counter()
    for owner in owners:
        core = owner.core
        if core is not None and (core.prompts or core.events):
            found[owner.name.partition(".")[0]] += len(core.prompts) + len(core.events)
    return {prefix: number for prefix, number in found.items() if number >= MANY}


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
    figures.lease = msgspec.structs.replace(figures.lease, agents=len(agents), waiting=waiting_for(awake))
