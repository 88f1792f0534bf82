"""Messages of the API as JSON values: prompts and tool results."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from typing import Any

from agentmesh.backend import Turn
from agentmesh.errors import BackendError
from agentmesh_node.backends.api.values import JsonObject
from agentmesh_node.tools import Result

IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


def prompt(text: str, turn: Turn) -> JsonObject:
    """The message that opens a turn: attachments first, as the API advises, then the prompt.

    Raises:
        BackendError: `details["reason"]` is `bad_attachment`.
    """
    told = [{"type": "text", "text": text}] if text.strip() else []  # the API takes no blank texts; an attachment may be all
    return {"role": "user", "content": [*map(_attachment, turn.attachments), *told]}


def results(found: Sequence[Result]) -> JsonObject:
    """The message that hands tool results over."""
    return {"role": "user", "content": [_result(result) for result in found]}


def noted(message: JsonObject, note: str) -> JsonObject:
    """`message` with a note of the mesh added."""
    return {**message, "content": [*message["content"], {"type": "text", "text": note}]}


def _result(result: Result) -> JsonObject:
    block = {"type": "tool_result", "tool_use_id": result.id, "content": result.text}
    return block if result.ok else {**block, "is_error": True}


def _attachment(attachment: Any) -> JsonObject:
    """A content block for an attachment, by the type of its file name."""
    kind = mimetypes.guess_type(attachment.filename)[0] or ""
    if kind in IMAGES:
        return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": attachment.content}}
    if kind == "application/pdf":
        source = {"type": "base64", "media_type": kind, "data": attachment.content}
    else:
        source = {"type": "text", "media_type": "text/plain", "data": _text(attachment)}
    return {"type": "document", "title": attachment.filename, "source": source}


def _text(attachment: Any) -> str:
    try:
        return base64.b64decode(attachment.content, validate=True).decode()
    except ValueError:
        raise BackendError(
            f"the attachment {attachment.filename!r} is neither an image, a PDF nor text in UTF-8",
            details={"reason": "bad_attachment", "retryable": False},
        ) from None
