"""Reading a turn from a transcript of Claude Code: how far it got, and its events. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from agentmesh.backend import Event
from agentmesh_node.backends.claude.options import PREFIX
from agentmesh_node.tools import Call

SYNTHETIC = "<synthetic>"
"""The model that Claude Code names for entries that it wrote itself."""
ANSWERS_BY = "StructuredOutput"
"""The tool by which Claude Code has its model give a typed answer."""
ENDS = ("end_turn", "stop_sequence")
UNREADABLE = (AttributeError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a value raises that has not the form that it should have."""


class Standing(NamedTuple):
    """How far a turn got."""

    entries: list[Mapping[str, Any]]
    """Answers of the model and results of tools, in order."""
    final: str | None
    """The answer, if it was given whole."""
    open: tuple[Call, ...]
    """Tool calls without a result."""

    @property
    def begun(self) -> bool:
        """Whether the model has given anything, which would have to be paid for again."""
        return bool(self.entries)


def standing(entries: Sequence[Mapping[str, Any]], prompt: str) -> Standing:
    """How far the turn got whose prompt is the entry `prompt` (a uuid)."""
    start = next((at for at, entry in enumerate(entries) if entry.get("uuid") == prompt), None)
    turn = [] if start is None else [entry for entry in entries[start + 1 :] if counts(entry)]
    return Standing(turn, _final(turn), _open(turn))


def counts(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is an answer of the model, or gives results of tools to it."""
    if entry.get("isSidechain"):
        return False
    message = entry.get("message") or {}
    if entry.get("type") == "assistant":
        return message.get("model") != SYNTHETIC
    return entry.get("type") == "user" and any(block.get("type") == "tool_result" for block in blocks(message))


def blocks(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The content blocks of a message; a plain text stands for one text block."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content or () if isinstance(block, Mapping)]


def _final(turn: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of the last answer, if the model ended its turn with it."""
    if not turn:
        return None
    if turn[-1].get("type") != "assistant":
        return _typed_answer(turn)
    message = turn[-1]["message"]
    if message.get("stop_reason") not in ENDS or blocks(message)[-1:] == []:
        return None
    if blocks(message)[-1].get("type") != "text":
        return None  # the text is still missing: an answer's blocks are entries of their own
    same = [entry["message"] for entry in turn if entry["message"].get("id") == message.get("id")]
    return "".join(block["text"] for part in same for block in blocks(part) if block.get("type") == "text")


def _typed_answer(turn: Sequence[Mapping[str, Any]]) -> str | None:
    """The typed answer that the last result of a tool acknowledges: Claude Code has the model give it by a tool."""
    taken = {block.get("tool_use_id") for block in blocks(turn[-1]["message"]) if not block.get("is_error")}
    given = (call for call in calls_in(turn) if call.id in taken and call.name == ANSWERS_BY)
    return next((json.dumps(call.input) for call in given), None)


def _open(turn: Sequence[Mapping[str, Any]]) -> tuple[Call, ...]:
    answered = {block.get("tool_use_id") for entry in turn for block in blocks(entry["message"])}
    return tuple(call for call in calls_in(turn) if call.id not in answered)


def calls_in(entries: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
    """The calls of tools that the model makes in `entries`."""
    for entry in entries:
        if entry.get("type") == "assistant":
            for block in blocks(entry.get("message") or {}):
                if block.get("type") == "tool_use":
                    yield Call(block["id"], block["name"], block.get("input"))


def events(turn: Standing, marked: str | None) -> Iterator[Event]:
    """The events of the turn. Those up to the entry `marked` were committed: live readers have them."""
    places = [at for at, entry in enumerate(turn.entries) if entry.get("uuid") == marked]
    upto = places[-1] if places else -1
    for at, entry in enumerate(turn.entries):
        for block in blocks(entry["message"]):
            event = event_of(block, replayed=at <= upto)
            if event is not None:
                yield event
    if turn.entries:
        models = [entry["message"]["model"] for entry in turn.entries if "model" in entry["message"]]
        yield Event("usage", {**tokens(turn), "model": models[-1] if models else ""}, replayed=True)


def event_of(block: Mapping[str, Any], *, replayed: bool = False) -> Event | None:
    """The event for a content block, or None."""
    match block.get("type"):
        case "text":
            return Event("text", {"text": block["text"]}, replayed)
        case "thinking" if block.get("thinking"):
            return Event("thinking", {"text": block["thinking"]}, replayed)
        case "tool_use":
            name = block["name"].removeprefix(PREFIX)
            return Event("tool_use", {"id": block["id"], "name": name, "input": block.get("input")}, replayed)
        case "tool_result":
            ok = not block.get("is_error")
            return Event("tool_result", {"id": block.get("tool_use_id", ""), "ok": ok, "text": text_of(block)}, replayed)
    return None


def text_of(block: Mapping[str, Any]) -> str:
    """The text of a tool result; other content is named by its type."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, Mapping) else {} for part in content]
    return "\n".join(part["text"] if part.get("type") == "text" else f"[{part.get('type', 'unknown')}]" for part in parts)


def tokens(turn: Standing) -> dict[str, int]:
    """The tokens of the turn's answers."""
    total: dict[str, int] = {}
    for usage in {entry["message"].get("id"): entry["message"].get("usage") for entry in turn.entries}.values():
        total = added(total, tokens_of(usage or {}))
    return total


def added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Both counts together."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def tokens_of(usage: Mapping[str, Any]) -> dict[str, int]:
    """The API's counters under the names that usage events have."""
    return {
        "input_tokens": int(usage.get("input_tokens") or 0),
        "output_tokens": int(usage.get("output_tokens") or 0),
        "cache_read_input_tokens": int(usage.get("cache_read_input_tokens") or 0),
        "cache_write_input_tokens": int(usage.get("cache_creation_input_tokens") or 0),
    }
