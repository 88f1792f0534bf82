"""What the fake Messages API server can answer, and how that looks on the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

MODEL = "fake-model"


class Tool(msgspec.Struct, frozen=True):
    """A tool call in an answer. Without an id it gets one that no other call of this server has."""

    name: str
    input: dict[str, Any] = {}
    id: str = ""
    sent: str | None = None
    """The input's text as it is sent, if that is not all of `input`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the model. Thinking comes first, then text, then the tool calls."""

    text: str = ""
    thinking: str = ""
    tools: Sequence[Tool] = ()
    blocks: Sequence[dict[str, Any]] = ()
    """Content blocks as they are (server tools, compaction, ...), ahead of all else."""
    stop_reason: str = ""
    """`tool_use` where there are tool calls, else `end_turn`, unless given."""
    stop_details: dict[str, Any] | None = None
    input_tokens: int = 10
    output_tokens: int = 5
    cache_read: int = 0
    cache_write: int = 0
    chunk: int = 8
    """Characters in one delta."""
    delay_s: float = 0.0
    """Time between two deltas."""
    break_after: int | None = None
    """The stream breaks behind this many of its events: see `how`."""
    how: Literal["cut", "end", "error", "garbage"] = "cut"
    """`cut` resets the connection, `end` ends the body in order but too early, `error` sends an `overloaded_error` event,
    `garbage` sends an event that is no JSON."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """An error answer."""

    status: int = 529
    kind: str = ""
    """The API's error type; the usual one for the status unless given."""
    message: str = "scripted refusal"
    retry_after_s: float | None = None
    headers: dict[str, str] = {}


type Item = str | Answer | Refusal
KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip


def model_body(name: str) -> dict[str, Any]:
    return {"id": name, "type": "model", "display_name": "Fake", "created_at": "2026-01-01T00:00:00Z"}


def error_body(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def message_of(answer: Answer, model: str, tool_id: Callable[[], str]) -> dict[str, Any]:
    content: list[dict[str, Any]] = list(answer.blocks)
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": "c2lnbmF0dXJl"})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    content += [
        {"type": "tool_use", "id": t.id or tool_id(), "name": t.name, "input": t.input if t.sent is None else t.sent}
        for t in answer.tools
    ]
    return {
        "id": f"msg_{time.monotonic_ns():x}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": answer.stop_reason or ("tool_use" if answer.tools else "end_turn"),
        "stop_sequence": None,
        **({"stop_details": answer.stop_details} if answer.stop_details else {}),
        "usage": {
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
            "cache_read_input_tokens": answer.cache_read,
            "cache_creation_input_tokens": answer.cache_write,
        },
    }


def events_of(message: dict[str, Any], chunk: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events that stream `message`."""
    usage = message["usage"]
    opening = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    opening.pop("stop_details", None)
    yield "message_start", {"type": "message_start", "message": opening}
    yield "ping", {"type": "ping"}
    for index, block in enumerate(message["content"]):
        empty, deltas = _deltas(block, chunk)
        yield "content_block_start", {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": index}
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    if "stop_details" in message:
        ending["stop_details"] = message["stop_details"]
    yield "message_delta", {"type": "message_delta", "delta": ending, "usage": usage}
    yield "message_stop", {"type": "message_stop"}


def _deltas(block: dict[str, Any], chunk: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block as it is opened, and what fills it."""

    def cut(text: str) -> list[str]:
        return [text[at : at + chunk] for at in range(0, len(text), chunk)]

    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": part} for part in cut(block["text"])]
        case "thinking":
            parts: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": part} for part in cut(block["thinking"])]
            return {"type": "thinking", "thinking": "", "signature": ""}, [
                *parts,
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        case "tool_use":
            text = block["input"] if isinstance(block["input"], str) else json.dumps(block["input"])
            parts = [{"type": "input_json_delta", "partial_json": part} for part in cut(text)]
            return {**block, "input": {}}, parts
    return block, []


def items(values: Sequence[Any]) -> list[Item]:
    """A script from plain data: text, the fields of an `Answer`, or those of a `Refusal` (an object with `status`)."""
    found: list[Item] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif "status" in value:
            found.append(msgspec.convert(value, Refusal))
        else:
            found.append(msgspec.convert(value, Answer))
    return found
