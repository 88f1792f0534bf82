"""Publishing to a stream, with the server's acknowledgement. Functions, no state.

The wire forms are NATS's own (Nats-* headers), so anything that speaks `Transport` can stand in for the server. What an answer
means is decided here once: what was refused (nothing stored), what is unknown, what to try again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import msgspec

from agentmesh.edge.address import API
from agentmesh.edge.api import domain_of
from agentmesh.edge.failures import EDGE_ERRORS, Uncertain, WrongLastSequence
from agentmesh.edge.frames import header_block
from agentmesh.edge.server_errors import ServerError, definite
from agentmesh.edge.store_errors import counted
from agentmesh.edge.transport import UNANSWERED, Disconnected, Headers, Message, NoResponders, Transport, in_words
from agentmesh.errors import NotPermitted, TooLarge, Unavailable, WrongDomain
from agentmesh.subjects import LANES
from agentmesh.wire import MAIL_ROOM, MSG_ID, format_time

EXPECTED_SEQ = "Nats-Expected-Last-Subject-Sequence"
TTL = "Nats-TTL"
ROLLUP = "Nats-Rollup"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"

LAST_SCHEDULE = 9_214_646_400.0
"""The beginning of 2262. The server counts nanoseconds in 64 bits, which end that year: it would store later messages at once
(docs/nats.md#message-schedules)."""

# What each means: docs/nats.md#refused-or-no-verdict.
_WRONG_SEQUENCE = 10071
_NO_VERDICT = 10164
_IN_PROCESS = 10158
_LEARN_S = 5.0
"""Wait for what a stream says of its domain."""
_MAIL_LANES = frozenset(lane.name for lane in LANES.values() if lane.stream == "mail")


class Stored(NamedTuple):
    """A publish's acknowledgement. `duplicate`: the message id was stored before, at `seq`."""

    seq: int
    duplicate: bool


class _Ack(msgspec.Struct):
    stream: str = ""
    domain: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ServerError | None = None


class _Elsewhere(Exception):
    """An acknowledgement of another domain than the mesh's, as far as that is known."""

    def __init__(self, ack: _Ack) -> None:
        self.ack = ack


_ack = msgspec.json.Decoder(_Ack)
_last_number = re.compile(r"(\d+)\s*$")


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
        NotPermitted: the server forbids it. Nothing was stored.
        Unavailable: no connection, or no leader. Nothing was stored.
        WrongDomain: it was stored in another JetStream domain than the mesh's, and perhaps here, too. Do not repeat it.
        Uncertain: no acknowledgement came, or an earlier try of `msg_id` is still being stored; it may be stored.
        BadRequest: the server refuses it for another reason. Nothing was stored.
    """
    if not t.connected:
        raise Unavailable("there is no connection to a NATS server now; try again")
    fields = _conditions(headers, expected, msg_id, ttl_s, rollup)
    try:
        reply = await t.request(subject, data, headers=fields, timeout=timeout)
        return _acknowledged(t, reply, subject)
    except _Elsewhere as elsewhere:
        return await _or_wrong_domain(t, elsewhere.ack, subject)
    except UNANSWERED as error:
        raise _unanswered(error, subject) from None
    except TooLarge as error:
        raise _measured(error, t, subject, data, fields) from None


def store_soon(
    t: Transport,
    subject: str,
    data: bytes,
    stored: Callable[[Stored | Exception], None],
    *,
    headers: Headers | None = None,
    expected: int | None = None,
    msg_id: str | None = None,
    rollup: bool = False,
    timeout: float = 5.0,
) -> bool:
    """`store` without a task that waits, for what every turn stores: `stored` gets what `store` returns, or would have raised
    once the message was sent, in the loop callback in which the acknowledgement arrives (`Transport.call`).

    Returns: False if it cannot be sent at once: nothing was sent, and `stored` is never called.

    Raises:
        TooLarge: nothing was sent.
    """

    def answered(reply: Message | Exception) -> None:
        if type(reply) is Message:
            try:
                result: Stored | Exception = _acknowledged(t, reply, subject)
            except _Elsewhere as elsewhere:
                _look_whose(t, elsewhere.ack, subject, stored)
                return
            except TooLarge as error:
                result = _measured(error, t, subject, data, fields)
            except EDGE_ERRORS as error:
                result = error
            except Exception as error:  # noqa: BLE001 - the callback must be called whatever the reply is
                result = Uncertain(f"the answer for {subject} cannot be read: {error!r}")
        else:
            result = _unanswered(reply, subject)  # type: ignore[arg-type]  # a message is told apart above
        stored(result)

    fields = _conditions(headers, expected, msg_id, None, rollup)
    try:
        return t.call(subject, data, headers=fields, timeout=timeout, answered=answered)
    except TooLarge as error:
        raise _measured(error, t, subject, data, fields) from None


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


def _conditions(
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


def _unanswered(error: Exception, subject: str) -> NotPermitted | Unavailable | Uncertain:
    """The error of a publish whose request ended with `error`: not sent, or of unknown fate."""
    counted(error)
    if isinstance(error, NotPermitted):
        return error
    if isinstance(error, NoResponders):
        return Unavailable(f"no stream takes {subject} now (none exists, or it has no leader); try again")
    return Uncertain(f"no acknowledgement for {subject}: {in_words(error)}")


def _measured(error: TooLarge, t: Transport, subject: str, data: bytes, headers: Headers | None) -> TooLarge:
    """The error with the number that counts: the limit of mail is below the server's own (docs/protocol.md#sizes)."""
    if subject.partition(".")[2].partition(".")[0] not in _MAIL_LANES:
        return error
    size, limit = len(data) + (len(header_block(headers).encode()) if headers else 0), t.max_payload - MAIL_ROOM
    return TooLarge(
        f"the message takes {size} bytes with its headers; at most {limit} can be mailed to an agent: send less, or a reference "
        "(an attachment takes a third more than its file: put a larger one where the agent can fetch it, and send its URL)",
        details={**error.details, "size": size, "limit": limit},
    )


async def _or_wrong_domain(t: Transport, ack: _Ack, subject: str) -> Stored:
    """What an acknowledgement of another domain means: nothing, if the mesh's own has changed (`WrongDomain` otherwise)."""
    try:
        answer: Message | Exception = await t.request(_whose(ack), timeout=_LEARN_S)
    except UNANSWERED as error:
        answer = error
    return _same_domain(t, ack, subject, answer)


def _look_whose(t: Transport, ack: _Ack, subject: str, stored: Callable[[Stored | Exception], None]) -> None:
    """`_or_wrong_domain` for `store_soon`."""

    def answered(answer: Message | Exception) -> None:
        try:
            result: Stored | Exception = _same_domain(t, ack, subject, answer)
        except WrongDomain as error:
            result = error
        stored(result)

    if not t.call(_whose(ack), timeout=_LEARN_S, answered=answered):
        answered(Disconnected())


def _whose(ack: _Ack) -> str:
    return f"{API}.STREAM.INFO.{ack.stream}"


def _same_domain(t: Transport, ack: _Ack, subject: str, answer: Message | Exception) -> Stored:
    """The publish, if the domain that its acknowledgement bears is the mesh's by what its stream answers."""
    if isinstance(answer, Message):
        with contextlib.suppress(ValueError):
            t.domain = domain_of(answer.data)
    if ack.domain == t.domain:
        return Stored(ack.seq, ack.duplicate)
    there, here = (
        f"the JetStream domain {name!r}" if name else "a JetStream without a domain" for name in (ack.domain, t.domain)
    )
    raise WrongDomain(
        f"{subject} was stored in stream {ack.stream} of {there}, at sequence {ack.seq}, and this mesh is in {here}: two sets of "
        "streams of one root hear each other. Give one of the meshes another root, or name the domain of the one that is meant "
        "(--domain)",
        details={"stream": ack.stream, "domain": ack.domain, "seq": ack.seq, "wanted": t.domain},
    )


def _acknowledged(t: Transport, reply: Message, subject: str) -> Stored:
    """The acknowledgement in the reply to a publish; raises as `store`, and `_Elsewhere`."""
    try:
        ack = _ack.decode(reply.data)
    except msgspec.DecodeError:
        raise Uncertain(f"the answer for {subject} is no acknowledgement") from None
    if ack.error is not None:
        _refused(ack.error, subject)
    if ack.seq <= 0:
        raise Uncertain(f"the answer for {subject} is no acknowledgement")
    if ack.domain != t.domain and t.domain is not None:
        raise _Elsewhere(ack)
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
    raise counted(definite(error, subject))
