"""Agents that were started with `link=True` end with their parent.

The parent's last owner ends them at once. If its node dies just then, the leading supervisor does (`agentmesh.planner`, End).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from agentmesh import registry_values, wire
from agentmesh.edge.failures import ApiError, Uncertain, WrongLastSequence
from agentmesh.edge.registry import Registry, View, readable_spec
from agentmesh.errors import MeshError
from agentmesh.wire import ErrorBody


async def end_children(registry: Registry, specs: View, parent: str, life: str, now: Callable[[], float]) -> None:
    """Have the children of that life of `parent` stopped. What cannot be written now is left to the leader."""
    sign = registry_values.parent_sign(parent)  # decoding a hundred thousand specs would hold up the loop
    for key, entry in list(specs.entries.items()):
        if entry.value is None or sign not in entry.value:
            continue
        spec = readable_spec(entry)
        if spec is None or spec.status in ("stopping", "stopped"):
            continue
        if spec.parent != parent or spec.parent_life not in (None, life):
            continue
        reason = ErrorBody(code="stopped", message=f"its parent {parent} ended")
        new = msgspec.structs.replace(spec, status="stopping", reason=reason, since=wire.format_time(now()))
        with contextlib.suppress(WrongLastSequence, MeshError, Uncertain, ApiError):
            await registry.update(key, registry_values.encode_spec(new, entry.value), entry.revision)
