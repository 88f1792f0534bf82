"""How a node and a supervisor work: their times and bounds."""

from __future__ import annotations

from typing import Any

import msgspec

from agentmesh.agent import Agent
from agentmesh_node.telemetry.events import FactHandler

STALL_LIMIT_S = 60.0
"""How long a main loop may not have turned until its process ends: a hang is a death too (docs/architecture.md#poison)."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a node runs. Times are in seconds."""

    node_id: str
    agents: dict[str, type[Agent[Any]]]
    """The kinds that it serves, by name."""
    labels: dict[str, str] = {}
    capacity: int = 0
    """Most agents; 0 is no bound."""
    root: str = "mesh"
    lease_ttl_s: int = 3
    """How long the node's lease outlives its last renewal; renewed every third of it."""
    drain_s: float = 20.0
    """Longest that a running turn may hold up a drain."""
    rest_s: float = 1.0
    """Idle time after which the journal says that there is nothing to do."""
    passivate_s: float = 300.0
    """Idle time after which only the agent's subscription is kept."""
    stall_limit_s: float = STALL_LIMIT_S
    """How long the loop may hang until the process ends itself."""
    awake: int = 5000
    """Agents that may be loaded (some 20 kB each); when more are, idle ones sleep almost at once."""
    activations: int = 64
    """Agents that are activated at the same time, at most."""
    children: int = 0
    """Child processes (Claude Code, Codex) of one backend that run at the same time, at most; 0 is no bound. Further turns wait,
    and their watchdogs run meanwhile. A turn that asks another agent keeps its place: bound to fewer than such turns, they wait
    for one another until they time out."""
    snapshot_records: int = 256
    """Records of an agent's journal after which the next one is a snapshot: what a recovery reads at most."""
    mailbox_limit: int = 1000
    """The bound of a mail lane, as its stream has it."""
    content: bool = False
    """Whether lifecycle facts on the wire carry prompts, events and states."""
    files: str = ""
    """Directory under which backends keep their agents' files, each node in a part of its own; by default one of this user's
    under the system's temporary directory."""
    handlers: tuple[FactHandler, ...] = ()
    """Called in this process for each lifecycle fact (agentmesh_node.telemetry.events), without content."""


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a supervisor works. docs/operations.md#times says what other values cost."""

    lease_ttl_s: int = 3
    """TTL of the leader's lease, whole seconds (the server knows no shorter), renewed every third of it."""
    hang_s: float = 5.0
    """How long the loop that plans and places may not have turned, or its connection carried nothing, until its supervisor gives
    the lead back."""
    stall_limit_s: float = STALL_LIMIT_S
    """How long it may not have turned until the process ends."""
    ping_period_s: float = 0.1
    """How often each node, and by the standbys the leader, is pinged."""
    grace_s: float = 0.25
    """How long no-responders must last until a process counts as dead."""
    settle_s: float = 3.0
    """After an election or a cut-off, how long a node that still answers may be without a lease: a node's lease TTL."""
    replan_s: float = 5.0
    """How often everything is planned although nothing seems to have changed."""
    reason_delay_s: float = 0.25
    """How long an agent must have waited until its spec says why: most waits end at once."""
    writes_in_flight: int = 64
    """Most registry writes under way at one time."""
