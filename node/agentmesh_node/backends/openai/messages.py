"""Messages as the session keeps them, and as each of the two APIs wants them.

One form serves both, so that an agent may change from one API to the other in the middle of its conversation:

    {"role": "user", "parts": [part, ...]}            parts in the form of Chat Completions
    {"role": "assistant", "text", "calls": [{"id", "name", "arguments"}, ...], "reasoning", "items": [...]}
    {"role": "tool", "results": [{"id", "ok", "text"}, ...], "notes": [text, ...]}

`items` are what Responses wants back as it was given: reasoning that is encrypted. Other APIs are not sent it.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterator, Sequence
from typing import Any

from agentmesh.backend import Turn
from agentmesh.errors import BackendError
from agentmesh_node.backends.api.values import JsonObject
from agentmesh_node.tools import Result

IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
PDF = "application/pdf"


# --- what the session keeps -------------------------------------------------------------------------------------------
def prompt(text: str, turn: Turn) -> JsonObject:
    """The message that opens a turn: attachments first, then the prompt.

    Raises:
        BackendError: `details["reason"]` is `bad_attachment`.
    """
    told = [_text_part(text)] if text.strip() else []  # blank texts are refused by some servers; an attachment may be all
    return {"role": "user", "parts": [*map(_attachment, turn.attachments), *told]}


def results(found: Sequence[Result]) -> JsonObject:
    """The message that hands tool results over."""
    return {"role": "tool", "results": [{"id": result.id, "ok": result.ok, "text": result.text} for result in found]}


def noted(message: JsonObject, note: str) -> JsonObject:
    """`message` with a note of the mesh added."""
    if message["role"] == "tool":
        return {**message, "notes": [*message.get("notes", ()), note]}
    return {**message, "parts": [*message["parts"], _text_part(note)]}


def _text_part(text: str) -> JsonObject:
    return {"type": "text", "text": text}


def _attachment(attachment: Any) -> JsonObject:
    """A part for an attachment, by the type of its file name."""
    kind = mimetypes.guess_type(attachment.filename)[0] or ""
    address = f"data:{kind};base64,{attachment.content}"
    if kind in IMAGES:
        return {"type": "image_url", "image_url": {"url": address}}
    if kind == PDF:
        return {"type": "file", "file": {"filename": attachment.filename, "file_data": address}}
    return _text_part(f"{attachment.filename}:\n\n{_text(attachment)}")


def _text(attachment: Any) -> str:
    try:
        return base64.b64decode(attachment.content, validate=True).decode()
    except ValueError:
        raise BackendError(
            f"the attachment {attachment.filename!r} is neither an image, a PDF nor text in UTF-8",
            details={"reason": "bad_attachment", "retryable": False},
        ) from None


# --- Chat Completions -------------------------------------------------------------------------------------------------
def for_chat(history: Sequence[Any], system: str | None, *, reasoning: bool) -> list[JsonObject]:
    """The messages of a request.

    Args:
        reasoning: whether what the model reasoned goes with its answers.
    """
    found: list[JsonObject] = [] if system is None else [{"role": "system", "content": system}]
    for message in history:
        found.extend(_chat(message, reasoning))
    return found


def _chat(message: Any, reasoning: bool) -> Iterator[JsonObject]:
    match message["role"]:
        case "user":
            yield {"role": "user", "content": _plain(message["parts"])}
        case "tool":
            for result in message["results"]:
                yield {"role": "tool", "tool_call_id": result["id"], "content": _told(result)}
            for note in message.get("notes", ()):
                yield {"role": "user", "content": note}
        case _:
            sent: JsonObject = {"role": "assistant", "content": message.get("text") or None}
            if message.get("calls"):
                sent["tool_calls"] = [_chat_call(call) for call in message["calls"]]
            if reasoning and message.get("reasoning"):
                sent["reasoning_content"] = message["reasoning"]
            yield sent


def _plain(parts: list[JsonObject]) -> Any:
    """Parts as one text where they are nothing else: many servers take no parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


def _chat_call(call: JsonObject) -> JsonObject:
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}


def _told(result: JsonObject) -> str:
    """A result's text. The API has no mark for one that failed."""
    text: str = result["text"]
    return text if result["ok"] else f"error: {text}"


# --- Responses --------------------------------------------------------------------------------------------------------
def for_responses(history: Sequence[Any]) -> list[JsonObject]:
    """The input of a request."""
    return [item for message in history for item in _items(message)]


def _items(message: Any) -> Iterator[JsonObject]:
    match message["role"]:
        case "user":
            yield {"role": "user", "content": [_input_part(part) for part in message["parts"]]}
        case "tool":
            for result in message["results"]:
                yield {"type": "function_call_output", "call_id": result["id"], "output": _told(result)}
            for note in message.get("notes", ()):
                yield {"role": "user", "content": [{"type": "input_text", "text": note}]}
        case _:
            yield from message.get("items", ())
            if message.get("text"):
                # llama.cpp's server refuses an answer without its type, which the API calls optional.
                said = {"type": "output_text", "text": message["text"]}
                yield {"type": "message", "role": "assistant", "content": [said]}
            for call in message.get("calls", ()):
                yield {"type": "function_call", "call_id": call["id"], "name": call["name"], "arguments": call["arguments"]}


def _input_part(part: JsonObject) -> JsonObject:
    match part["type"]:
        case "image_url":
            return {"type": "input_image", "image_url": part["image_url"]["url"]}
        case "file":
            return {"type": "input_file", **part["file"]}
    return {"type": "input_text", "text": part["text"]}
