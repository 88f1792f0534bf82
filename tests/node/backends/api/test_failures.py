"""The reason of a failure, by what servers say of it (tests/node/backends/test_anthropic_failures.py has those of one API)."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh_node.backends.api.failures import REJECTED, RETRYABLE, Api

API = Api("SOME_URL", {"too_long": "say less"})


def body(**error: Any) -> dict[str, Any]:
    return {"error": {"message": "no", **error}}


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        (body(code="context_length_exceeded"), 400, "too_long"),
        (body(code="content_filter"), 400, "refused"),
        (body(code="model_not_found"), 404, "not_found"),
        (body(code="invalid_api_key"), 401, "unauthenticated"),
        (body(code="insufficient_quota"), 429, "spend_limit"),
        (body(code="rate_limit_exceeded"), None, "rate_limited"),
        (body(type="server_error"), None, "server_error"),
        (body(type="invalid_request_error", param="tools"), 400, "bad_request"),
        (body(type="exceed_context_size_error"), 400, "too_long"),
        ({"detail": "no such route"}, 404, "not_found"),
        ("nothing to say", 500, "server_error"),
        (None, 418, "bad_request"),
    ],
)
def test_codes_types_statuses_and_words_have_one_reason(said: Any, status: int | None, reason: str) -> None:
    error = API.told(said, (), status)
    assert error.details["reason"] == reason
    assert error.details["retryable"] is (reason in RETRYABLE)
    assert error.details.get("rejected", False) is (reason in REJECTED)


def test_the_hint_of_an_api_comes_before_the_common_one() -> None:
    assert API.told(body(code="context_length_exceeded"), ()).message.endswith("; say less")
    assert "mesh set AGENT" in API.told(body(code="model_not_found"), ()).message


def test_secrets_are_struck_out_of_what_is_said() -> None:
    error = API.told(body(message="the key sk-1234567890 is none", param="key"), ("sk-1234567890",), 401)
    assert "sk-1234567890" not in error.message
    assert error.details["param"] == "key"
