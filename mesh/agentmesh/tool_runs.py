"""The tools that ran in a turn and how each ended: for outcomes, the history, and the note that a later turn gets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Raw

MAX_NOTE = 4096
"""Most bytes of a note, in UTF-8."""
OK = "ok"
MAY_BE_DONE = "interrupted; it may have been done"
"""The end of a call that was begun and has no result."""
INTERRUPTED = "interrupted"
"""The same, in one word."""
_MOST_NAMES = 64
"""Names that a count of runs has; the others are counted under `OTHERS`."""
OTHERS = "others"
_NAME = 128
_TEXT = 300
"""Characters of arguments, and of a result, that are kept of one run."""


class ToolRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call of a tool, and how it ended."""

    name: str
    end: str = INTERRUPTED
    """`ok`; `interrupted`: it has no result and may have been done; else the word for what went wrong."""
    arguments: str = ""
    """The beginning of its arguments, as JSON."""
    text: str = ""
    """The beginning of its result."""
    id: str = ""
    """The call's id within its turn."""


type Counts = dict[str, dict[str, int]]
"""Per tool how often it ended in which way."""


def run_of(name: str, arguments: Any, id: str = "") -> ToolRun:
    """A call that has no result yet."""
    try:
        as_json = msgspec.json.encode(arguments).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        as_json = "?"
    return ToolRun(_sound(name)[:_NAME], arguments=shortened(as_json, _TEXT), id=id)


def ended(run: ToolRun, *, ok: bool, text: str, error: str | None) -> ToolRun:
    """`run` with its result."""
    end = OK if ok else _sound(error or "failed")[:_NAME]
    return msgspec.structs.replace(run, end=end, text=shortened(_sound(text), _TEXT))


def counted(runs: Iterable[ToolRun]) -> Counts:
    """How often each tool ended in which way."""
    found: Counts = {}
    for run in runs:
        name = run.name if run.name in found or len(found) < _MOST_NAMES else OTHERS
        ends = found.setdefault(name, {})
        ends[run.end] = ends.get(run.end, 0) + 1
    return found


def shown(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Counts as a line for people: `pay 2 ok, 1 interrupted; look 1 ok`."""
    parts = (f"{name} " + ", ".join(f"{number} {end}" for end, number in ends.items()) for name, ends in counts.items())
    return "; ".join(parts)


# --- from steps -------------------------------------------------------------------------------------------------------
def runs_in(steps: Iterable[Raw]) -> tuple[ToolRun, ...]:
    """The runs that a turn's steps tell of. Steps of a backend that has a form of its own tell of none."""
    runs: dict[str, ToolRun] = {}
    for raw in steps:
        step = msgspec.json.decode(raw)
        if not isinstance(step, dict):
            continue
        match step.get("step"):
            case "answer":
                for call in _each(step.get("calls")):
                    _begin(runs, call)
            case "intent":
                given = step.get("call")
                _begin(runs, given if isinstance(given, dict) else step)
            case "result" | "ran":
                result = step.get("result")
                if isinstance(result, dict):
                    _begin(runs, result)
                    _end(runs, result)
            case "saved":
                for event in _each(step.get("events")):
                    data = event.get("data")
                    if isinstance(data, dict) and event.get("kind") in ("tool_use", "tool_result"):
                        (_begin if event["kind"] == "tool_use" else _end)(runs, data)
    return tuple(runs.values())


def is_without_messages(first: Raw) -> bool:
    """Whether a turn whose first step is this one belongs to a backend whose steps name calls but hold no messages: what it did
    can only be told by a note."""
    step = msgspec.json.decode(first)
    return isinstance(step, dict) and step.get("step") in ("session", "kept", "saved", "intent", "ran", "result")


def are_hidden(first: Raw) -> bool:
    """Whether the model of a turn whose first step is this one was told nothing of earlier turns, because it refused to be."""
    step = msgspec.json.decode(first)
    return isinstance(step, dict) and step.get("earlier") == "not"


def merged(told: Iterable[ToolRun], steps: Iterable[Raw]) -> tuple[ToolRun, ...]:
    """The runs that a turn's events told of, with the ends that its steps have of those that had none yet; and those that only
    the steps have."""
    committed = {run.id: run for run in runs_in(steps)}
    known = tuple(committed.get(run.id, run) if run.end == INTERRUPTED else run for run in told)
    ids = {run.id for run in known}
    return (*known, *(run for id, run in committed.items() if id not in ids))


def _each(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _begin(runs: dict[str, ToolRun], call: Mapping[str, Any]) -> None:
    name = str(call.get("name") or "")
    if name:
        id = str(call.get("id"))
        runs.setdefault(id, run_of(name, call.get("input"), id))


def _end(runs: dict[str, ToolRun], result: Mapping[str, Any]) -> None:
    run = runs.get(str(result.get("id")))
    if run is not None:
        error = result.get("error")
        text, ok = str(result.get("text") or ""), bool(result.get("ok"))
        runs[str(result.get("id"))] = ended(run, ok=ok, text=text, error=str(error) if error else None)


# --- the note ---------------------------------------------------------------------------------------------------------
def note_of(number: int, prompt: str, why: str, runs: Iterable[ToolRun]) -> str | None:
    """What a turn did, as a text of at most `MAX_NOTE` bytes; None if it ran no tool.

    Args:
        number: the turn's number.
        prompt: what it was asked.
        why: how it ended, as an error's code or reason.
        runs: its calls of tools. Where not all fit with their arguments, these are cut; where they do not fit even so, the calls
            are counted by tool and end.
    """
    calls = list(runs)
    if not calls:
        return None
    head = (
        f"[Note of the mesh: turn {number} of this conversation ({shortened(_line(prompt), 120)!r}) ended early ({why}), and its "
        "messages are not shown. Its tools ran all the same:"
    )
    for most in (_TEXT, 120, 40, 0):
        text = "\n".join([head, *(_told(run, most) for run in calls)]) + "]"
        if _size(text) <= MAX_NOTE:
            return text
    room = MAX_NOTE - _size(head) - 64
    return f"{head}\n{_cut(shown(counted(calls)), room)}]"


def _told(run: ToolRun, most: int) -> str:
    """One call in a line."""
    end = MAY_BE_DONE if run.end == INTERRUPTED else run.end
    arguments = shortened(run.arguments, most) if most else "..."
    text = f": {shortened(_line(run.text), most)}" if most and run.text else ""
    return f"- {run.name}({arguments}): {end}{text}"


def shortened(text: str, most: int) -> str:
    """`text`, cut to `most` characters."""
    return text if len(text) <= most else text[: max(0, most - 3)] + "..."


def _cut(text: str, room: int) -> str:
    return text if _size(text) <= room else text.encode()[: room - 3].decode(errors="ignore") + "..."


def _line(text: str) -> str:
    return " ".join(text.split())


def _size(text: str) -> int:
    return len(text.encode())


def _sound(text: str) -> str:
    return text if text.isascii() else text.encode(errors="replace").decode()
