"""Header blocks are read as the server and other clients read them."""

from __future__ import annotations

import pytest

from agentmesh.edge.frames import parse_headers


def parsed(*lines: bytes) -> dict[str, str]:
    status, headers = parse_headers(b"NATS/1.0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n")
    assert status == ""
    return headers


@pytest.mark.case(311)
def test_the_first_of_two_values_counts() -> None:
    headers = parsed(b"Mesh-Reply-To: _INBOX.a", b"Nats-Msg-Id: one", b"Mesh-Reply-To: _INBOX.b", b"Nats-Msg-Id: two")
    assert headers == {"Mesh-Reply-To": "_INBOX.a", "Nats-Msg-Id": "one"}


@pytest.mark.case(311)
def test_what_the_server_appends_counts_before_what_a_stranger_has_written() -> None:
    forged = [b"Nats-Sequence: 7", b"Nats-Last-Sequence: 6", b"Nats-Stream: X", b"Nats-Time-Stamp: never", b"Nats-Subject: s"]
    true = [b"Nats-Sequence: 9", b"Nats-Last-Sequence: 8", b"Nats-Stream: Y", b"Nats-Time-Stamp: now", b"Nats-Subject: t"]
    assert list(parsed(*forged, b"A: 1", *true).values()) == ["9", "8", "Y", "now", "t", "1"]


@pytest.mark.case(312)
def test_an_id_keeps_the_blanks_by_which_the_server_tells_ids_apart() -> None:
    for sent, kept in ((b" a", "a"), (b"   a", "a"), (b" a ", "a "), (b" \ta", "\ta"), (b" a\t", "a\t"), (b"", "")):
        assert parsed(b"Nats-Msg-Id:" + sent, b"B:  b\t ") == {"Nats-Msg-Id": kept, "B": "b"}


def test_odd_lines_are_passed_over() -> None:
    assert parsed(b"A: 1", b"no header", b"B:2", b"C:", b"D: x: y ") == {"A": "1", "B": "2", "C": "", "D": "x: y"}
    assert parse_headers(b"NATS/1.0 503\r\n\r\n") == ("503", {})
    assert parse_headers(b"NATS/1.0 404 No Messages\r\nNats-Pending-Bytes: 0\r\n\r\n") == ("404", {"Nats-Pending-Bytes": "0"})
