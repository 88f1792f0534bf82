"""GenAgent as a mesh on NATS: all that an agent's file needs."""

from agentmesh.agent import (
    Agent,
    Answer,
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
from agentmesh.tools import agent_tool, tool

__all__ = [
    "Agent",
    "Answer",
    "Defer",
    "Event",
    "Halt",
    "Idle",
    "Init",
    "Proceed",
    "Prompt",
    "Response",
    "Skip",
    "Timer",
    "Undelivered",
    "agent_tool",
    "tool",
]
