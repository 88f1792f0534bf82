"""Failures of the API (`agentmesh_node.backends.api.failures`)."""

from __future__ import annotations

from agentmesh.errors import BackendError
from agentmesh_node.backends.api.failures import Api, struck

API = Api(
    "OPENAI_BASE_URL",
    {
        "no_credentials": "set OPENAI_API_KEY in the node's environment",
        "bad_address": "mend OPENAI_BASE_URL in the node's environment",
        "too_long": "the conversation is too long for the model: send less, or give the agent a model with more room: "
        "`mesh set AGENT --backend-option model=...`",
    },
)
failure = API.failure
NOT_KNOWN = frozenset({"unsupported_parameter", "unknown_parameter", "unsupported_value"})
"""Codes of a server that refuses a member of the request."""


def translated(error: Exception, secrets: tuple[str, ...]) -> BackendError | None:
    """The error for an exception of the SDK, or of its transport; None if the exception is a defect of our own."""
    import openai  # noqa: PLC0415 - loaded already where this is called

    known = API.translated(error, openai, secrets)
    if known is None and isinstance(error, openai.OpenAIError):
        return failure("server_error", struck(f"the API gave an answer that cannot be read: {type(error).__name__}", secrets))
    return known if known is None else hinted(known)


def hinted(error: BackendError) -> BackendError:
    """`error`, with what to do about a member of the request that the server does not take."""
    member = error.details.get("param")
    if not member or error.details.get("error_code") not in NOT_KNOWN:
        return error
    name = str(member).partition(".")[0].partition("[")[0]
    text = f"{error.message}; leave it out of the requests: `mesh set AGENT --backend-option leave_out='[\"{name}\"]'`"
    return BackendError(text, details=error.details)
