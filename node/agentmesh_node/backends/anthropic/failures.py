"""Failures of the Messages API (`agentmesh_node.backends.api.failures`)."""

from __future__ import annotations

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.failures import REJECTED, RETRYABLE, Api, retry_after, struck

__all__ = ["API", "REJECTED", "RETRYABLE", "failure", "retry_after", "told", "translated", "unreadable"]

API = Api(
    "ANTHROPIC_BASE_URL",
    {
        "no_credentials": "set ANTHROPIC_API_KEY, or a workload identity, in the node's environment",
        "bad_address": "mend ANTHROPIC_BASE_URL and ANTHROPIC_CUSTOM_HEADERS in the node's environment",
        "too_long": "the conversation is too long for the model: send less, or give the agent the option compact_at, or a model "
        "with more room: `mesh set AGENT --backend-option compact_at=150000`",
    },
)
failure, told, unreadable = API.failure, API.told, API.unreadable


def translated(error: Exception, secrets: tuple[str, ...]) -> BackendError | None:
    """The error for an exception of the SDK, or of its transport; None if the exception is a defect of our own."""
    import anthropic  # noqa: PLC0415 - loaded already where this is called

    match error:
        case anthropic.DeadlineExceededError():
            return failure("timed_out", "the API did not answer in time")
        case anthropic.CredentialsError():
            return failure("no_credentials", "there are no usable credentials for the API")
        case anthropic.RetryableError():
            return failure("server_error", struck(f"the API asked for another try: {error}", secrets))
    known = API.translated(error, anthropic, secrets)
    if known is None and isinstance(error, anthropic.AnthropicError):
        return failure("server_error", struck(f"the API gave an answer that cannot be read: {type(error).__name__}", secrets))
    if known is None and isinstance(error, TypeError) and "authentication" in str(error):
        return failure("no_credentials", "there are no credentials for the API")
    return known
