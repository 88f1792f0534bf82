"""Failures of Claude Code: a stable `reason`, and whether trying again may help. docs/backends.md has the table."""

from __future__ import annotations

from typing import Any

from agentmesh.backend import Event
from agentmesh.errors import BackendError, BadAnswer, BudgetExceeded
from agentmesh_node.backends.reasons import by_words

RETRY_AFTER_S = {
    "rate_limited": 60.0, "overloaded": 30.0, "server_error": 10.0, "connection": 10.0, "crashed": 1.0, "bad_output": 1.0,
    "start_timeout": 5.0, "store_unavailable": 5.0,
}  # fmt: skip
"""Reasons for which the same prompt may succeed later -> seconds to wait before a try, if nothing better is known."""
NEXT = {
    "unauthenticated": "check ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN in the node's environment",
    "forbidden": "the credentials do not allow this",
    "spend_limit": "the account's spending is at its limit",
    "not_found": "give the agent another model: `mesh set AGENT --backend-option model=...`",
    "max_turns": "prompt it to go on, or raise the option max_turns: `mesh set AGENT --backend-option max_turns=...`",
    "budget_exceeded": "raise the option max_budget_usd: `mesh set AGENT --backend-option max_budget_usd=...`",
    "store_unavailable": "its transcript cannot be kept, so it could not go on elsewhere",
}
"""What to do next, for reasons that do not say it themselves."""

_BY_KIND = {
    "authentication_failed": "unauthenticated",
    "billing_error": "spend_limit",
    "rate_limit": "rate_limited",
    "overloaded": "overloaded",
    "invalid_request": "bad_request",
    "model_not_found": "not_found",
    "max_output_tokens": "max_tokens",
}
_BY_STATUS = {
    400: "bad_request", 401: "unauthenticated", 402: "spend_limit", 403: "forbidden", 404: "not_found", 413: "too_long",
    429: "rate_limited", 503: "overloaded", 529: "overloaded",
}  # fmt: skip
_BY_TERMINAL = {"prompt_too_long": "too_long", "blocking_limit": "too_long", "malformed_tool_use_exhausted": "max_tokens"}
_BY_SUBTYPE = {
    "error_max_turns": "max_turns",
    "error_max_budget_usd": "budget_exceeded",
    "error_max_structured_output_retries": "bad_answer",
}
_CODES = {"budget_exceeded": BudgetExceeded.code, "bad_answer": BadAnswer.code}
"""Reasons for which the error has a code of its own."""


def reason_of(subtype: str, kind: str | None, status: int | None, *, words: str = "", terminal: str | None = None) -> str:
    """The reason of an error result.

    Args:
        kind: the kind of error in the answer before it.
        status: the API's.
        words: what the error says.
        terminal: why Claude Code says that its run ended.
    """
    if subtype in _BY_SUBTYPE:
        return _BY_SUBTYPE[subtype]
    if terminal in _BY_TERMINAL:
        return _BY_TERMINAL[terminal]
    reason = _by_status(kind, status)
    return by_words(words) or reason if reason in ("bad_request", "server_error", "failed") else reason


def _by_status(kind: str | None, status: int | None) -> str:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if kind in _BY_KIND:
        return _BY_KIND[kind]
    if status is not None:
        return "server_error" if status >= 500 else "failed"
    # Without a status the API was not reached, or its answer broke off.
    return "connection" if kind in ("server_error", "unknown") else "failed"


def details(reason: str, retry_after_s: float | None = None, **more: Any) -> dict[str, Any]:
    """The details of an error with this reason."""
    found: dict[str, Any] = {"reason": reason, "retryable": reason in RETRY_AFTER_S}
    if reason in RETRY_AFTER_S:
        found["retry_after_s"] = retry_after_s if retry_after_s is not None else RETRY_AFTER_S[reason]
    if reason in _CODES:
        found["code"] = _CODES[reason]
    return {**found, **{name: value for name, value in more.items() if value is not None}}


def failed(reason: str, message: str, retry_after_s: float | None = None, **more: Any) -> Event:
    """The terminal event for a turn that failed."""
    hint = NEXT.get(reason)
    text = f"{message}; {hint}" if hint else message
    return Event("error", {"message": text, **details(reason, retry_after_s, **more)})


def refused(reason: str, message: str) -> BackendError:
    """The error for a turn that cannot begin."""
    return BackendError(message, details=details(reason))
