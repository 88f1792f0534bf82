"""How a request to a server fails, and what that says of the call: whether it was made."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agentmesh.errors import BackendError
from agentmesh_node.tools.calls import TimedOut

SESSION_UNKNOWN = -31404
"""Code of an error that this mesh puts in the place of what came: the server has no such session, so nothing ran."""
NOT_MADE = -31503
"""The request did not reach the server, or was turned away at its door: nothing ran."""
LOST = -31504
"""The answer did not arrive: the call may have been made."""
UNREADABLE = -31413
"""The answer is longer than is read, or not of the protocol: the call was made."""

type FailureKind = Literal["answered", "unknown_session", "not_made", "lost", "timeout", "unreadable"]


class CallFailure(msgspec.Struct, frozen=True):
    """What a failed request says of its call."""

    verdict: FailureKind
    """`answered`: the server has said no. `unknown_session`, `not_made`: nothing ran. `lost`: the session has ended, and the call
    may have been made. `unreadable`: it was made, and what came back cannot be used."""
    text: str


def call_failure(error: Exception) -> CallFailure:
    """What `error`, raised by a request of the SDK, says."""
    from mcp import MCPError  # noqa: PLC0415 - loaded already where this is called
    from mcp.types import CONNECTION_CLOSED, HEADER_MISMATCH, REQUEST_TIMEOUT  # noqa: PLC0415
    from pydantic import ValidationError  # noqa: PLC0415

    if isinstance(error, TimedOut):
        return CallFailure("timeout", "")
    if isinstance(error, ValidationError):
        return CallFailure("unreadable", "what it answered is not of the protocol")
    if not isinstance(error, MCPError):
        return CallFailure("lost", type(error).__name__)
    verdicts: dict[int, FailureKind] = {
        SESSION_UNKNOWN: "unknown_session", NOT_MADE: "not_made", LOST: "lost", UNREADABLE: "unreadable",
        CONNECTION_CLOSED: "lost", REQUEST_TIMEOUT: "timeout",
        HEADER_MISMATCH: "unknown_session",  # what the headers are made of, the list of tools, has changed: it is asked for anew
    }  # fmt: skip
    return CallFailure(verdicts.get(error.code, "answered"), error.message)


def unavailable(server: str, said: str, *, retryable: bool = True, **details: Any) -> BackendError:
    """The error for a server that cannot be used."""
    return BackendError(
        f"the MCP server {server} cannot be used: {said}",
        details={"reason": "tools_unavailable", "retryable": retryable, **details},
    )
