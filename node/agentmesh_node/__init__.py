"""Processes that host: the agent node, the supervisor, the backends.

The rooms, from the street door down. A room imports from those below it, never from those above; import-linter holds that.

- `cli`: the verbs `up`, `node`, `supervisor`.
- `process`: one process: start, signals, health, end.
- `host`: one node: the agents placed here, which of them have work, their hand-over.
- `owner`: one agent, owned: mail in, one record out, effects performed. It feeds the pure machine of `agentmesh.turn`.
- `turns`: one turn of user code: callbacks, the prompt task, steps, budget.
- `supervisor`: one supervisor: which nodes are alive, who leads, where agents are placed (`agentmesh.planner` decides that).
- `backends`: answers to prompts, from models and from scripts.
- `tools`: the tools that a model may call, and the loop that calls them.
- `user_code`: running functions of a user: in which thread, for how long, and reported by name if they block.
- `telemetry`: facts, logs, spans, metrics.

A file beside the rooms is used by two of them or more; a file in a room by that room and those above it.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

_MODULES = {
    "agentmesh_node.carrier": "agentmesh_node.liveness_thread",
    "agentmesh_node.commands": "agentmesh_node.cli",
    "agentmesh_node.embedded": "agentmesh_node.process.nats_server",
    "agentmesh_node.events": "agentmesh_node.telemetry.events",
    "agentmesh_node.load": "agentmesh_node.process.agent_loader",
    "agentmesh_node.logs": "agentmesh_node.telemetry.logs",
    "agentmesh_node.loop": "agentmesh_node.tools.loop",
    "agentmesh_node.loop_steps": "agentmesh_node.tools.loop_steps",
    "agentmesh_node.service": "agentmesh_node.process.main",
    "agentmesh_node.supervisor_settings": "agentmesh_node.settings",
    "agentmesh_node.tools.threads": "agentmesh_node.user_code.threads",
    "agentmesh_node.tracing": "agentmesh_node.telemetry.tracing",
}
"""Modules by their former names."""
_NAMES = {
    "agentmesh_node.carrier": {"Carrier": "LivenessLoop", "ThreadCarrier": "LivenessThread"},
    "agentmesh_node.events": {"Handler": "FactHandler"},
    "agentmesh_node.loop": {"Meter": "CallGuard"},
    "agentmesh_node.loop_steps": {"Reply": "ModelAnswer", "Step": "LoopStep", "Taken": "ReplayedSteps"},
    "agentmesh_node.service": {"Where": "MeshAddress"},
    "agentmesh_node.tools.threads": {"Raised": "CaughtError"},
}
"""What those called something that has another name now."""


class _FormerNames:
    """Asked last for a module that is not found. Until then it imports nothing, `agentmesh` least of all: the `mesh` command has
    this package imported for its help."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in _MODULES:
            return None
        from agentmesh.renamed import FormerNames  # noqa: PLC0415 - see above

        return FormerNames(_MODULES, _NAMES).find_spec(name)


sys.meta_path.append(_FormerNames())
