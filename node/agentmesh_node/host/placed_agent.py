"""An agent that is placed on this node, asleep or awake."""

from __future__ import annotations

import asyncio

from agentmesh.edge.transport import Message, Subscription
from agentmesh.errors import StoreLost
from agentmesh.wire import ErrorBody
from agentmesh_node.owner.owner import Owner


class PlacedAgent:
    """An agent placed on this node: one subscription while it sleeps, an owner while it is awake."""

    __slots__ = (
        "activation", "generation", "gone", "incarnation", "leaving", "name", "owner", "since", "stuck", "subscription", "waiting"
    )  # fmt: skip

    def __init__(self, name: str, generation: int, incarnation: str, since: str = "") -> None:
        self.name = name
        self.generation = generation
        self.incarnation = incarnation
        self.since = since
        """When it was placed here (RFC 3339)."""
        self.subscription: Subscription | None = None
        self.owner: Owner | None = None
        self.activation: asyncio.Task[None] | None = None
        self.waiting: tuple[tuple[str, Message], ...] = ()
        self.gone = False
        self.leaving = False
        """It is being given up, as soon as its turn lets it."""
        self.stuck: ErrorBody | None = None
        """Why it cannot be run here (see `StuckAgents`)."""

    @property
    def broken(self) -> bool:
        """Whether the store has lost what the agent had committed: nothing is written any more."""
        return self.stuck is not None and self.stuck.code == StoreLost.code
