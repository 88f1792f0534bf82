"""What a tool's answer says to a model.

An answer is read here, as the JSON that came, and not by the SDK, which takes a content block of a kind that it does not know, or
structured content without `content`, for no answer at all: the tool has run by then.
"""

from __future__ import annotations

import json
from typing import Any


def readable(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a call in a form that every reader takes: one text. Other results are returned as they are."""
    if not ({"content", "structuredContent", "isError"} & result.keys()):
        return result
    kept: dict[str, Any] = {name: result[name] for name in ("resultType", "_meta") if name in result}
    return {**kept, "content": [{"type": "text", "text": text_of(result)}], "isError": result.get("isError") is True}


def text_of(result: dict[str, Any]) -> str:
    """The text of an answer: that of its content, else its structured content as JSON. What is no text is named."""
    content = result.get("content")
    parts = [_part(block) for block in content] if isinstance(content, list) else []
    if not parts and result.get("structuredContent") is not None:
        return json.dumps(result["structuredContent"], ensure_ascii=False, separators=(",", ":"))
    return "\n".join(parts)


def _part(block: Any) -> str:
    found = block if isinstance(block, dict) else {}
    kind, text = found.get("type"), found.get("text")
    if kind == "text" and isinstance(text, str):
        return text
    if kind == "resource" and isinstance(found.get("resource"), dict):
        text = found["resource"].get("text")
        if isinstance(text, str):
            return text
        found = {"mimeType": found["resource"].get("mimeType")}
    if kind == "resource_link" and isinstance(found.get("uri"), str):
        return f"[resource_link: {found['uri']}]"
    return f"[{kind if isinstance(kind, str) else 'unknown'}: {found.get('mimeType') or 'not text'}, left out]"
