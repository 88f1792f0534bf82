"""The openai backend when a server refuses, breaks off or is another: typed errors, and no key anywhere."""

from __future__ import annotations

import pytest

from agentmesh_node.backends.api.failures import REJECTED, RETRYABLE
from agentmesh_node.backends.openai.failures import API, hinted
from fakes.messages import Answer, FakeMessages, Item, Refusal
from fakes.responses import Reply, ResponsesServer
from node.backends.openai_chat import KEY, environment, talk

pytestmark = pytest.mark.processes  # the SDK asks `uname`, once in each process, what it tells servers of the machine


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Refusal(status=400), "bad_request"),
        (Refusal(status=400, message="This model's maximum context length is 8192 tokens"), "too_long"),
        (Refusal(status=401), "unauthenticated"),
        (Refusal(status=403), "forbidden"),
        (Refusal(status=404), "not_found"),
        (Refusal(status=429), "rate_limited"),
        (Refusal(status=429, message="You exceeded your current quota"), "rate_limited"),
        (Refusal(status=500), "server_error"),
        (Refusal(status=503, kind="odd"), "overloaded"),
        (Answer(text="abcdefgh" * 3, break_after=3, how="cut"), "stream_broken"),
        (Answer(text="abcdefgh" * 3, break_after=3, how="end"), "stream_broken"),
        (Answer(text="abcdefgh" * 3, break_after=3, how="garbage"), "server_error"),
        (Answer(text="abcdefgh" * 3, break_after=3, how="error"), "overloaded"),
        (Answer(text="no", stop_reason="refusal"), "refused"),
    ],
)
def test_each_failure_has_a_stable_reason_and_a_hint(fake: FakeMessages, refusal: Item, reason: str) -> None:
    fake.play([refusal])
    last = talk(attempts=1)[-1]
    assert (last.kind, last.data["reason"]) == ("error", reason)
    assert last.data["retryable"] is (reason in RETRYABLE)
    assert last.data.get("rejected", False) is (reason in REJECTED)
    assert KEY not in str(last.data)


def test_a_refused_member_of_the_request_is_named_with_the_option_that_leaves_it_out(responses: ResponsesServer) -> None:
    kinds = {"type": "invalid_request_error", "param": "store", "code": "unknown_parameter"}
    error = {"message": "Unknown parameter: 'store'.", **kinds}
    responses.script = [Reply(status=400, failure=error)]
    last = talk(api="responses", attempts=1)[-1]
    assert last.data["reason"] == "bad_request"
    assert "leave_out='[\"store\"]'" in last.data["message"]


def test_another_protocol_at_the_address_is_said(fake: FakeMessages, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, f"{fake.url}/elsewhere")
    last = talk(attempts=1)[-1]
    assert last.data["reason"] == "server_error"
    assert "OPENAI_BASE_URL" in last.data["message"]


def test_only_a_member_that_is_not_known_is_to_be_left_out() -> None:
    other = API.failure("bad_request", "no", param="messages", error_code="invalid_value")
    assert hinted(other) is other
