"""Which version of records may be written now: the least that any live process of the mesh reads (docs/compatibility.md)."""

from __future__ import annotations

from agentmesh.formats import RECORD_VERSION


class Formats:
    """What the mesh's processes read."""

    def __init__(self) -> None:
        self.writes = RECORD_VERSION
        """The newest version that all of them read."""
