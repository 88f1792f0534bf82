"""A stream of a test's own."""

from __future__ import annotations

from typing import Any

from agentmesh.edge.api import call_api
from agentmesh.edge.transport import Transport
from agentmesh.subjects import Subjects


async def make_stream(t: Transport, subjects: Subjects, **config: Any) -> tuple[str, str]:
    """A stream of its own: its name, and the head of its subjects."""
    name = subjects.root.upper()
    body = {"name": name, "subjects": [f"{subjects.root}.>"], "storage": "memory", "allow_direct": True, **config}
    await call_api(t, f"STREAM.CREATE.{name}", body)
    return name, subjects.root
