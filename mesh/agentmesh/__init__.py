"""GenAgent as a mesh on NATS: all that an agent's file needs."""

import sys

from agentmesh.agent import (
    Agent,
    Answer,
    Closed,
    Defer,
    Halt,
    Idle,
    Init,
    Proceed,
    Prompt,
    Skip,
    Timer,
    Undelivered,
)
from agentmesh.backend import Event, Response
from agentmesh.registry_values import Restart
from agentmesh.renamed import FormerNames
from agentmesh.tools import agent_tool, tool

__all__ = [
    "Agent",
    "Answer",
    "Closed",
    "Defer",
    "Event",
    "Halt",
    "Idle",
    "Init",
    "Proceed",
    "Prompt",
    "Response",
    "Restart",
    "Skip",
    "Timer",
    "Undelivered",
    "agent_tool",
    "tool",
]

sys.meta_path.append(
    FormerNames(
        {
            "agentmesh.decisions": "agentmesh.callback_results",
            "agentmesh.hands": "agentmesh.callback_context",
            "agentmesh.edge.ambient": "agentmesh.edge.clock",
            "agentmesh.edge.client": "agentmesh.edge.nats_client",
            "agentmesh.edge.delivery": "agentmesh.edge.subscription",
            "agentmesh.edge.jetstream": (
                "agentmesh.edge.failures",
                "agentmesh.edge.api",
                "agentmesh.edge.publish",
                "agentmesh.edge.read",
                "agentmesh.edge.manage",
            ),
            "agentmesh.edge.soon": "agentmesh.edge.publish",
            "agentmesh.edge.upkeep": "agentmesh.edge.manage",
        },
        {"agentmesh.edge.jetstream": {"api": "call_api"}, "agentmesh.hands": {"Reply": "DeferredReply"}},
    )
)
