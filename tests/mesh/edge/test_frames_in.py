"""Messages are found in whatever pieces the socket brings them, and nothing else is touched."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentmesh.edge.frames import take_messages
from agentmesh.edge.nats_client import _Tap

type Got = tuple[int, bytes, bytes, bytes, bytes]

_subjects = st.sampled_from([b"a", b"mesh.live.inbox.coder", b"odd\x0bsubject", "größe".encode()])
_bodies = st.one_of(st.binary(max_size=20), st.sampled_from([b"\r\n", b"MSG a 1 2\r\nxy\r\n", b"x" * 70_000]))
_messages = st.tuples(
    st.integers(1, 99),
    _subjects,
    st.sampled_from([b"", b"_INBOX.x.1"]),
    st.sampled_from([b"", b"NATS/1.0\r\nA: b\r\n\r\n"]),
    _bodies,
)
_commands = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"max_payload":1}\r\n', b"-ERR 'slow'\r\n"])


def _wire(message: Got) -> bytes:
    sid, subject, reply, headers, body = message
    address = b"%b %d %b" % (subject, sid, reply + b" " if reply else b"")
    if headers:
        return b"HMSG %b%d %d\r\n%b%b\r\n" % (address, len(headers), len(headers) + len(body), headers, body)
    return b"MSG %b%d\r\n%b\r\n" % (address, len(body), body)


class _Stream:
    """A transport and the protocol behind it."""

    def __init__(self) -> None:
        self.passed = b""
        self.aborted = False

    def get_protocol(self) -> Any:
        return self

    def data_received(self, data: bytes) -> None:
        self.passed += data

    def abort(self) -> None:
        self.aborted = True


@given(st.lists(st.one_of(_messages, _commands), max_size=12), st.lists(st.integers(1, 100_000), max_size=20))
def test_however_the_bytes_are_cut_each_message_is_delivered_once_and_commands_are_passed_on(
    items: list[Got | bytes], cuts: list[int]
) -> None:
    data = b"".join(item if isinstance(item, bytes) else _wire(item) for item in items)
    stream, got = _Stream(), list[Got]()
    reads: list[bool] = []
    tap = _Tap(stream, lambda *message: got.append(message), reads.append)
    for cut in cuts:
        tap.data_received(data[:cut])
        data = data[cut:]
    tap.data_received(data)
    assert got == [item for item in items if not isinstance(item, bytes)]
    assert stream.passed == b"".join(item for item in items if isinstance(item, bytes))
    assert reads == [True, False] * (len(reads) // 2)


def test_what_no_server_writes_is_passed_on_for_the_connection_to_end() -> None:
    for bad in (b"MSG\r\n", b"MSG a b 1\r\nx\r\n", b"HMSG a x 1 5\r\nabcde\r\n", b"MSG a 1 x\r\n"):
        got: list[Got] = []
        taken, needed, commands = take_messages(b"PING\r\n" + bad + b"PING\r\n", lambda *message: got.append(message))  # noqa: B023
        assert (taken, needed, commands) == (len(bad) + 12, 0, b"PING\r\n" + bad + b"PING\r\n")
        assert got == []


def test_a_handler_that_fails_ends_the_connection_and_not_the_process() -> None:
    stream = _Stream()

    def fail(*_: object) -> None:
        raise RuntimeError("unexpected")

    _Tap(stream, fail).data_received(b"MSG a 1 1\r\nx\r\n")
    assert stream.aborted


def test_a_tap_is_a_protocol() -> None:
    assert isinstance(_Tap(_Stream(), lambda *_: None), asyncio.Protocol)
