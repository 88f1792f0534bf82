"""Header names and values as clients of many languages write them."""

from __future__ import annotations

import pytest

from agentmesh.errors import BadRequest
from agentmesh.headers import (
    MAX_BAGGAGE_BYTES,
    MAX_BAGGAGE_MEMBERS,
    bounded_baggage,
    is_json,
    is_name,
    legible,
    message_id,
    trace_in,
)
from agentmesh.subjects import LANES
from agentmesh.wire import decode_mail

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.case(310)
@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TraceParent", "TRACEPARENT"])
def test_a_trace_is_found_however_its_header_is_spelled(name: str) -> None:
    mail = decode_mail(LANES["inbox"], 1, b"p", {name: PARENT, "Tracestate": "a=1", "Baggage": "b=2"}, root="mesh")
    assert mail.trace == {"traceparent": PARENT, "tracestate": "a=1", "baggage": "b=2"}


@pytest.mark.case(310)
def test_of_two_spellings_the_lower_case_one_counts() -> None:
    assert trace_in({"Traceparent": "x", "traceparent": PARENT}) == {"traceparent": PARENT}
    assert trace_in({"traceparent": PARENT, "Traceparent": "x", "TRACEPARENT": "y"}) == {"traceparent": PARENT}
    assert trace_in({"Mesh-Tag": "t", "": "nothing", "trace": "no"}) == {}


@pytest.mark.case(312)
@pytest.mark.parametrize("msg_id", ["a ", "a\t", "\ta", "\u00a0a", "a\x1f", "a\x00b", "größe", "\ufffd", " "])
@pytest.mark.parametrize("lane", ["inbox", "notify"])
def test_an_id_that_some_clients_would_trim_or_cannot_read_is_refused(lane: str, msg_id: str) -> None:
    mail = decode_mail(LANES[lane], 1, b"p", {"Nats-Msg-Id": msg_id, "Mesh-Reply-To": "_INBOX.a"}, root="mesh")
    assert mail.problem is not None and "Nats-Msg-Id" in mail.problem
    assert mail.reply_to == ("_INBOX.a" if lane == "inbox" else None), "its caller can be told"
    with pytest.raises(BadRequest):
        message_id(msg_id)


@pytest.mark.case(312)
def test_an_empty_id_is_none() -> None:
    mail = decode_mail(LANES["inbox"], 1, b"p", {"Nats-Msg-Id": ""}, root="mesh")
    assert (mail.problem, mail.msg_id) == (None, None), "or each such prompt would repeat the first one"


@pytest.mark.case(315)
@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
@pytest.mark.parametrize("value", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_declared_in_any_spelling(name: str, value: str) -> None:
    assert is_json({name: value})
    assert not is_json({name: "text/plain"})


@pytest.mark.case(316)
def test_what_is_handed_on_is_one_line_of_printable_ascii() -> None:
    assert legible("as it is: 100 %") == "as it is: 100 %"
    assert legible("größe\r\n\tone\x00two\u2028three") == "gr??e one?two three"
    assert [is_name(name) for name in ("Mesh-Tag", "", "Mesh-Zürich", "Mesh Tag", "Mesh:Tag", "Mesh-\x01")] == [True] + 5 * [
        False
    ]


def test_baggage_above_the_limits_is_cut_between_members() -> None:
    many = ",".join(f"k{i}=v" for i in range(100))
    assert bounded_baggage(many) == ",".join(f"k{i}=v" for i in range(MAX_BAGGAGE_MEMBERS))
    large = ",".join(f"k{i}={'v' * 1000}" for i in range(20))
    kept = bounded_baggage(large)
    assert len(kept) <= MAX_BAGGAGE_BYTES
    assert large.startswith(kept + ",")
    assert kept.count(",") == 7


def test_of_a_strangers_baggage_whole_members_are_read_as_far_as_w3c_asks() -> None:
    large = ",".join(f"k{i}={'v' * 1000}" for i in range(20))
    assert trace_in({"Baggage": large})["baggage"] == bounded_baggage(large) != large
