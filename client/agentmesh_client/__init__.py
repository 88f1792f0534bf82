"""The client of a mesh: connect, then ask, tell, poll, notify, start and stop agents.

    async with agentmesh_client.connect("nats://127.0.0.1:4222") as mesh:
        await mesh.start_agent("coder", kind="Coder")
        answer = await mesh.ask("coder", "hello")
        print(answer.text)

Importing this package is cheap: what a name needs (nats among it) is loaded when the name is first used. Every error that the
calls raise is one of `agentmesh.errors`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentmesh.control_values import Configuration, Status
    from agentmesh.registry_values import NodeLease, Restart, Spec
    from agentmesh.wire import Attachment, Outcome
    from agentmesh_client.asks import PromptOptions
    from agentmesh_client.client import Mesh
    from agentmesh_client.connections import connect
    from agentmesh_client.results import (
        AgentEntry,
        AgentInfo,
        AgentUpdate,
        ChangeEntry,
        ClosedRequest,
        DeadLetter,
        Interruption,
        NodeEntry,
        PollResult,
        Response,
        TimerSet,
        TurnEntry,
        UnclaimedMail,
        WaitCircle,
        WaitEntry,
        WaitGraph,
    )
    from agentmesh_client.streaming import (
        Ended,
        LiveEvent,
        LiveTurn,
        Missed,
        Restarted,
        Started,
        Text,
        Thinking,
        ToolResult,
        ToolUse,
        Usage,
    )
    from agentmesh_client.traces import GraphReport, TraceReport
    from agentmesh_client.validation import attachment

__all__ = [
    "AgentEntry",
    "AgentInfo",
    "AgentUpdate",
    "Attachment",
    "ChangeEntry",
    "ClosedRequest",
    "Configuration",
    "DeadLetter",
    "Ended",
    "GraphReport",
    "Interruption",
    "LiveEvent",
    "LiveTurn",
    "Mesh",
    "Missed",
    "NodeEntry",
    "NodeLease",
    "Outcome",
    "PollResult",
    "PromptOptions",
    "Response",
    "Restart",
    "Restarted",
    "Spec",
    "Started",
    "Status",
    "Text",
    "Thinking",
    "TimerSet",
    "ToolResult",
    "ToolUse",
    "TraceReport",
    "TurnEntry",
    "UnclaimedMail",
    "Usage",
    "WaitCircle",
    "WaitEntry",
    "WaitGraph",
    "attachment",
    "connect",
]

_HOMES = {
    "agentmesh.wire": ("Attachment", "Configuration", "NodeLease", "Outcome", "Restart", "Spec", "Status"),
    "agentmesh_client.asks": ("PromptOptions",),
    "agentmesh_client.client": ("Mesh",),
    "agentmesh_client.connections": ("connect",),
    "agentmesh_client.traces": ("GraphReport", "TraceReport"),
    "agentmesh_client.validation": ("attachment",),
    "agentmesh_client.results": (
        "AgentEntry",
        "AgentInfo",
        "AgentUpdate",
        "ChangeEntry",
        "ClosedRequest",
        "DeadLetter",
        "Interruption",
        "NodeEntry",
        "PollResult",
        "Response",
        "TimerSet",
        "TurnEntry",
        "UnclaimedMail",
        "WaitCircle",
        "WaitEntry",
        "WaitGraph",
    ),
    "agentmesh_client.streaming": (
        "Ended",
        "LiveEvent",
        "LiveTurn",
        "Missed",
        "Restarted",
        "Started",
        "Text",
        "Thinking",
        "ToolResult",
        "ToolUse",
        "Usage",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_FORMER = {
    "agentmesh_client.cli.asking": "agentmesh_client.cli.asks",
    "agentmesh_client.cli.operating": "agentmesh_client.cli.admin",
    "agentmesh_client.ends": "agentmesh_client.late_prompts",
    "agentmesh_client.facts": "agentmesh_client.doctor.facts",
    "agentmesh_client.operating": "agentmesh_client.admin",
    "agentmesh_client.patience": "agentmesh_client.retry",
    "agentmesh_client.prompting": "agentmesh_client.asks",
    "agentmesh_client.prompts": "agentmesh_client.validation",
    "agentmesh_client.sending": "agentmesh_client.mailer",
    "agentmesh_client.specs": "agentmesh_client.spec_cache",
    "agentmesh_client.starting": "agentmesh_client.lifecycle",
    "agentmesh_client.verdicts": "agentmesh_client.doctor.diagnosis",
    "agentmesh_client.waiting": "agentmesh_client.pending_asks",
}
"""Modules by their former names."""


class _FormerClientNames:
    """Asked last for a module that is not found. Until then it imports nothing: importing this package is cheap."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in _FORMER:
            return None
        from agentmesh.renamed import FormerNames  # noqa: PLC0415 - see above

        return FormerNames(_FORMER).find_spec(name)


sys.meta_path.append(_FormerClientNames())
