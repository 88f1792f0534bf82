"""JetStream over a `Transport`: publishes with acknowledgement, reads, purges. Functions, no state.

The wire forms are NATS's own ($JS.API requests, Nats-* headers), so anything that speaks `Transport` can stand in for the
server. What an error means is decided here once: what was refused (nothing stored), what is unknown, what to try again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec

from agentmesh.edge.frames import NO_HEADERS, parse_headers
from agentmesh.edge.server_errors import NO_META_LEADER, NO_STREAM, ServerError, definite, leaderless, missing
from agentmesh.edge.transport import UNANSWERED, Disconnected, Headers, Message, NoResponders, RequestTimeout, Transport
from agentmesh.errors import BadRequest, MeshError, NoLeader, Unavailable
from agentmesh.wire import MSG_ID, format_time, parse_time

API = "$JS.API"
EXPECTED_SEQ = "Nats-Expected-Last-Subject-Sequence"
TTL = "Nats-TTL"
ROLLUP = "Nats-Rollup"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"

MAX_MATCHES = 1024
"""Most messages that one multi-subject direct get may match."""
MATCHES_PER_WILDCARD = 5
"""How many messages one wildcard pattern is taken to match: one for each mail lane of an agent."""
PAGE_BYTES = 4 << 20
"""Most bytes of a page when the caller sets no bound."""

_WRONG_SEQUENCE = 10071
_NO_VERDICT = 10164
_IN_PROCESS = 10158
_NO_MESSAGE = 10037


class Stored(NamedTuple):
    """A publish's acknowledgement. `duplicate`: the message id was stored before, at `seq`."""

    seq: int
    duplicate: bool


class StoredMessage(NamedTuple):
    """One message of a stream. `time` is when it was stored (seconds since 1970); `previous` the sequence before it in the
    page it was read with (0: unknown)."""

    subject: str
    seq: int
    data: bytes
    headers: Mapping[str, str]
    time: float
    previous: int


class Page(NamedTuple):
    """Part of a stream. `pending`: how many more matched behind it, as the answering replica saw it."""

    messages: list[StoredMessage]
    pending: int


class StreamState(NamedTuple):
    """What the leader says of a stream."""

    messages: int
    first_seq: int
    last_seq: int
    config: dict[str, Any]


class WrongLastSequence(Exception):
    """The compare-and-set lost; nothing was stored. `last` is the subject's last sequence, or None when the server gave no
    verdict (another write of that subject is in flight): read it from the leader and try again."""

    def __init__(self, last: int | None) -> None:
        super().__init__("no verdict; try again" if last is None else f"the last sequence is {last}")
        self.last = last


class Uncertain(Exception):
    """The message was sent and no acknowledgement came: it may be stored, now or later."""


class ApiError(Exception):
    """A definite error of the JetStream API: `code` as in HTTP, `err_code` names it."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


class _Ack(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: ServerError | None = None


class _RawMessage(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: str = ""
    hdrs: str = ""


class _GetReply(msgspec.Struct):
    message: _RawMessage | None = None
    error: ServerError | None = None


class _ApiReply(msgspec.Struct):
    error: ServerError | None = None


LAST_SCHEDULE = 9_214_646_400.0
"""The beginning of 2262. The server counts nanoseconds in 64 bits, which end that year: it would store later messages at once."""

_ack = msgspec.json.Decoder(_Ack)
_got = msgspec.json.Decoder(_GetReply)
_reply = msgspec.json.Decoder(_ApiReply)
_encode = msgspec.json.Encoder().encode
_last_number = re.compile(r"(\d+)\s*$")


# --- publishing ---------------------------------------------------------------------------------------------------
async def store(
    t: Transport,
    subject: str,
    data: bytes = b"",
    *,
    headers: Headers | None = None,
    expected: int | None = None,
    msg_id: str | None = None,
    ttl_s: int | None = None,
    rollup: bool = False,
    timeout: float = 5.0,
) -> Stored:
    """Publish and return once the stream has it.

    Args:
        expected: store only if this is the sequence of the last message on `subject` (0: there is none).
        msg_id: id that the stream drops repetitions of, within its duplicate window.
        ttl_s: whole seconds after which the server removes the message.
        rollup: drop all older messages of `subject` in the same step.
        timeout: seconds to wait for the acknowledgement.

    Raises:
        WrongLastSequence: `expected` is not so, or the server gave no verdict. Nothing was stored.
        MailboxFull: the subject is at its bound. Nothing was stored.
        TooLarge: headers and body exceed a limit. Nothing was stored.
        Unavailable: no connection, or no leader. Nothing was stored.
        Uncertain: no acknowledgement came, or an earlier try of `msg_id` is still being stored; it may be stored.
        BadRequest: the server refuses it for another reason. Nothing was stored.
    """
    if not t.connected:
        raise Unavailable("there is no connection to a NATS server now; try again")
    fields = conditions(headers, expected, msg_id, ttl_s, rollup)
    try:
        reply = await t.request(subject, data, headers=fields, timeout=timeout)
    except UNANSWERED as error:
        raise unanswered(error, subject) from None
    return acknowledged(reply, subject)


def conditions(
    headers: Headers | None, expected: int | None, msg_id: str | None, ttl_s: int | None, rollup: bool
) -> Headers | None:
    """The headers of a publish, its conditions among them."""
    if expected is None and msg_id is None and ttl_s is None and not rollup:
        return headers
    fields = dict(headers) if headers else {}
    if expected is not None:
        fields[EXPECTED_SEQ] = str(expected)
    if msg_id is not None:
        fields[MSG_ID] = msg_id
    if ttl_s is not None:
        fields[TTL] = str(ttl_s)
    if rollup:
        fields[ROLLUP] = "sub"
    return fields


def unanswered(error: Exception, subject: str) -> Unavailable | Uncertain:
    """The error of a publish whose request ended with `error`: not sent, or of unknown fate."""
    if isinstance(error, NoResponders):
        return Unavailable(f"no stream takes {subject} now (none exists, or it has no leader); try again")
    return Uncertain(f"no acknowledgement for {subject}: {type(error).__name__}")


def acknowledged(reply: Message, subject: str) -> Stored:
    """The acknowledgement in the reply to a publish; raises as `store`."""
    try:
        ack = _ack.decode(reply.data)
    except msgspec.DecodeError:
        raise Uncertain(f"the answer for {subject} is no acknowledgement") from None
    if ack.error is not None:
        _refused(ack.error, subject)
    if ack.seq <= 0:
        raise Uncertain(f"the answer for {subject} is no acknowledgement")
    return Stored(ack.seq, ack.duplicate)


def _refused(error: ServerError, subject: str) -> NoReturn:
    code, text = error.err_code, error.description
    if code == _WRONG_SEQUENCE:
        number = _last_number.search(text)
        raise WrongLastSequence(int(number[1]) if number else None)
    if code == _NO_VERDICT:
        raise WrongLastSequence(None)
    if code == _IN_PROCESS:
        # An earlier try of the same id is on its way to the replicas: whether it will be stored shows when it is tried again.
        raise Uncertain(f"a message of the same id for {subject} is being stored")
    raise definite(error, subject)


async def schedule(
    t: Transport,
    subject: str,
    target: str,
    at: float,
    data: bytes,
    *,
    headers: Headers | None = None,
    expected: int | None = None,
    timeout: float = 5.0,
) -> Stored:
    """Store a message schedule on `subject`: at `at` (seconds since 1970) the server stores `data` and `headers` on
    `target`, in the same stream, and removes the schedule. A schedule on the same subject is replaced.

    Raises: as `store`.
    """
    fields = dict(headers or ())
    fields[SCHEDULE] = f"@at {format_time(min(at, LAST_SCHEDULE))}"
    fields[SCHEDULE_TARGET] = target
    return await store(t, subject, data, headers=fields, expected=expected, timeout=timeout)


# --- the API ------------------------------------------------------------------------------------------------------
async def api(t: Transport, call: str, body: Mapping[str, Any] | None = None, *, timeout: float = 5.0) -> bytes:
    """Make the JetStream API request `$JS.API.<call>` and return its JSON reply.

    Raises:
        ApiError: a definite error.
        Unavailable: no connection, no leader, no answer in time, or the server says so.
    """
    reply = await _ask(t, f"{API}.{call}", b"" if body is None else _encode(body), timeout)
    _raise_error(_reply.decode(reply.data).error)
    return reply.data


async def _ask(t: Transport, subject: str, body: bytes, timeout: float) -> Message:
    try:
        return await t.request(subject, body, timeout=timeout)
    except NoResponders:
        raise NoLeader(
            f"nobody answers {subject} now: the stream has no leader, as too few of its servers are up, or JetStream is off; "
            "bring its servers back"
        ) from None
    except (RequestTimeout, Disconnected) as error:
        raise Unavailable(f"no answer to {subject}: {type(error).__name__}") from None


def _raise_error(error: ServerError | None) -> None:
    if error is None:
        return
    if error.err_code == NO_META_LEADER:
        raise leaderless()
    if error.code in (429, 503):
        raise Unavailable(f"JetStream: {error.description}; try again", details={"err_code": error.err_code})
    raise ApiError(error.code, error.err_code, error.description)


async def stream_state(t: Transport, stream: str, *, timeout: float = 5.0) -> StreamState:
    """Sequences and configuration of `stream`, from its leader.

    Raises:
        ApiError: no such stream (`err_code` 10059).
        Unavailable: see `api`.
    """
    info: dict[str, Any] = msgspec.json.decode(await api(t, f"STREAM.INFO.{stream}", timeout=timeout))
    state = info["state"]
    return StreamState(state["messages"], state["first_seq"], state["last_seq"], info["config"])


async def purge(t: Transport, stream: str, filter: str, *, below: int | None = None, timeout: float = 5.0) -> int:
    """Remove the messages of `filter`, only those with a sequence under `below` if it is given. Idempotent.

    Returns: how many were removed.

    Raises:
        ApiError, Unavailable: see `api`.
    """
    body: dict[str, Any] = {"filter": filter}
    if below is not None:
        if below <= 1:  # the server takes 0 for "all"
            return 0
        body["seq"] = below
    reply = msgspec.json.decode(await api(t, f"STREAM.PURGE.{stream}", body, timeout=timeout))
    return int(reply.get("purged", 0))


# --- reading ------------------------------------------------------------------------------------------------------
async def get_last(t: Transport, stream: str, subject: str, *, timeout: float = 5.0) -> StoredMessage | None:
    """The last message on `subject`, from the stream's leader: never stale.

    Raises:
        Unavailable: no leader, or no answer in time.
    """
    return await _leader_get(t, stream, {"last_by_subj": subject}, timeout)


async def get_next(t: Transport, stream: str, filter: str, from_seq: int, *, timeout: float = 5.0) -> StoredMessage | None:
    """The first message of `filter` at or behind `from_seq`, from the stream's leader. None proves that there is none.

    Raises:
        Unavailable: no leader, or no answer in time.
    """
    return await _leader_get(t, stream, {"seq": from_seq, "next_by_subj": filter}, timeout)


async def _leader_get(t: Transport, stream: str, body: Mapping[str, Any], timeout: float) -> StoredMessage | None:
    reply = await _ask(t, f"{API}.STREAM.MSG.GET.{stream}", _encode(body), timeout)
    got = _got.decode(reply.data)
    if got.error is not None and got.error.err_code == _NO_MESSAGE:
        return None
    if got.error is not None and got.error.err_code == NO_STREAM:
        # A server that has just started may not know the stream yet: callers try again for a moment before they believe it.
        raise missing(stream)
    if got.error is not None and got.error.err_code == NO_META_LEADER:
        raise leaderless()
    if got.error is not None or got.message is None:
        text = got.error.description if got.error is not None else "an answer without a message"
        raise Unavailable(f"stream {stream} cannot be read now: {text}; try again")
    raw = got.message
    headers = parse_headers(base64.b64decode(raw.hdrs))[1] if raw.hdrs else NO_HEADERS
    return StoredMessage(raw.subject, raw.seq, base64.b64decode(raw.data), headers, parse_time(raw.time), 0)


async def get_last_direct(t: Transport, stream: str, subject: str, *, timeout: float = 5.0) -> StoredMessage | None:
    """The last message on `subject`, from any replica: cheaper, and a few milliseconds stale at times.

    Raises:
        Unavailable: no answer.
    """
    reply = await _ask(t, f"{API}.DIRECT.GET.{stream}", _encode({"last_by_subj": subject}), timeout)
    if _is_stored(reply):
        return _stored(reply)._replace(previous=0)
    if reply.status == "404":
        return None
    raise _bad_status(reply, stream)


async def get_last_many(
    t: Transport, stream: str, subjects: Sequence[str], *, timeout: float = 5.0
) -> tuple[dict[str, StoredMessage], int]:
    """The last message on each of `subjects`; a subject without one is absent. The subjects are split over requests that each
    match at most 1,024 messages; a wildcard pattern counts as the lanes of one agent.

    Returns: the messages by subject, and the sequence up to which all of them are current, as the answering replicas saw
        the stream (0: unknown). Compare it with the sequence that must be included.

    Raises:
        Unavailable: no answer.
    """
    found: dict[str, StoredMessage] = {}
    up_to: int | None = None
    todo = _chunks(subjects)
    while todo:
        chunk = todo.pop()
        replies = await _many(t, stream, {"multi_last": chunk}, timeout)
        end = replies[-1]
        if end.status == "413" and len(chunk) > 1:
            half = len(chunk) // 2
            todo += [chunk[:half], chunk[half:]]
            continue
        if end.status not in ("204", "404"):
            raise _bad_status(end, stream)
        for reply in replies[:-1]:
            message = _stored(reply)
            found[message.subject] = message
        reached = int(end.headers.get("Nats-UpTo-Sequence", 0))
        up_to = reached if up_to is None else min(up_to, reached)
    return found, up_to or 0


def _chunks(subjects: Sequence[str]) -> list[list[str]]:
    chunks: list[list[str]] = []
    room = 0
    for subject in subjects:
        weight = MATCHES_PER_WILDCARD if "*" in subject or ">" in subject else 1
        if room < weight:
            chunks.append([])
            room = MAX_MATCHES
        chunks[-1].append(subject)
        room -= weight
    return chunks


async def read(
    t: Transport,
    stream: str,
    filter: str,
    *,
    from_seq: int,
    batch: int = 256,
    max_bytes: int = 0,
    timeout: float = 5.0,
) -> Page:
    """The messages of `filter` at or behind `from_seq`, in order: at most `batch`, and no more once they fill `max_bytes`
    (0: 4 MiB), from any replica.

    Raises:
        Unavailable: no answer, or part of it was lost on the way.
    """
    body = {"seq": max(1, from_seq), "next_by_subj": filter, "batch": batch, "max_bytes": max_bytes or PAGE_BYTES}
    replies = await _many(t, stream, body, timeout)
    end = replies[-1]
    if end.status == "404":
        return Page([], 0)
    if end.status != "204":
        raise _bad_status(end, stream)
    messages = [_stored(reply) for reply in replies[:-1]]
    _check_chain(messages, end, stream)
    return Page(messages, int(end.headers.get("Nats-Num-Pending", 0)))


def _check_chain(messages: list[StoredMessage], end: Message, stream: str) -> None:
    # Every reply names the one before it, so a reply that a route dropped leaves a hole that shows.
    before = 0
    for message in messages:
        if message.previous != before:
            raise Unavailable(f"part of a page of {stream} was lost on the way; read again")
        before = message.seq
    if int(end.headers.get("Nats-Last-Sequence", before)) != before:
        raise Unavailable(f"part of a page of {stream} was lost on the way; read again")


async def read_all(t: Transport, stream: str, filter: str, *, from_seq: int = 1, timeout: float = 5.0) -> list[StoredMessage]:
    """Every message of `filter` at or behind `from_seq`, in order, proven complete: replicas are read until the leader
    says that nothing more follows. A message that was replaced during the read may appear together with its successor.

    Raises:
        Unavailable: no answer, no leader.
    """
    messages: list[StoredMessage] = []
    next_seq = from_seq
    while True:
        page = await read(t, stream, filter, from_seq=next_seq, timeout=timeout)
        messages += page.messages
        if page.messages:
            next_seq = page.messages[-1].seq + 1
        if page.pending:
            continue
        beyond = await get_next(t, stream, filter, next_seq, timeout=timeout)
        if beyond is None:
            return messages
        messages.append(beyond)
        next_seq = beyond.seq + 1


async def _many(t: Transport, stream: str, body: Mapping[str, Any], timeout: float) -> list[Message]:
    try:
        return await t.request_many(f"{API}.DIRECT.GET.{stream}", _encode(body), timeout=timeout)
    except NoResponders:
        raise Unavailable(f"no replica of {stream} answers now; try again") from None
    except (RequestTimeout, Disconnected) as error:
        raise Unavailable(f"no answer from {stream}: {type(error).__name__}") from None


def _is_stored(reply: Message) -> bool:
    # Not by the status: any publisher can store a message whose header block begins with a status line.
    return "Nats-Stream" in reply.headers


def _stored(reply: Message) -> StoredMessage:
    headers = reply.headers
    return StoredMessage(
        headers["Nats-Subject"],
        int(headers["Nats-Sequence"]),
        reply.data,
        headers,
        parse_time(headers["Nats-Time-Stamp"]),
        int(headers.get("Nats-Last-Sequence", 0)),
    )


def _bad_status(reply: Message, stream: str) -> MeshError:
    text = reply.data.decode("utf-8", "replace") or f"status {reply.status}"
    if reply.status in ("408", "413"):
        return BadRequest(f"{stream} refuses the read: {text}")
    return Unavailable(f"{stream} cannot be read now: {text}")
