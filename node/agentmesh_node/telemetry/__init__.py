"""Facts, logs, spans and metrics."""

from typing import TYPE_CHECKING

from agentmesh import renamed

if not TYPE_CHECKING:
    __getattr__ = renamed.attributes(
        __name__,
        {
            "Telemetry": "agentmesh_node.telemetry.otel",
            "setup": "agentmesh_node.telemetry.otel",
        },
    )
