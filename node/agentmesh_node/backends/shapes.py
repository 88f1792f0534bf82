"""The shape of events. A backend that passes on what another program says holds its events to it (case 403)."""

from __future__ import annotations

from agentmesh.backend import Event
from agentmesh.strict_json import MOST_DEPTH

COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens", "tool_calls")
MOST_COUNT = 2**53


class Misshapen(ValueError):
    """What was said has not the form that it should have."""


def shaped(event: Event) -> Event:
    """`event`, if its data have the form that the backend contract asks for.

    Raises:
        Misshapen: they have not.
    """
    data = event.data
    match event.kind:
        case "text" | "thinking":
            sound = isinstance(data.get("text"), str)
        case "tool_use":
            sound = isinstance(data.get("id"), str) and isinstance(data.get("name"), str) and _is_shallow(data.get("input"))
        case "tool_result":
            sound = isinstance(data.get("id"), str) and isinstance(data.get("text"), str)
        case "usage":
            sound = all(_is_count(data[name]) for name in COUNTS if name in data) and isinstance(data.get("model", ""), str)
        case "result":
            sound = isinstance(data.get("text", ""), str)
        case _:
            sound = True
    if not sound:
        raise Misshapen(f"a {event.kind} of another form: {str(data)[:200]}")
    return event


def _is_shallow(value: object, left: int = MOST_DEPTH) -> bool:
    if not isinstance(value, dict | list):
        return True
    return left > 0 and all(_is_shallow(item, left - 1) for item in (value.values() if isinstance(value, dict) else value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT
