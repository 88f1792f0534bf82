"""The anthropic backend when the API refuses, breaks off or is away: typed errors, one owner of retries, no key anywhere."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agentmesh.errors import BackendError
from agentmesh_node.backends.anthropic.failures import REJECTED, RETRYABLE, retry_after, told, translated
from fakes.messages import Answer, Call, FakeMessages, Item, Refusal
from node.backends.anthropic_chat import KEY, serving, talk


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMessages]:
    with serving(monkeypatch) as server:
        yield server


# --- failures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Refusal(status=400), "bad_request"),
        (Refusal(status=400, message="prompt is too long: 300000 tokens > 200000 maximum"), "too_long"),
        (Refusal(status=400, message="Your credit balance is too low to access the Anthropic API."), "spend_limit"),
        (Refusal(status=401), "unauthenticated"),
        (Refusal(status=402), "spend_limit"),
        (Refusal(status=403), "forbidden"),
        (Refusal(status=404), "not_found"),
        (Refusal(status=408, kind="timeout_error"), "timed_out"),
        (Refusal(status=409, kind="conflict_error"), "conflict"),
        (Refusal(status=413), "too_long"),
        (Refusal(status=418, kind="teapot_error"), "bad_request"),
        (Refusal(status=422, kind="invalid_request_error"), "bad_request"),
        (Refusal(status=429), "rate_limited"),
        (Refusal(status=500), "server_error"),
        (Refusal(status=503, kind="odd"), "overloaded"),
        (Refusal(status=504), "timed_out"),
        (Refusal(status=529), "overloaded"),
        (Refusal(status=599, kind="odd"), "server_error"),
        (Answer(text="abcdefgh" * 3, break_after=5, how="cut"), "stream_broken"),
        (Answer(text="abcdefgh" * 3, break_after=5, how="end"), "stream_broken"),
        (Answer(text="abcdefgh" * 3, break_after=5, how="garbage"), "server_error"),
        (Answer(text="abcdefgh" * 3, break_after=5, how="error"), "overloaded"),
        (Answer(text="abcdefgh" * 3, break_after=0, how="cut"), "stream_broken"),
    ],
)
def test_each_failure_has_a_stable_reason_and_a_hint(fake: FakeMessages, refusal: Item, reason: str) -> None:
    fake.play([refusal])
    last = talk(attempts=1)[-1]
    assert (last.kind, last.data["reason"]) == ("error", reason)
    assert last.data["retryable"] is (reason in RETRYABLE)
    assert last.data.get("rejected", False) is (reason in REJECTED)
    assert last.data["code"] == "backend_error"
    assert last.data["message"]
    assert len(fake.calls) == 1


LONG = "request (9010 tokens) exceeds the available context size (8192 tokens), try increasing it"
TOLD = [
    # llama.cpp's server
    (400, {"error": {"code": 400, "message": LONG, "type": "exceed_context_size_error", "n_ctx": 8192}}, "too_long", None),
    (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, "overloaded", None),
    # LiteLLM
    (
        400,
        {
            "error": {
                "message": "Budget has been exceeded! Current cost: 0.2, Max budget: 0.1",
                "type": "budget_exceeded",
                "param": None,
                "code": "400",
            }
        },
        "spend_limit",
        None,
    ),
    (
        400,
        {"error": {"type": "invalid_request_error", "message": f"litellm.ContextWindowExceededError: {LONG}"}},
        "too_long",
        None,
    ),
    (503, {"error": {"type": "api_error", "message": "litellm.ServiceUnavailableError"}}, "overloaded", None),
    (500, {"error": {"type": "api_error", "message": "litellm.InternalServerError: Connection error."}}, "server_error", None),
    (429, {"error": {"message": "No deployments available, Try again in 5 seconds.", "code": "429"}}, "rate_limited", 5.0),
    (400, {"error": {"type": "invalid_request_error", "message": "ContentPolicyViolationError: filtered"}}, "refused", None),
    # and what nobody expects
    (429, ["slow down"], "rate_limited", None),
    (500, "<html>", "server_error", None),
    (400, None, "bad_request", None),
    (413, {"error": {"type": {}, "message": 5, "details": []}}, "too_long", None),
    (200, {"error": {"type": "overloaded_error"}}, "overloaded", None),
]


@pytest.mark.case(405)
@pytest.mark.case(406)
@pytest.mark.parametrize(("status", "body", "reason", "after"), TOLD)
def test_errors_of_other_servers_have_their_true_reason(status: int, body: Any, reason: str, after: float | None) -> None:
    error = told(body, (), status, {})
    assert (error.details["reason"], error.details.get("retry_after_s")) == (reason, after)
    if reason in RETRYABLE:
        assert told(body, (), status, {"retry-after": "7"}).details["retry_after_s"] == 7.0
    assert "{" not in error.message


@pytest.mark.case(403)
@pytest.mark.parametrize("module", ["anthropic", "httpx2"])
def test_each_exception_of_the_sdk_and_its_http_library_has_a_reason(module: str) -> None:
    import httpx2

    request = httpx2.Request("POST", "http://127.0.0.1:9")
    response = httpx2.Response(418, request=request)
    seen = 0
    for name, cls in vars(importlib.import_module(module)).items():
        if not (isinstance(cls, type) and issubclass(cls, Exception)) or issubclass(cls, Warning):
            continue
        error = cls.__new__(cls)
        Exception.__init__(error, "x")
        vars(error).update(request=request, response=response, status_code=418, body=None, request_id=None)
        found = translated(error, ())
        assert found is not None, name
        assert isinstance(found.details["retryable"], bool)
        seen += 1
    assert seen > 15


@pytest.mark.parametrize("url", ["no address", "ftp://127.0.0.1:9", "http://[::"])
def test_an_address_that_is_none_is_no_reason_to_try_again(fake: FakeMessages, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    try:
        found = talk(attempts=1)[-1].data
    except BackendError as error:
        found = error.details
    assert (found["reason"], found["retryable"]) == ("bad_address", False)


@pytest.mark.parametrize("header", ["soon", "nan", "-5", "Fri, 99 Foo 2026", "9" * 400, "\x00"])
def test_a_wait_that_is_none_is_passed_over(header: str) -> None:
    assert retry_after({"retry-after": header}) is None


def test_an_api_that_cannot_be_reached_is_a_typed_error(fake: FakeMessages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    assert talk(attempts=1)[-1].data["reason"] == "connection"


def test_an_api_that_is_silent_is_a_typed_error(fake: FakeMessages) -> None:
    def silent(call: Call) -> Item:
        fake.closing.wait(60)
        return "late"

    fake.play(silent)
    assert talk(attempts=1, timeout_s=0.2)[-1].data["reason"] == "timed_out"


def test_a_spend_limit_is_no_rate_limit(fake: FakeMessages, monkeypatch: pytest.MonkeyPatch) -> None:
    details = {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "no", "details": {"error_code": "enforced_spend_limit_reached"}},
    }
    monkeypatch.setattr("fakes.messages.error_body", lambda kind, message: details)
    fake.play([Refusal(status=429)])
    last = talk()[-1]
    assert (last.data["reason"], last.data["retryable"]) == ("spend_limit", False)
    assert len(fake.calls) == 1, "it is not tried again"


@pytest.mark.parametrize(
    "first",
    [
        Refusal(status=429, retry_after_s=0),
        Refusal(status=529),
        Answer(break_after=0, how="cut"),
        Refusal(headers={"retry-after-ms": "1"}),
    ],
)
def test_what_may_succeed_later_is_tried_again_by_the_backend_alone(fake: FakeMessages, first: Item) -> None:
    fake.play([first, first, "there"])
    events = talk()
    assert [e.kind for e in events] == ["text", "text", "text", "usage", "result"]
    assert [e.data["retry"]["attempt"] for e in events[:2]] == [2, 3]
    assert not any("restart" in e.data for e in events), "nothing of the answer had come"
    assert len(fake.calls) == 3
    assert {call.headers["x-stainless-retry-count"] for call in fake.calls} == {"0"}, "the SDK makes no retries"


def test_an_answer_that_broke_begins_anew_and_says_so(fake: FakeMessages) -> None:
    fake.play([Answer(text="half an ans", break_after=4, how="cut"), "a whole one"])
    events = talk()
    assert [(e.kind, e.data.get("text"), e.data.get("restart")) for e in events if e.kind == "text"] == [
        ("text", "half an ", None), ("text", "", True), ("text", "a whole ", None), ("text", "one", None),
    ]  # fmt: skip
    assert events[-1].data["text"] == "a whole one"


def test_a_wait_longer_than_allowed_is_left_to_the_caller(fake: FakeMessages) -> None:
    fake.play([Refusal(status=429, retry_after_s=3600)])
    last = talk(max_wait_s=5)[-1]
    assert (last.data["reason"], last.data["retry_after_s"], last.data["status"]) == ("rate_limited", 3600.0, 429)
    assert len(fake.calls) == 1


def test_tries_are_bounded(fake: FakeMessages) -> None:
    fake.play([Refusal(headers={"retry-after-ms": "1"})])
    assert talk(attempts=3)[-1].data["reason"] == "overloaded"
    assert len(fake.calls) == 3


def test_without_credentials_nothing_is_sent(fake: FakeMessages, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BackendError, match="ANTHROPIC_API_KEY") as caught:
        talk()
    assert caught.value.details["reason"] == "no_credentials"
    assert not fake.calls


# --- secrets ----
@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_a_key_that_a_gateway_repeats_is_struck_out(
    fake: FakeMessages, status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gateway: gateway-secret-7")
    caplog.set_level(logging.DEBUG)
    fake.play(
        lambda call: Refusal(status=status, message=f"not with {call.headers['authorization']} {call.headers['x-gateway']}")
    )
    events = talk(attempts=2, max_wait_s=0.01)
    assert "not with Bearer *** ***" in events[-1].data["message"]
    seen = msgspec.json.encode(events).decode() + caplog.text
    assert KEY not in seen
    assert "gateway-secret-7" not in seen
