"""Prompts, events and headers as strangers write them (docs/protocol.md#a-prompt, docs/protocol.md#an-event)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentmesh.errors import BadRequest
from agentmesh.subjects import LANES
from agentmesh.wire import MAX_DEPTH, MAX_TIME, decode_event, decode_mail, decode_prompt, encode_prompt, parse_time


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("body", "event"),
    [
        (b'\n{"a":1}', {"a": 1}),
        (b' {"a": [1]}', {"a": [1]}),
        (b"\t5 ", 5),
        (b" null", None),
        (b"\r\n true\n", True),
        (b" half {", " half {"),
        (b"  ", "  "),
    ],
)
def test_white_space_around_json_is_part_of_json(body: bytes, event: Any) -> None:
    assert decode_event(body) == event


@pytest.mark.parametrize("content", ["***", "aGk", "aGk=\n", "aGk=aGk=", "ü", "_-8="])
def test_an_attachment_that_is_not_base64_is_refused(content: str) -> None:
    body = json.dumps({"prompt": "p", "attachments": [{"filename": "f", "content": content}]}).encode()
    with pytest.raises(BadRequest, match="base64"):
        decode_prompt(body, {})


@pytest.mark.case(483)
def test_a_prompt_is_a_text_or_attachments_or_both() -> None:
    image = {"filename": "cat.png", "content": "aGk="}
    body = json.dumps({"prompt": "", "attachments": [image]}).encode()
    found = decode_prompt(body, {})
    assert (found.prompt, [a.filename for a in found.attachments]) == ("", ["cat.png"])
    assert decode_prompt(*encode_prompt(found)) == found
    for nothing in (b'{"prompt": ""}', b'{"prompt": "", "attachments": []}', b"", b"  "):
        with pytest.raises(BadRequest, match="empty"):
            decode_prompt(nothing, {})


@pytest.mark.parametrize("content", ["", "aGk=", "+/8="])
def test_an_attachment_in_base64_is_taken(content: str) -> None:
    body = json.dumps({"prompt": "p", "attachments": [{"filename": "f", "content": content}]}).encode()
    assert decode_prompt(body, {}).attachments[0].content == content


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-01-02t03:04:05z", "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05.5z", "2026-01-02T03:04:05.5+00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T15:59:60.25-08:00", "2017-01-01T00:00:00.25Z"),
    ],
)
def test_every_form_of_rfc_3339_is_read(text: str, same: str) -> None:
    assert parse_time(text) == parse_time(same)


@pytest.mark.parametrize(
    "text", ["2026-01-02T03:04:61Z", "2026-01-02T03:60:00Z", "2026-13-01T00:00:00Z", "60", "2026-01-02T03:04"]
)
def test_what_is_no_rfc_3339_time_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_time(text)


@pytest.mark.parametrize(("text", "deadline"), [("0001-01-01T00:00:00Z", 0.0), ("9999-12-31T23:59:59-23:00", MAX_TIME)])
def test_a_deadline_may_lie_in_any_year(text: str, deadline: float) -> None:
    mail = decode_mail(LANES["inbox"], 1, b"p", {"Mesh-Deadline": text}, root="mesh")
    assert (mail.problem, mail.deadline) == (None, deadline)


def test_deep_json_that_claims_to_be_no_prompt_is_text() -> None:
    body = json.dumps(nested(MAX_DEPTH + 1)).encode()
    assert decode_prompt(body, {}).prompt == body.decode()
    with pytest.raises(BadRequest, match=str(MAX_DEPTH)):
        decode_prompt(body, {"Content-Type": "application/json"})
    with pytest.raises(BadRequest, match=str(MAX_DEPTH)):
        decode_prompt(json.dumps({"prompt": "p", "metadata": nested(MAX_DEPTH + 1)}).encode(), {})


def test_baggage_travels_without_a_trace() -> None:
    mail = decode_mail(LANES["inbox"], 1, b"p", {"baggage": "user=7"}, root="mesh")
    assert mail.trace == {"baggage": "user=7"}


# --- declared as JSON ---------------------------------------------------------------------------------------------
JSON = {"Content-Type": "application/json"}
MARK = b"\xef\xbb\xbf"


@pytest.mark.case(315)
@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (b'"hello"', "hello"),
        (b' "a \\"quoted\\" word"\n', 'a "quoted" word'),
        (b' {"prompt": "hello"}', "hello"),
        (MARK + b'{"prompt": "hello"}', "hello"),
        (MARK + b'"hello"', "hello"),
        (b"hello", "hello"),
        (b"2 apples", "2 apples"),
    ],
)
def test_a_prompt_that_is_declared_as_json(body: bytes, prompt: str) -> None:
    assert decode_prompt(body, JSON).prompt == prompt


@pytest.mark.case(315)
@pytest.mark.parametrize(
    "body",
    [b'"hello', b"[1, 2]", b"17", b"true", b"null", b'[{"prompt"', b'""', b'" "', MARK, MARK + b"{half", b' {"prompt": 7}'],
)
def test_a_prompt_that_is_declared_as_json_and_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_prompt(body, JSON)


@pytest.mark.case(315)
def test_a_byte_order_mark_is_no_part_of_what_is_said() -> None:
    assert decode_prompt(MARK + b"hello", {}).prompt == "hello"
    assert decode_prompt(MARK + b'{"prompt": "hello", "metadata": {"a": 1}}', {}).metadata == {"a": 1}
    assert decode_event(MARK + b'{"a": 1}') == {"a": 1}
    assert decode_event(MARK + b"text") == "text"


@pytest.mark.case(315)
def test_an_event_that_is_declared_as_json_and_cut_is_refused() -> None:
    assert decode_event(b'{"a": ', {}) == '{"a": ', "text, where nothing says that it is more"
    assert decode_event(b" text", JSON) == " text"
    for body in (b'{"a": ', b'["a"', b'"a', MARK + b"{"):
        with pytest.raises(BadRequest, match="declared as JSON"):
            decode_event(body, JSON)


STORED = {"Nats-Time-Stamp": "2026-01-02T03:04:05.5Z"}
AT = parse_time(STORED["Nats-Time-Stamp"])


@pytest.mark.parametrize("lane", ["inbox", "notify"])
@pytest.mark.parametrize(
    ("headers", "deadline"),
    [
        ({"Mesh-Timeout": "30"}, AT + 30),
        ({"Mesh-Timeout": "0.25"}, AT + 0.25),
        ({"Mesh-Timeout": "999999999999"}, MAX_TIME),
        ({"Mesh-Timeout": "30", "Mesh-Deadline": "2026-01-02T03:04:06Z"}, AT + 0.5),
        ({"Mesh-Timeout": "30", "Mesh-Deadline": "2027-01-02T03:04:06Z"}, AT + 30),
    ],
)
def test_a_timeout_counts_from_the_time_at_which_it_was_stored(lane: str, headers: dict[str, str], deadline: float) -> None:
    mail = decode_mail(LANES[lane], 1, b"p", headers | STORED, root="mesh")
    assert (mail.problem, mail.deadline) == (None, deadline)
    assert decode_mail(LANES[lane], 1, b"p", headers, root="mesh", stored_at=AT).deadline == deadline


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "", "soon", "1e3", "nan", "inf", " 30", "30s", "PT30S", "9" * 400, "\u0663"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(text: str) -> None:
    mail = decode_mail(LANES["inbox"], 1, b"p", {"Mesh-Timeout": text} | STORED, root="mesh")
    assert mail.problem is not None and "Mesh-Timeout" in mail.problem
