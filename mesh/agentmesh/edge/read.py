"""Reading what a stream holds: from its leader, never stale, or from any replica, cheaper. Functions, no state."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from agentmesh import carried
from agentmesh.edge.address import API
from agentmesh.edge.api import ask_server
from agentmesh.edge.frames import NO_HEADERS, parse_headers
from agentmesh.edge.server_errors import NO_META_LEADER, NO_STREAM, ServerError, leaderless, missing
from agentmesh.edge.store_errors import counted
from agentmesh.edge.transport import Disconnected, Message, NoResponders, RequestTimeout, Transport, in_words
from agentmesh.errors import BadRequest, MeshError, Unavailable
from agentmesh.wire import format_time, parse_time

MAX_MATCHES = 1024
"""Most messages that one multi-subject direct get may match (docs/nats.md#many-subjects-in-one-read)."""
MATCHES_PER_WILDCARD = 5
"""How many messages one wildcard pattern is taken to match: one for each mail lane of an agent."""
PAGE_BYTES = 4 << 20
"""Most bytes of a page when the caller sets no bound."""
TIME_STAMP = carried.TIME_STAMP
"""Header: when the server stored a message, in its own words. Every message that is read here has it."""
_NO_MESSAGE = 10037


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


class _RawMessage(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: str = ""
    hdrs: str = ""


class _GetReply(msgspec.Struct):
    message: _RawMessage | None = None
    error: ServerError | None = None


_got = msgspec.json.Decoder(_GetReply)
_encode = msgspec.json.Encoder().encode


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
    reply = await ask_server(t, f"{API}.STREAM.MSG.GET.{stream}", _encode(body), timeout)
    got = _got.decode(reply.data)
    if got.error is not None and got.error.err_code == _NO_MESSAGE:
        return None
    if got.error is not None and got.error.err_code == NO_STREAM:
        # A server that has just started may not know the stream yet: callers try again for a moment before they believe it.
        raise missing(stream, clustered=t.clustered)
    if got.error is not None and got.error.err_code == NO_META_LEADER:
        raise leaderless()
    if got.error is not None or got.message is None:
        text = got.error.description if got.error is not None else "an answer without a message"
        raise Unavailable(f"stream {stream} cannot be read now: {text}; try again")
    raw = got.message
    headers = {**(parse_headers(base64.b64decode(raw.hdrs))[1] if raw.hdrs else NO_HEADERS), TIME_STAMP: raw.time}
    return StoredMessage(raw.subject, raw.seq, base64.b64decode(raw.data), headers, parse_time(raw.time), 0)


async def get_last_direct(t: Transport, stream: str, subject: str, *, timeout: float = 5.0) -> StoredMessage | None:
    """The last message on `subject`, from any replica: cheaper, and a few milliseconds stale at times.

    Raises:
        Unavailable: no answer.
    """
    reply = await ask_server(t, f"{API}.DIRECT.GET.{stream}", _encode({"last_by_subj": subject}), timeout)
    if _is_stored(reply):
        return _stored(reply)._replace(previous=0)
    if reply.status == "404":
        return None
    raise _bad_status(reply, stream)


async def get_last_named(t: Transport, stream: str, subject: str, *, timeout: float = 5.0) -> StoredMessage | None:
    """As `get_last_direct`, by a request whose subject ends in `subject`, so that a permission can say who may read what. The
    server takes wildcards in it for what they are: `subject` has none.

    Raises:
        NotPermitted: this user may not.
        Unavailable: no answer.
    """
    reply = await ask_server(t, f"{API}.DIRECT.GET.{stream}.{subject}", b"", timeout)
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
    since: float | None = None,
    batch: int = 256,
    max_bytes: int = 0,
    timeout: float = 5.0,
) -> Page:
    """The messages of `filter` at or behind `from_seq`, or, in its place, stored at `since` (seconds since 1970) or later; in
    order: at most `batch`, and no more once they fill `max_bytes` (0: 4 MiB), from any replica.

    Raises:
        Unavailable: no answer, or part of it was lost on the way.
    """
    begin = {"seq": max(1, from_seq)} if since is None else {"start_time": format_time(since)}
    body = {**begin, "next_by_subj": filter, "batch": batch, "max_bytes": max_bytes or PAGE_BYTES}
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
    """Every message of `filter` at or behind `from_seq`, in order, proven complete at its end (see `read_pages`).

    Raises:
        Unavailable: no answer, no leader.
    """
    pages = read_pages(t, stream, filter, from_seq=from_seq, timeout=timeout)
    return [message async for page in pages for message in page]


async def read_pages(
    t: Transport, stream: str, filter: str, *, from_seq: int = 1, timeout: float = 5.0
) -> AsyncIterator[list[StoredMessage]]:
    """Every message of `filter` at or behind `from_seq`, in order, some at a time, proven complete at its end: replicas are read
    until the leader says that nothing more follows. A message that was replaced during the read may appear together with its
    successor. What decides something compares the middle too: a replica that has just woken was seen to leave one out.

    Raises:
        Unavailable: no answer, no leader.
    """
    next_seq = from_seq
    while True:
        page = await read(t, stream, filter, from_seq=next_seq, timeout=timeout)
        if page.messages:
            next_seq = page.messages[-1].seq + 1
            yield page.messages
        if page.pending:
            continue
        beyond = await get_next(t, stream, filter, next_seq, timeout=timeout)
        if beyond is None:
            return
        next_seq = beyond.seq + 1
        yield [beyond]


async def read_by_leader(
    t: Transport, stream: str, filter: str, *, from_seq: int = 1, timeout: float = 5.0
) -> AsyncIterator[StoredMessage]:
    """Every message of `filter` at or behind `from_seq`, in order, from the stream's leader: one request for each, and none is
    missing. A listing of a replica may lack one in its middle (docs/nats.md#what-a-killed-server-forgets).

    Raises:
        Unavailable: no leader, or no answer in time.
    """
    next_seq = from_seq
    while (message := await get_next(t, stream, filter, next_seq, timeout=timeout)) is not None:
        yield message
        next_seq = message.seq + 1


async def read_counted(
    t: Transport, stream: str, filter: str, wanted: Mapping[str, int], end: int, *, timeout: float = 5.0
) -> list[StoredMessage]:
    """Every message of `filter`, in order: a listing, unless it has fewer on a subject, up to the sequence `end`, than the leader
    has said (`wanted`, see `manage.count_up_to_now`); then one by one from the leader.

    Raises:
        Unavailable: no answer, no leader.
    """
    if not wanted:
        return []
    found = await read_all(t, stream, filter, timeout=timeout)
    got = Counter(message.subject for message in found if message.seq <= end)
    if all(got[subject] >= number for subject, number in wanted.items()):
        return found
    return [message async for message in read_by_leader(t, stream, filter, timeout=timeout)]


async def _many(t: Transport, stream: str, body: Mapping[str, Any], timeout: float) -> list[Message]:
    try:
        return await t.request_many(f"{API}.DIRECT.GET.{stream}", _encode(body), timeout=timeout)
    except NoResponders as error:
        counted(error)
        raise Unavailable(f"no replica of {stream} answers now; try again") from None
    except (RequestTimeout, Disconnected) as error:
        counted(error)
        raise Unavailable(f"no answer from stream {stream}: {in_words(error)}; try again") from None


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
        parse_time(headers[TIME_STAMP]),
        int(headers.get("Nats-Last-Sequence", 0)),
    )


def _bad_status(reply: Message, stream: str) -> MeshError:
    text = reply.data.decode("utf-8", "replace") or f"status {reply.status}"
    if reply.status in ("408", "413"):
        return BadRequest(f"{stream} refuses the read: {text}")
    return Unavailable(f"{stream} cannot be read now: {text}")
