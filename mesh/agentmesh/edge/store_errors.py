"""Counts what the server refuses or leaves unanswered of requests to its streams, by code, for metrics.

A compare-and-set that loses is no error, and neither is a stream or a message that does not exist.
"""

from __future__ import annotations

from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout
from agentmesh.errors import MeshError

_UNANSWERED = {NoResponders: "no_responders", RequestTimeout: "timeout", Disconnected: "disconnected"}
counts = dict.fromkeys(_UNANSWERED.values(), 0)
"""How often since this process began: `no_responders`, `timeout`, `disconnected`, `api_error`, or the code of a `MeshError`."""


def counted[E: Exception](error: E) -> E:
    """Count `error`, and return it."""
    code = error.code if isinstance(error, MeshError) else _UNANSWERED.get(type(error), "api_error")
    counts[code] = counts.get(code, 0) + 1
    return error
