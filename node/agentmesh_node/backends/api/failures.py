"""Failures of a model's API as one typed error: `BackendError` with a stable `reason`, and whether trying again may help.

docs/backends.md has the table. The SDKs' exceptions never leave the backends, and their texts leave them without credentials.
"""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import msgspec

from agentmesh.edge.clock import SYSTEM
from agentmesh.errors import BackendError
from agentmesh_node.backends.api.frames import TooMuch
from agentmesh_node.backends.reasons import again_after, by_words, message_in, plainly, seconds

RETRYABLE = frozenset({"rate_limited", "overloaded", "server_error", "timed_out", "connection", "stream_broken", "conflict"})
"""Reasons for which the same request may succeed later."""
REJECTED = frozenset({"bad_request", "too_long", "refused"})
"""Reasons for which these messages will never be answered: the session stays as it was before the turn."""

_BY_TYPE = {
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "api_error": "server_error",
    "server_error": "server_error",
    "timeout_error": "timed_out",
    "authentication_error": "unauthenticated",
    "permission_error": "forbidden",
    "billing_error": "spend_limit",
    "not_found_error": "not_found",
    "conflict_error": "conflict",
    "request_too_large": "too_long",
    "exceed_context_size_error": "too_long",
    "invalid_request_error": "bad_request",
}
_BY_CODE = {
    "context_length_exceeded": "too_long",
    "string_above_max_length": "too_long",
    "content_filter": "refused",
    "content_policy_violation": "refused",
    "model_not_found": "not_found",
    "invalid_api_key": "unauthenticated",
    "rate_limit_exceeded": "rate_limited",
    "server_error": "server_error",
}
_BY_STATUS = {
    401: "unauthenticated", 402: "spend_limit", 403: "forbidden", 404: "not_found", 408: "timed_out", 409: "conflict",
    413: "too_long", 429: "rate_limited", 503: "overloaded", 504: "timed_out", 529: "overloaded",
}  # fmt: skip
_CERTAIN = frozenset({429, 503, 529})
"""Statuses that say more than the type beside them: gateways call everything an `api_error`."""
MOST_SAID = 2000
"""Most characters of an API's complaint that are repeated."""
_NEXT = {
    "unauthenticated": "check the credentials in the node's environment",
    "forbidden": "the credentials do not allow this",
    "spend_limit": "the account's spending is at its limit",
    "not_found": "give the agent another model: `mesh set AGENT --backend-option model=...`",
    "max_tokens": "raise the option max_tokens: `mesh set AGENT --backend-option max_tokens=...`",
}
"""What to do next, for reasons that do not say it themselves, whichever the API."""


class Api(msgspec.Struct, frozen=True):
    """One API, as far as its failures tell of it."""

    address: str
    """The variable of the environment that holds its address."""
    hints: Mapping[str, str] = {}
    """What to do next, by reason, where that depends on the API."""

    def failure(self, reason: str, message: str, **details: Any) -> BackendError:
        """The error for `reason`."""
        hint = self.hints.get(reason) or _NEXT.get(reason)
        marks: dict[str, Any] = {"reason": reason, "retryable": reason in RETRYABLE}
        if reason in REJECTED:
            marks["rejected"] = True
        known = {name: value for name, value in details.items() if value is not None}
        return BackendError(f"{message}; {hint}" if hint else message, details={**marks, **known})

    def unreadable(self, what: str) -> BackendError:
        """The error for an answer that cannot be read."""
        return self.failure("server_error", f"the API's answer cannot be read: {what}")

    def told(
        self, body: Any, secrets: tuple[str, ...], status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> BackendError:
        """The error for an error body: one in mid-stream, or one that came with a status that says nothing of an error."""
        inner = body.get("error") if isinstance(body, dict) else None
        about = inner if isinstance(inner, dict) else body if isinstance(body, dict) else {}
        details = about.get("details")
        code = details.get("error_code") if isinstance(details, dict) else None
        said = _Complaint(
            message_in(body) or (body if isinstance(body, str) else ""),
            kind=_word(about.get("type")),
            code=_word(code) or _word(about.get("code")),
            param=_word(about.get("param")),
            status=status if status is not None else _status_in(about.get("code")),
        )
        return self._refusal(said, headers or {}, secrets)

    def _refusal(self, said: _Complaint, headers: Mapping[str, str], secrets: tuple[str, ...]) -> BackendError:
        reason = said.reason()
        status = f"status {said.status}" if said.status is not None else "an error without a message"
        text = plainly(said.message)[:MOST_SAID] or status
        after = retry_after(headers)
        return self.failure(
            reason,
            struck(f"the API refused: {text}", secrets),
            status=said.status,
            type=said.kind,
            error_code=said.code,
            param=said.param,
            retry_after_s=(after if after is not None else again_after(said.message)) if reason in RETRYABLE else None,
        )

    def translated(self, error: Exception, sdk: ModuleType, secrets: tuple[str, ...]) -> BackendError | None:
        """The error for an exception of an SDK, or of its transport; None if the exception is a defect of our own.

        Args:
            sdk: the SDK's module: `anthropic` or `openai`, whose exceptions have the same names.
        """
        import httpx2  # noqa: PLC0415 - loaded already where this is called

        match error:
            case sdk.APIStatusError():
                found = self.told(error.body, secrets, error.status_code, error.response.headers)
                if error.request_id is not None:
                    found.details["request_id"] = error.request_id
                return found
            case sdk.APITimeoutError() | httpx2.TimeoutException() | TimeoutError():
                return self.failure("timed_out", "the API did not answer in time")
            case sdk.APIConnectionError():
                cause = error.__cause__ or error
                if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError | httpx2.InvalidURL):
                    return self.bad_address(cause)
                return self.failure("connection", f"the API cannot be reached: {type(cause).__name__}")
            case httpx2.UnsupportedProtocol() | httpx2.LocalProtocolError() | httpx2.InvalidURL():
                return self.bad_address(error)
            case httpx2.DecodingError() | httpx2.TooManyRedirects() | httpx2.CookieConflict() | TooMuch() | UnicodeDecodeError():
                return self.failure("server_error", f"the API gave an answer that cannot be read: {type(error).__name__}")
            case httpx2.HTTPError() | httpx2.StreamError():
                return self.failure("stream_broken", f"the API's answer broke off: {type(error).__name__}")
        return None

    def bad_address(self, error: BaseException) -> BackendError:
        """The error for an address or a header that cannot be used."""
        return self.failure("bad_address", f"the address or a header for the API cannot be used ({type(error).__name__})")


class _Complaint(msgspec.Struct, frozen=True):
    """What an API says of a failure."""

    message: str
    kind: str | None
    code: str | None
    param: str | None
    status: int | None

    def reason(self) -> str:
        code, kind, status = self.code, self.kind, self.status
        if code and ("spend_limit" in code or "billing" in code or code == "insufficient_quota"):
            return "spend_limit"
        reason = _BY_STATUS.get(status or 0) if status in _CERTAIN else None
        reason = reason or _BY_CODE.get(code or "") or _BY_TYPE.get(kind or "") or _BY_STATUS.get(status or 0)
        if reason is None:
            reason = "server_error" if status is None or status >= 500 else "bad_request"
        if reason in ("bad_request", "server_error"):
            # The API has no code of its own for these, and gateways hand on the words of many vendors.
            return by_words(f"{kind or ''} {code or ''} {self.message}") or reason
        return reason


def _status_in(code: Any) -> int | None:
    """A status that a gateway has put into an error's `code`."""
    number = int(code) if isinstance(code, int | str) and str(code).isdecimal() and len(str(code)) == 3 else 0
    return number if 400 <= number < 600 else None


def _word(value: Any) -> str | None:
    return value[:MOST_SAID] if isinstance(value, str) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds after which the API wants to be asked again, if it says so."""
    found = seconds(headers.get("retry-after-ms"))
    if found is not None:
        return found / 1000
    value = headers.get("retry-after", "")
    found = seconds(value)
    if found is not None:
        return found
    try:
        date = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(date) - SYSTEM.now()) if date else None
    except (ValueError, OverflowError, IndexError, TypeError):
        return None  # it is no date either


def struck(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with the secrets in it struck out: a gateway may repeat a header in its error."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
