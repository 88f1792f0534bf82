"""The bytes of NATS messages: publish commands out, header blocks in. Pure."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller
from types import MappingProxyType

from agentmesh.edge.transport import Headers
from agentmesh.errors import BadRequest, TooLarge
from agentmesh.headers import is_name

MAX_ADDRESS = 4000
"""Most bytes of subject and reply together. The server ends a connection whose control line has more than 4,096."""
NO_HEADERS: Headers = MappingProxyType({})

_HEADER_LINE = "NATS/1.0\r\n"
_END = b"\r\n"
_MAX_KNOWN_NAMES = 1024
_known_names: set[str] = set()
_parted = methodcaller("partition", ":")
_MSG_ID = "Nats-Msg-Id"
_ADDED_BY_SERVER = frozenset(
    (
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Last-Sequence",
        "Nats-Time-Stamp",
        "Nats-Num-Pending",
        "Nats-UpTo-Sequence",
        "Nats-Scheduler",
        "Nats-Schedule-Next",
    )
)
"""Headers that the server appends to copies of what it has stored, and to what it reads of it."""


def publish_frame(subject: str, data: bytes, headers: Headers | None, reply: str, max_payload: int) -> bytes:
    """The command that publishes `data`.

    Raises:
        TooLarge: headers and body exceed `max_payload`, or the addresses the control line. Sending it would cost the
            connection, so it is checked here (docs/architecture.md#effects).
        BadRequest: the subject, the reply or a header name is malformed (it could smuggle in other commands).
    """
    addresses = f"{subject} {reply}"
    if not subject or not addresses.isprintable() or addresses.count(" ") != 1 or len(addresses) > MAX_ADDRESS + 1:
        raise _unusable(subject, reply)
    size = len(data)
    try:
        if headers:
            block = header_block(headers)
            head = len(block) if block.isascii() else len(block.encode())
            size += head
            command = f"HPUB {addresses} {head} {size}\r\n{block}".encode()
        else:
            command = f"PUB {addresses} {size}\r\n".encode()
    except UnicodeEncodeError:
        raise BadRequest("a subject or header holds characters that are not Unicode text") from None
    if size > max_payload:
        raise TooLarge(
            f"the message has {size} bytes, the server takes {max_payload}", details={"size": size, "limit": max_payload}
        )
    return b"".join((command, data, _END))


def publish_head(subject: str) -> bytes:
    """The beginning of a command that publishes to `subject` without headers or reply; the size and the body follow it.

    Raises:
        TooLarge, BadRequest: see `publish_frame`.
    """
    return publish_frame(subject, b"", None, "", 0).removesuffix(b"0\r\n\r\n")


def header_block(headers: Headers) -> str:
    """`headers` on the wire. Line breaks in a value become spaces, as nats-py does it."""
    text = _HEADER_LINE
    for name, value in headers.items():
        if name not in _known_names:
            _learn_name(name)
        text += f"{name}: {value if value.isprintable() else _one_line(value)}\r\n"
    return text + "\r\n"


def parse_headers(block: bytes) -> tuple[str, dict[str, str]]:
    """Status code (`""` if there is none) and headers of a received block, values without outer blanks.

    Of a repeated name the first value counts, as for the server and for most clients, except for what the server adds itself: it
    appends that to what it has stored, so a stranger's mail cannot forge `Nats-Sequence`. `Nats-Msg-Id` keeps the blanks by which
    the server tells ids apart.
    """
    first, _, rest = block.decode("utf-8", "replace").partition("\r\n")
    lines = rest.split("\r\n")
    headers = {name: value.strip(" ") for name, colon, value in map(_parted, lines) if colon}
    if len(headers) + 2 != len(lines) or " \r" in rest or "\t" in rest:  # searched in the text: in bytes it takes twice as long
        headers = _parsed_with_care(lines)
    return first[9:12], headers


def _parsed_with_care(lines: list[str]) -> dict[str, str]:
    """The headers in `lines`, some of which may be repeated, no headers, or have blanks that matter."""
    headers: dict[str, str] = {}
    for name, colon, value in map(_parted, lines):
        if not colon or (name in headers and name not in _ADDED_BY_SERVER):
            continue
        headers[name] = value.lstrip(" ") if name == _MSG_ID else value.strip(" \t")
    return headers


def take_messages(data: bytes, deliver: Callable[[int, bytes, bytes, bytes, bytes], None]) -> tuple[int, int, bytes]:
    """Hand the whole messages in `data` to `deliver(sid, subject, reply, headers, body)`, in order.

    Returns: how far `data` was taken; how many bytes the unfinished rest needs at least (0: unknown); and the other commands
        (those that are no messages), which were taken too.
    """
    position, end = 0, len(data)
    commands = b""
    while (eol := data.find(_END, position)) >= 0:
        parts = data[position:eol].split(b" ")
        start = eol + 2
        kind = parts[0]
        try:
            if kind == b"MSG":
                head, stop = start, start + int(parts[-1])
                reply = parts[3] if len(parts) > 4 else b""
            elif kind == b"HMSG":
                head, stop = start + int(parts[-2]), start + int(parts[-1])
                reply = parts[3] if len(parts) > 5 else b""
            else:
                commands += data[position:start]
                position = start
                continue
            sid = int(parts[2])
        except (ValueError, IndexError):
            # No server writes this. nats-py, which gets the other commands, ends the connection.
            return end, 0, commands + data[position:]
        if stop + 2 > end:
            return position, stop + 2 - position, commands
        position = stop + 2
        deliver(sid, parts[1], reply, data[start:head], data[head:stop])
    return position, 0, commands


def check_pattern(subject: str) -> None:
    """Refuse what cannot be subscribed to: the server answers it with an error that ends the connection.

    Raises:
        BadRequest: `subject` has empty tokens, or wildcards that are not whole tokens or not in their place.
    """
    if not subject or not subject.isprintable() or " " in subject:
        raise _no_subject(subject)
    tokens = subject.split(".")
    misplaced = ">" in tokens[:-1] or any(len(token) > 1 and ("*" in token or ">" in token) for token in tokens)
    if misplaced or "" in tokens or len(subject.encode()) > MAX_ADDRESS:
        raise BadRequest(f"{subject[:80]!r} is not a subject to subscribe to")


def _learn_name(name: str) -> None:
    # Names come from a few constants, so each is checked once.
    if not is_name(name):
        raise BadRequest(f"{name[:80]!r} is not a header name")
    if len(_known_names) < _MAX_KNOWN_NAMES:
        _known_names.add(name)


def _one_line(value: str) -> str:
    return " ".join(value.splitlines()) if "\n" in value or "\r" in value else value


def _no_subject(text: str) -> BadRequest:
    return BadRequest(f"{text[:80]!r} is not a subject")


def _unusable(subject: str, reply: str) -> BadRequest | TooLarge:
    for text in (subject, reply):
        if not text.isprintable() or " " in text or (text is subject and not text):
            return _no_subject(text)
    return TooLarge(f"subject and reply have more than {MAX_ADDRESS} bytes")
