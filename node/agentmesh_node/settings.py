"""How a supervisor works: its times and bounds."""

from __future__ import annotations

import msgspec

from agentmesh_node.liveness_thread import STALL_LIMIT_S


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a supervisor works. The defaults meet the bounds of design 8; tests may want other values."""

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
