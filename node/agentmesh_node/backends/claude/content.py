"""A prompt with its attachments, as the content of a user message."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from typing import Any

from agentmesh_node.backends.claude.failures import refused

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def content(prompt: str, attachments: Sequence[Any]) -> str | list[dict[str, Any]]:
    """The prompt, after its attachments if there are any.

    Raises:
        BackendError: an attachment is neither an image, a PDF nor text; `details["reason"]` is `bad_attachment`.
    """
    if not attachments:
        return prompt
    told = [{"type": "text", "text": prompt}] if prompt.strip() else []  # the API takes no blank texts
    return [*(_block(attachment) for attachment in attachments), *told]


def noted(told: str | list[dict[str, Any]], notice: str | None) -> str | list[dict[str, Any]]:
    """What is told to Claude Code, with a notice of the mesh behind it."""
    if notice is None:
        return told
    return f"{told}\n\n{notice}" if isinstance(told, str) else [*told, {"type": "text", "text": notice}]


def _block(attachment: Any) -> dict[str, Any]:
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
        raise refused("bad_attachment", f"{attachment.filename!r} is neither an image, a PDF nor text in UTF-8") from None
