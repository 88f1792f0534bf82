"""Outcomes: how large one may be, and which message it answers. Pure.

A ref is a sequence of the mail stream. A stream that is put back to an older state gives sequences again, and the outcomes of
the messages that it has lost may still be stored, each under a ref that now belongs to another message. So an outcome names its
message: by that one's `Nats-Msg-Id`, and by the time when the server stored it (docs/design/020-outcomes-name-their-message.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from agentmesh.errors import BadRequest
from agentmesh.wire import HEADER_ROOM, MAIL_ROOM, ErrorBody, Outcome, encode_outcome, parse_time

ID_LENGTH = 256
"""Characters of a `Nats-Msg-Id` that an outcome repeats, at most: an id may be longer than the outcome could be."""
CALLERS_SIZE, CALLERS_MARK = 32, "|"
"""Ids of callers in other accounts are stored behind so many hex digits, which stand for the caller, and this mark."""
SAME_CLOCK_S = 1.0
"""An outcome that does not name its message may have been stored so much before it: by two servers, whose clocks differ."""
_HEX = frozenset("0123456789abcdef")
OTHER_CLOCK_S = 60.0
"""By how much a message may seem to be older than the one before it: another server leads the stream by then."""


class Asked(NamedTuple):
    """A message that asks something, as far as it is known."""

    msg_id: str | None = None
    """Its `Nats-Msg-Id`; None: it had none, or it is not known."""
    stored: float | None = None
    """When the server stored it (seconds since 1970); None: that is not known."""


class AnsweredMessage(NamedTuple):
    """A message of the mail that was consumed and answered: its sequence, and when the server stored it (seconds since 1970)."""

    seq: int
    stored: float


def answered_by(outcome: Outcome) -> AnsweredMessage | None:
    """The message that an outcome answers; None if it does not name it."""
    stored = message_named(outcome).stored
    return AnsweredMessage(int(outcome.ref), stored) if stored is not None and outcome.ref.isdecimal() else None


def id_in_outcome(msg_id: str | None) -> str | None:
    """A `Nats-Msg-Id` as outcomes name it: as its sender has given it, and no longer than they can be."""
    if msg_id is None:
        return None
    if msg_id[CALLERS_SIZE : CALLERS_SIZE + 1] == CALLERS_MARK and _HEX.issuperset(msg_id[:CALLERS_SIZE]):
        msg_id = msg_id[CALLERS_SIZE + 1 :]
    return msg_id[:ID_LENGTH]


def message_named(outcome: Outcome) -> Asked:
    """The message that an outcome answers, as far as it says so."""
    return Asked(outcome.msg_id, None if outcome.stored is None else _time(outcome.stored))


def answers(outcome: Outcome, asked: Asked, at: float) -> bool:
    """Whether an outcome answers this message, as far as both are known.

    Args:
        outcome: one that is stored under the message's ref.
        asked: the message.
        at: when the outcome was stored (seconds since 1970, by the server's clock).
    """
    if outcome.stored is None:  # an older build has written it
        return asked.stored is None or at > asked.stored - SAME_CLOCK_S
    if asked.stored is not None and _time(outcome.stored) != asked.stored:
        return False
    # An older build names a caller's id as it is stored.
    return asked.msg_id is None or outcome.msg_id in (id_in_outcome(asked.msg_id), asked.msg_id[:ID_LENGTH])


def given_again(messages: Iterable[tuple[int, float]]) -> bool:
    """Whether some of these messages have got their sequences a second time: a later one is older, or two have one sequence.

    Args:
        messages: sequence of each, and when the server stored it (seconds since 1970).
    """
    newest, before = -math.inf, (0, -math.inf)
    for message in sorted(messages):
        seq, stored = message
        if stored < newest - OTHER_CLOCK_S or (seq == before[0] and message != before):
            return True
        newest, before = max(newest, stored), message
    return False


def _time(text: str) -> float | None:
    try:
        return parse_time(text)
    except BadRequest:
        return None  # no server has written this


def outcome_limit(max_payload: int, *, mailed: bool = False) -> int:
    """Bytes that an encoded outcome may take: what the narrowest of its ways can carry.

    Args:
        max_payload: the server's limit, in bytes. Mail is limited to 64 KiB less (docs/protocol.md#streams), headers included.
        mailed: an agent asked, and gets the outcome as mail too.
    """
    return max_payload - HEADER_ROOM - (MAIL_ROOM if mailed else 0)


def capped(outcome: Outcome, limit: int) -> Outcome:
    """The outcome; or, if it takes more than `limit` bytes, the error `too_large` in its place.

    The turn machine does this before the record is built, so that the journal has the same outcome that callers get. Owners do
    it again when they perform a record: an older journal may hold a larger outcome.
    """
    size = len(encode_outcome(outcome))
    if size <= limit:
        return outcome
    error = ErrorBody(
        code="too_large",
        message=f"the outcome takes {size} bytes; at most {limit} can be sent to its caller",
        details={"size": size, "limit": limit},
    )
    return msgspec.structs.replace(outcome, ok=False, text=None, usage=None, session_id=None, error=error)
