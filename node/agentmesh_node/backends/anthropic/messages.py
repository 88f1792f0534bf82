"""Messages of the API as JSON values: prompts, tool results, answers."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agentmesh.backend import Turn
from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.failures import failure
from agentmesh_node.tools import Call, Result
from agentmesh_node.tools.loop_steps import ModelAnswer

if TYPE_CHECKING:
    from anthropic.types.beta import BetaMessage, BetaUsage

type JsonObject = dict[str, Any]
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


def reply(message: BetaMessage) -> ModelAnswer:
    """A complete answer.

    Raises:
        BackendError: it ended in a way that makes it useless: `refused`, `too_long`, `max_tokens`, `stream_broken`.
    """
    blocks = [block.model_dump(mode="json", exclude_unset=True) for block in message.content]
    calls = tuple(Call(b["id"], b["name"], b.get("input")) for b in blocks if b["type"] == "tool_use")
    stop = _usable(message, calls)
    # Models give empty answers and blank texts, but the API refuses both in a history: they would fail every further turn.
    kept, compacted = _compacted([block for block in blocks if block["type"] != "text" or block["text"].strip()])
    return ModelAnswer(
        message={"role": "assistant", "content": kept} if kept else None,
        text="".join(b["text"] for b in kept if b["type"] == "text"),
        thinking="".join(b["thinking"] for b in kept if b["type"] == "thinking"),
        calls=calls,
        stop=stop,
        model=message.model,
        usage=usage(message.usage),
        goes_on=stop in ("pause_turn", "compaction"),
        compacted=compacted,
    )


def usage(counted: BetaUsage) -> dict[str, int]:
    """The tokens of one call. Where the API lists iterations (a compaction is one of its own) they are added up."""
    parts: Iterable[Any] = counted.iterations or (counted,)
    found = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"), 0)
    for part in parts:
        found["input_tokens"] += part.input_tokens
        found["output_tokens"] += part.output_tokens
        found["cache_read_input_tokens"] += part.cache_read_input_tokens or 0
        found["cache_write_input_tokens"] += part.cache_creation_input_tokens or 0
    return found


def _usable(message: BetaMessage, calls: tuple[Call, ...]) -> str:
    """The stop reason of an answer that can be used."""
    stop = message.stop_reason
    if stop is None:
        raise failure("stream_broken", "the API's answer ended too early")
    if stop == "refusal":
        category = getattr(message.stop_details, "category", None)
        raise failure("refused", "the model refuses to answer this", category=category)
    if stop == "model_context_window_exceeded":
        raise failure("too_long", "the model's context is full")
    if stop == "max_tokens" and (calls or not message.content):
        raise failure("max_tokens", "the answer was cut off in the middle of a tool call")
    return stop


def _compacted(blocks: list[JsonObject]) -> tuple[list[JsonObject], bool]:
    """The blocks from the newest summary on (the API drops the blocks before it itself), and whether there is a summary."""
    at = max((i for i, b in enumerate(blocks) if b["type"] == "compaction" and b.get("content") is not None), default=None)
    return (blocks, False) if at is None else (blocks[at:], True)


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
