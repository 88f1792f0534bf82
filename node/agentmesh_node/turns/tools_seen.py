"""The tools that a running turn's events tell of, and how each call ended."""

from __future__ import annotations

from agentmesh.backend import Event
from agentmesh.tool_runs import ToolRun, ended, run_of

MOST = 2000
"""Most calls of one turn that are remembered; of further ones only the number is known to the budget."""


class ToolsSeen:
    """The calls of one run of a turn."""

    __slots__ = ("_calls", "_open")

    def __init__(self) -> None:
        self._calls: dict[str, ToolRun] = {}
        self._open: dict[str, str] = {}
        """Calls that have no result yet: names by the calls' ids."""

    def observe(self, event: Event) -> None:
        """Note a call, or its end."""
        if event.kind == "tool_use":
            id = str(event.data.get("id"))
            self._open[id] = str(event.data.get("name"))
            if len(self._calls) < MOST:
                self._calls.setdefault(id, run_of(str(event.data.get("name")), event.data.get("input"), id))
        elif event.kind == "tool_result":
            id, error = str(event.data.get("id")), event.data.get("error")
            self._open.pop(id, None)
            run = self._calls.get(id)
            if run is not None:
                ok, text = bool(event.data.get("ok")), str(event.data.get("text") or "")
                self._calls[id] = ended(run, ok=ok, text=text, error=str(error) if error else None)

    @property
    def waited_for(self) -> str | None:
        """The tool that was called last, of those that have not ended."""
        return next(reversed(self._open.values()), None)

    @property
    def runs(self) -> tuple[ToolRun, ...]:
        """The calls so far, in the order in which they were made."""
        return tuple(self._calls.values())
