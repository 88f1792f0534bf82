"""One supervisor: which nodes are alive, which supervisor leads, where agents are placed. It knows nothing of `host`."""

from typing import TYPE_CHECKING

from agentmesh import renamed

if not TYPE_CHECKING:
    __getattr__ = renamed.attributes(
        __name__,
        {
            "Supervisor": "agentmesh_node.supervisor.supervisor",
            "SupervisorSettings": "agentmesh_node.settings",
        },
    )
