"""Failures of the API as one typed error: `BackendError` with a stable `reason`, and whether trying again may help.

docs/backends.md has the table. The SDK's exceptions never leave this package, and their texts leave it without credentials.
"""

from __future__ import annotations

import email.utils
import json
from collections.abc import Mapping
from typing import Any

from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BackendError

RETRYABLE = frozenset({"rate_limited", "overloaded", "server_error", "timed_out", "connection", "stream_broken", "conflict"})
"""Reasons for which the same request may succeed later."""
REJECTED = frozenset({"bad_request", "too_long", "refused"})
"""Reasons for which these messages will never be answered: the session stays as it was before the turn."""

_BY_TYPE = {
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "api_error": "server_error",
    "timeout_error": "timed_out",
    "authentication_error": "unauthenticated",
    "permission_error": "forbidden",
    "billing_error": "spend_limit",
    "not_found_error": "not_found",
    "conflict_error": "conflict",
    "request_too_large": "too_long",
    "invalid_request_error": "bad_request",
}
_BY_STATUS = {
    401: "unauthenticated", 402: "spend_limit", 403: "forbidden", 404: "not_found", 408: "timed_out", 409: "conflict",
    413: "too_long", 429: "rate_limited", 503: "overloaded", 504: "timed_out", 529: "overloaded",
}  # fmt: skip
_NEXT = {
    "unauthenticated": "check the credentials in the node's environment",
    "no_credentials": "set ANTHROPIC_API_KEY, or a workload identity, in the node's environment",
    "forbidden": "the credentials do not allow this",
    "spend_limit": "the account's spending is at its limit",
    "not_found": "give the agent another model: `mesh set AGENT --backend-option model=...`",
    "too_long": "the conversation is too long for the model: send less, or give the agent the option compact_at, or a model with "
    "more room: `mesh set AGENT --backend-option compact_at=150000`",
    "max_tokens": "raise the option max_tokens: `mesh set AGENT --backend-option max_tokens=...`",
}
"""What to do next, for reasons that do not say it themselves."""


def failure(reason: str, message: str, **details: Any) -> BackendError:
    """The error for `reason`."""
    hint = _NEXT.get(reason)
    marks: dict[str, Any] = {"reason": reason, "retryable": reason in RETRYABLE}
    if reason in REJECTED:
        marks["rejected"] = True
    known = {name: value for name, value in details.items() if value is not None}
    return BackendError(f"{message}; {hint}" if hint else message, details={**marks, **known})


def translated(error: Exception, secrets: tuple[str, ...]) -> BackendError | None:
    """The error for an exception of the SDK, or of its transport; None if the exception is a defect of our own."""
    import anthropic  # noqa: PLC0415 - loaded already where this is called
    import httpx2  # noqa: PLC0415

    match error:
        case anthropic.APIStatusError():
            return _status(error, secrets)
        case anthropic.APITimeoutError() | anthropic.DeadlineExceededError() | httpx2.TimeoutException():
            return failure("timed_out", "the API did not answer in time")
        case anthropic.APIConnectionError():
            return failure("connection", f"the API cannot be reached: {type(error.__cause__ or error).__name__}")
        case anthropic.CredentialsError():
            return failure("no_credentials", "there are no usable credentials for the API")
        case anthropic.RetryableError():
            return failure("server_error", struck(f"the API asked for another try: {error}", secrets))
        case anthropic.AnthropicError():
            return failure("server_error", struck(f"the API gave an answer that cannot be read: {type(error).__name__}", secrets))
        case httpx2.HTTPError() | json.JSONDecodeError():
            return failure("stream_broken", f"the API's answer broke off: {type(error).__name__}")
        case TypeError() if "authentication" in str(error):
            return failure("no_credentials", "there are no credentials for the API")
    return None


def _status(error: Any, secrets: tuple[str, ...]) -> BackendError:
    reason = _reason(error)
    text = error.api_message or f"status {error.status_code}"
    return failure(
        reason,
        struck(f"the API refused: {text}", secrets),
        status=error.status_code,
        type=error.type,
        error_code=error.error_code,
        request_id=error.request_id,
        retry_after_s=retry_after(error.response.headers) if reason in RETRYABLE else None,
    )


def _reason(error: Any) -> str:
    if error.error_code and ("spend_limit" in error.error_code or "billing" in error.error_code):
        return "spend_limit"
    reason = _BY_TYPE.get(error.type) or _BY_STATUS.get(error.status_code)
    if reason is None:
        reason = "server_error" if error.status_code >= 500 else "bad_request"
    if reason == "bad_request" and "too long" in (error.api_message or ""):
        return "too_long"  # the API has no code of its own for it
    return reason


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds after which the API wants to be asked again, if it says so."""
    try:
        return float(headers["retry-after-ms"]) / 1000
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(date) - SYSTEM.now()) if date else None


def struck(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with the secrets in it struck out: a gateway may repeat a header in its error."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
