"""Printing: data on stdout, as text or as the wire's own JSON; messages on stderr.

Columns need their widths and nothing else, so tables are not rich's.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agentmesh.budget import COSTS
from agentmesh.control_values import OpenRequest
from agentmesh.wire import Outcome, encode_outcome
from agentmesh_client.cli.common import GlobalOptions
from agentmesh_client.results import PollResult

DIGITS = 4
"""Decimal places of dollars that people are shown."""
LEAST_SHOWN = 0.0001
_COLOURS = {"running": "32", "failed": "31", "stopping": "33", "wanted": "33", "stopped": "2"}


class Printer:
    """Prints in the way that the global options ask for."""

    def __init__(self, options: GlobalOptions) -> None:
        self._output = options.output
        self._quiet = options.quiet

    @property
    def as_json(self) -> bool:
        """Whether stdout gets JSON."""
        return self._output != "text"

    def value(self, value: object, text: str) -> None:
        """Print one value: as JSON, or as `text`."""
        print(json_text(value) if self.as_json else text)

    def table(
        self, items: Sequence[object], columns: Sequence[str], row: Callable[[Any], Sequence[str]], *, nothing: str
    ) -> None:
        """Print a list: one JSON array, a line of JSON each, or aligned columns; to people `nothing`, if it is empty."""
        if self._output == "json":
            print("[" + ",".join(json_text(item) for item in items) + "]")
        elif self._output == "jsonl":
            for item in items:
                print(json_text(item))
        elif items:
            print(aligned(columns, [row(item) for item in items], colour=colour_wanted()))
        else:
            self.note(nothing)

    def note(self, text: str) -> None:
        """Tell the user something that is not data."""
        if not self._quiet:
            print(f"mesh: {text}", file=sys.stderr)

    def failure(self, outcome: Outcome) -> None:
        """Print an outcome that is an error: as JSON it is data."""
        if self.as_json:
            print(json_text(outcome))
        else:
            error = outcome.error
            print(f"mesh: {error.code}: {error.message}" if error else "mesh: the task failed", file=sys.stderr)


def json_text(value: object) -> str:
    """JSON of `value`, as it travels on the wire."""
    if isinstance(value, Outcome):
        return encode_outcome(value).decode()
    if isinstance(value, PollResult):
        shown: dict[str, object] = {"v": 1, "status": value.status}
        if value.outcome is not None:
            shown["outcome"] = msgspec.Raw(encode_outcome(value.outcome))
        value = shown
    return msgspec.json.encode(value).decode()


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], *, colour: bool = False) -> str:
    """A table without lines. The last column is as wide as it must be; statuses have colours if `colour`."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if colour:
            cells = [_coloured(cell, _COLOURS.get(raw)) for raw, cell in zip(row, cells, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _coloured(text: str, colour: str | None) -> str:
    return text if colour is None else f"\x1b[{colour}m{text}\x1b[0m"


def one_line(text: str | None, width: int = 60) -> str:
    """`text` for a cell: on one line, and not too long; `-` for none."""
    flat = " ".join((text or "").split())
    return (flat if len(flat) <= width else flat[: width - 1] + "…") or "-"


def dollars(amount: float) -> str:
    """An amount of money, as exact as people want it."""
    return f"${amount:.4f}" if amount == 0 or amount >= LEAST_SHOWN else f"<${LEAST_SHOWN}"


def usage_text(usage: dict[str, Any]) -> str:
    """What was used, as JSON with the money rounded."""
    return msgspec.json.encode(_rounded(usage)).decode()


def _rounded(usage: dict[str, Any]) -> dict[str, Any]:
    shown = dict(usage)
    for name, value in usage.items():
        if isinstance(value, dict):
            shown[name] = _rounded(value)
        elif name in COSTS and isinstance(value, float):
            shown[name] = round(value, DIGITS) or value
    return shown


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """Lines of `name  value`."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def open_text(request: OpenRequest) -> str:
    """A deferred request on a line."""
    parts = [f"request {request.ref} of {request.sender or 'outside'}"]
    if request.since:
        parts.append(f"deferred {age(request.since)} ago")
    if request.deadline:
        parts.append(f"until {request.deadline}")
    if request.exclusive:
        parts.append("exclusive")
    return ", ".join(parts)


def age(moment: str | None, now: dt.datetime | None = None) -> str:
    """How long ago an RFC 3339 time was: `5s`, `3m`, `2h`, `9d`; `-` if it is not known."""
    try:
        then = dt.datetime.fromisoformat(moment or "")
        seconds = int(((now or dt.datetime.now(dt.UTC)) - then).total_seconds())
    except (ValueError, TypeError):
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def until(moment: dt.datetime | None, now: dt.datetime | None = None) -> str:
    """When a time comes or came: `in 5m`, `2h ago`; `-` if there is none."""
    if moment is None:
        return "-"
    now = now or dt.datetime.now(dt.UTC)
    return f"in {age(now.isoformat(), moment)}" if moment > now else f"{age(moment.isoformat(), now)} ago"


def colour_wanted() -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
