"""Codex's notifications as events, token counts and errors of the mesh."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agentmesh.backend import Event
from agentmesh.errors import BackendError
from agentmesh_node.backends.reasons import again_after, by_words, plainly
from agentmesh_node.backends.shapes import MOST_COUNT
from agentmesh_node.tools.calls import shortened

MAX_OUTPUT = 32_000
"""Most characters of a command's output in an event (Codex decides how much the model sees)."""
_STATUS = re.compile(r"\b(?:unexpected status|status:?|last status:) (\d{3})\b")
_DETAILS = re.compile(r",? ?(url|cf-ray|request id|auth error): [^,]*")
"""What Codex adds to a complaint of its provider for the people who look after that."""

REASONS: dict[str, tuple[str, float | None]] = {
    "contextWindowExceeded": ("too_long", None),
    "sessionBudgetExceeded": ("spend_limit", None),
    "usageLimitExceeded": ("spend_limit", None),
    "rateLimitExceeded": ("rate_limited", 10.0),
    "flexUnavailable": ("overloaded", 10.0),
    "serverOverloaded": ("overloaded", 10.0),
    "internalServerError": ("server_error", 5.0),
    "unauthorized": ("unauthenticated", None),
    "forbidden": ("forbidden", None),
    "notFound": ("not_found", None),
    "badRequest": ("bad_request", None),
    "cyberPolicy": ("refused", None),
    "misalignmentPolicyViolation": ("refused", None),
    "tooManyDenials": ("denied", None),
    "sandboxError": ("sandbox", None),
    "httpConnectionFailed": ("connection", 5.0),
    "responseStreamConnectionFailed": ("connection", 5.0),
    "responseStreamDisconnected": ("stream_broken", 1.0),
    "responseTooManyFailedAttempts": ("stream_broken", 5.0),
}
"""Codex's words for errors -> our reason, and the seconds after which to try again (None: trying again does not help)."""
REJECTED = frozenset({"bad_request", "too_long", "refused"})
"""Reasons for which this conversation will never be answered."""
MOST_SAID = 2000
"""Most characters of a complaint that are repeated."""
_LIMIT = re.compile(r"max_output_tokens|incomplete response|reason: max", re.IGNORECASE)
STATUSES: dict[int, str] = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "notFound",
    429: "rateLimitExceeded", 500: "internalServerError",
    502: "serverOverloaded", 503: "serverOverloaded", 529: "serverOverloaded",
}  # fmt: skip
"""HTTP status -> the word for it. A status says more than the word that the connection failed."""


def failure(error: Any) -> BackendError:
    """The error for a turn that Codex gave up; `details` has `reason`, `retryable` and perhaps `retry_after_s`."""
    error = mapping(error)
    said = str(error.get("message") or "Codex gave the turn up without a reason")
    more = error.get("additionalDetails")
    whole = f"{said} {more}" if isinstance(more, str) else said
    word, status = _word(error.get("codexErrorInfo"))
    if status is None and (found := _STATUS.search(said)) is not None:
        status = int(found[1])
    reason, after = _reason(word, status, whole)
    hinted = again_after(whole)
    if hinted is not None and after is not None:
        after = hinted
    details: dict[str, Any] = {"reason": reason, "retryable": after is not None}
    if after is not None:
        details["retry_after_s"] = after
    if reason in REJECTED:
        details["rejected"] = True
    if status is not None:
        details["status"] = status
    return BackendError(in_words(said), details=details)


def _reason(word: str, status: int | None, words: str) -> tuple[str, float | None]:
    """The reason, and the seconds after which to try again."""
    if status is not None:
        word = STATUSES.get(status, word)
    reason, after = REASONS.get(word, ("failed", None))
    if word in ("other", "") and words.startswith("stream disconnected"):
        reason, after = REASONS["responseStreamDisconnected"]
    if _LIMIT.search(words) is not None:
        return "max_tokens", None
    if reason == "failed" and "invalid_request_error" in words:
        reason = "bad_request"
    if reason in ("bad_request", "server_error", "stream_broken", "failed") and (found := by_words(words)) is not None:
        return found, None
    return reason, after


def in_words(message: str) -> str:
    """A message of Codex for people: without the JSON of its provider's error, and without what its makers log."""
    return plainly(_DETAILS.sub("", message)).strip()[:MOST_SAID] or "Codex gave the turn up without a reason"


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _word(info: Any) -> tuple[str, int | None]:
    """Codex's word for an error, and the HTTP status behind it."""
    if isinstance(info, str):
        return info, None
    if isinstance(info, Mapping) and info:
        word, more = next(iter(info.items()))
        status = more.get("httpStatusCode") if isinstance(more, Mapping) else None
        return str(word), status if isinstance(status, int) else None
    return "", None


def tokens(usage: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of one answer of the model, as all backends count them: cached tokens are not part of the input."""
    last = mapping(usage.get("last"))
    read, written = _count(last.get("cachedInputTokens")), _count(last.get("cacheWriteInputTokens"))
    found = {
        "input_tokens": max(0, _count(last.get("inputTokens")) - read - written),
        "output_tokens": _count(last.get("outputTokens")),
        "cache_read_input_tokens": read,
        "cache_write_input_tokens": written,
    }
    return {name: count for name, count in found.items() if count or name in ("input_tokens", "output_tokens")}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_COUNT else 0


def events_of(method: str, params: Mapping[str, Any]) -> list[Event]:
    """The events for a notification; none if it is of no interest, or unknown to this version."""
    match method:
        case "item/agentMessage/delta":
            return [Event.text(str(params.get("delta", "")))]
        case "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta":
            return [Event("thinking", {"text": str(params.get("delta", ""))})]
        case "item/started":
            return _started(mapping(params.get("item")))
        case "item/completed":
            return _completed(mapping(params.get("item")))
    return []


def is_tool(params: Mapping[str, Any]) -> bool:
    """Whether a completed item was the run of a tool."""
    return bool(_use(mapping(params.get("item"))))


def _started(item: Mapping[str, Any]) -> list[Event]:
    use = _use(item)
    return [Event("tool_use", {"id": str(item.get("id", "")), "name": use[0], "input": use[1]})] if use else []


def _completed(item: Mapping[str, Any]) -> list[Event]:
    if not _use(item):
        return []
    text = shortened(_output(item), MAX_OUTPUT)
    ok = item.get("status") == "completed" and item.get("exitCode") in (None, 0) and item.get("success") is not False
    return [Event("tool_result", {"id": str(item.get("id", "")), "ok": ok, "text": text})]


def _use(item: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Name and input of the tool, if the item is the run of one."""
    match item.get("type"):
        case "commandExecution":
            return "shell", {"command": item.get("command"), "cwd": item.get("cwd")}
        case "fileChange":
            changes = [{"path": c.get("path"), "kind": _kind(c.get("kind"))} for c in _objects(item.get("changes"))]
            return "apply_patch", {"changes": changes}
        case "mcpToolCall":
            return f"{item.get('server')}__{item.get('tool')}", item.get("arguments")
        case "dynamicToolCall":
            return str(item.get("tool")), item.get("arguments")
        case "webSearch":
            return "web_search", {"query": item.get("query")}
    return None


def _kind(kind: Any) -> Any:
    return kind.get("type") if isinstance(kind, Mapping) else kind


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects in `value`, if it is a list."""
    return [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []


def _output(item: Mapping[str, Any]) -> str:
    if item.get("aggregatedOutput"):
        return str(item["aggregatedOutput"])
    error = item.get("error")
    if isinstance(error, Mapping):
        return str(error.get("message", ""))
    result = item.get("result")
    contents = item.get("contentItems") or (result.get("content") if isinstance(result, Mapping) else None)
    text = "\n".join(str(part.get("text", "")) for part in _objects(contents))
    return text or ("" if item.get("status") == "completed" else str(item.get("status", "")))
