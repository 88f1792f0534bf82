"""What an owner's agent is doing now, as operators are shown it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentmesh.budget import spending_of
from agentmesh.control_values import Activity
from agentmesh.turn import state_of
from agentmesh.turn.draft import depth
from agentmesh.turn.values import Core
from agentmesh.wire import format_time


def activity_of(name: str, core: Core, spent: Callable[[], dict[str, Any] | None], tool: Callable[[], str | None]) -> Activity:
    """What the agent `name` is doing. `spent` and `tool` tell of its running turn, if one runs: what it has spent, and in which
    tool it is."""
    processing = state_of(core) == "processing"
    active = core.active if processing else None
    usd = spending_of(core.ledger.usage).usd + (spending_of(spent()).usd if active is not None else 0.0)
    return Activity(
        name=name,
        state="processing" if processing else "idle",
        halted=core.work.halted,
        queued=depth(core),
        open=len(core.work.deferred),
        since=format_time(active.started) if active is not None else None,
        sender=active.sender if active is not None else None,
        tool=tool() if active is not None else None,
        steps=len(core.ledger.steps) if active is not None else 0,
        usd=round(usd, 9),
    )
