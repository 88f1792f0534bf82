"""How a request failed, and what that says of its call."""

from __future__ import annotations

import pytest
from mcp import MCPError
from mcp.types import CallToolResult
from pydantic import ValidationError

from agentmesh_node.tools.calls import TimedOut
from agentmesh_node.tools.mcp.failures import LOST, NOT_MADE, SESSION_UNKNOWN, UNREADABLE, call_failure, unavailable


def invalid() -> Exception:
    with pytest.raises(ValidationError) as caught:
        CallToolResult.model_validate({})
    return caught.value


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (MCPError(code=SESSION_UNKNOWN, message="x"), "unknown_session"),
        (MCPError(code=NOT_MADE, message="x"), "not_made"),
        (MCPError(code=LOST, message="x"), "lost"),
        (MCPError(code=UNREADABLE, message="x"), "unreadable"),
        (MCPError(code=-32000, message="Connection closed"), "lost"),
        (MCPError(code=-32001, message="timed out"), "timeout"),
        (MCPError(code=-32600, message="Session not found"), "answered"),
        (MCPError(code=-32020, message="headers"), "unknown_session"),
        (MCPError(code=42, message="x"), "answered"),
        (TimedOut(), "timeout"),
        (invalid(), "unreadable"),
        (RuntimeError("x"), "lost"),
        (ConnectionResetError("x"), "lost"),
    ],
)
def test_only_what_says_that_nothing_ran_is_taken_for_that(error: Exception, verdict: str) -> None:
    assert call_failure(error).verdict == verdict


def test_a_server_that_cannot_be_used_is_a_typed_error() -> None:
    error = unavailable("shop", "it is closed", retryable=False)
    assert (error.code, error.message) == ("backend_error", "the MCP server shop cannot be used: it is closed")
    assert error.details == {"reason": "tools_unavailable", "retryable": False}
