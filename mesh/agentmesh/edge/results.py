"""Stored outcomes: reading the one that counts, storing one, and finding the message that it must answer.

A subject of results holds one outcome, or, where mail was put back to an older state, the outcomes of several messages that had
the same sequence; the newest counts (docs/design/020-outcomes-name-their-message.md).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from agentmesh.edge.failures import WrongLastSequence
from agentmesh.edge.last_reads import LastReads
from agentmesh.edge.manage import stream_state
from agentmesh.edge.publish import store
from agentmesh.edge.read import StoredMessage, get_last, get_last_direct, get_next, read, read_all
from agentmesh.edge.transport import Transport
from agentmesh.errors import Unavailable
from agentmesh.keys import KEY_DIGEST, stored_digest
from agentmesh.outcomes import AnsweredMessage, Asked, answered_by, answers, given_again, message_named
from agentmesh.subjects import LANES, Subjects
from agentmesh.wire import MSG_ID, Outcome, decode_outcome, encode_outcome

TRIES = 5
"""How often an outcome is stored behind others, while others are stored at the same time."""
LAST_REF = 2**63 - 1
"""The largest ref that can exist: the server reads no larger sequence."""

NEWEST_RESULTS = 256
"""How many results are looked at for signs of older mail."""
PROMPT_LANES = frozenset(name for name, lane in LANES.items() if lane.kind == "prompt")


class StoredOutcome(NamedTuple):
    """An outcome as it is stored: also its bytes, and when it was stored (seconds since 1970, by the server's clock)."""

    outcome: Outcome
    body: bytes
    time: float
    key: str | None = None
    """The digest of the key that its request had."""


class OlderMail(NamedTuple):
    """What shows that the mail was put back to an older state than the results."""

    answered: int
    """The largest ref that is known to be answered."""
    end: int
    """The last sequence of the mail."""


class StandingPrompt(NamedTuple):
    """A prompt that stands in the mail, and its lane."""

    lane: str
    asked: Asked
    key: str | None = None
    """The digest of its key."""


async def read_outcome(
    t: Transport,
    subjects: Subjects,
    agent: str,
    ref: str,
    *,
    direct: bool = False,
    timeout: float = 5.0,
    reads: LastReads | None = None,
) -> StoredOutcome | None:
    """The outcome that is stored under a ref: the newest of the mesh's form.

    Args:
        direct: read it from any replica, which is cheaper, and may be a few milliseconds stale.
        reads: of a caller, who may be confined to some subjects.

    Raises:
        Unavailable: it cannot be read now.
    """
    stream, subject = subjects.stream("result"), subjects.result(agent, ref)
    if reads is not None:
        newest = await reads.newest(stream, subject, direct=direct, timeout=timeout)
    else:
        newest = await (get_last_direct if direct else get_last)(t, stream, subject, timeout=timeout)
    return None if newest is None else await outcome_in(t, subjects, newest)


async def outcome_in(t: Transport, subjects: Subjects, newest: StoredMessage) -> StoredOutcome | None:
    """The outcome that counts on a subject of results of which this is the newest message; None if there is none.

    Raises:
        Unavailable: it cannot be read now.
    """
    found = stored_outcome(newest)
    if found is not None:
        return found
    # Somebody has published what is no outcome: what lies in front of it counts.
    messages = await read_all(t, subjects.stream("result"), newest.subject)
    return next((found for message in reversed(messages) if (found := stored_outcome(message)) is not None), None)


def stored_outcome(message: StoredMessage) -> StoredOutcome | None:
    """The outcome in a message of the stream of results; None if it holds none."""
    try:
        return StoredOutcome(decode_outcome(message.data), message.data, message.time, stored_digest(message.headers))
    except (msgspec.DecodeError, RecursionError):
        return None


async def standing_prompt(
    t: Transport, subjects: Subjects, agent: str, ref: str, *, timeout: float = 5.0
) -> StandingPrompt | None:
    """The prompt to `agent` that stands in the mail under this ref, according to the leader; None if there is none (any more).

    Raises:
        Unavailable: the mail cannot be read now.
    """
    if not ref.isdecimal() or not 0 < int(ref) <= LAST_REF:
        return None
    found = await get_next(t, subjects.stream("mail"), subjects.mail_filter(agent), int(ref), timeout=timeout)
    lane, _ = (subjects.parse_lane(found.subject) if found is not None else None) or ("", "")
    if found is None or found.seq != int(ref) or lane not in PROMPT_LANES:
        return None
    return StandingPrompt(lane, Asked(found.headers.get(MSG_ID), found.time), stored_digest(found.headers))


async def is_answer(t: Transport, subjects: Subjects, stored: StoredOutcome, msg_id: str | None) -> bool:
    """Whether a stored outcome answers the message with this `Nats-Msg-Id` that was stored under the same ref.

    Raises:
        Unavailable: that cannot be told now.
    """
    asked = Asked(msg_id)
    if stored.outcome.stored is None:  # an older build has written it: only the time when it was stored can tell
        standing = await standing_prompt(t, subjects, stored.outcome.agent, stored.outcome.ref)
        asked = asked if standing is None else standing.asked
    return answers(stored.outcome, asked, stored.time)


async def store_outcome(t: Transport, subjects: Subjects, outcome: Outcome, key: str | None = None) -> None:
    """Store an outcome under its ref, unless one is stored there that answers the same message: the first one stays. One of
    another message stays too, in front of this one. `key`: the digest of the request's key.

    Raises:
        As `agentmesh.edge.publish.store`; WrongLastSequence if the server gave no verdict.
    """
    subject, body, expected = subjects.result(outcome.agent, outcome.ref), encode_outcome(outcome), 0
    for _ in range(TRIES):
        try:
            await store(t, subject, body, headers=None if key is None else {KEY_DIGEST: key}, expected=expected)
        except WrongLastSequence as error:
            if error.last is None:
                raise
        else:
            return
        newest = await get_last(t, subjects.stream("result"), subject)
        if newest is None:
            expected = 0  # it has lapsed
            continue
        there = await outcome_in(t, subjects, newest)
        if there is not None and answers(there.outcome, message_named(outcome), there.time):
            return
        expected = newest.seq
    raise Unavailable(f"others store outcomes under {subject} at the same time; try again")


async def older_mail(t: Transport, subjects: Subjects, *, timeout: float = 5.0) -> OlderMail | None:
    """What the newest results show of mail that was put back to an older state; None if they show nothing of the kind.

    They show it if a ref is answered that the mail does not reach, if the last answered message has another one in its place, or
    if of two answered messages the later one is the older: then sequences have been given again.

    Raises:
        ApiError, Unavailable: the streams cannot be read now.
    """
    stream = subjects.stream("result")
    first = (await stream_state(t, stream, timeout=timeout)).last_seq - NEWEST_RESULTS + 1
    page = await read(t, stream, f"{subjects.root}.result.>", from_seq=first, batch=NEWEST_RESULTS, timeout=timeout)
    # Behind that read: no message that is answered there can be newer than this end.
    end = (await stream_state(t, subjects.stream("mail"), timeout=timeout)).last_seq
    outcomes = [stored.outcome for message in page.messages if (stored := stored_outcome(message)) is not None]
    answered = max((int(outcome.ref) for outcome in outcomes if outcome.ref.isdecimal()), default=0)
    named = [message for outcome in outcomes if (message := answered_by(outcome)) is not None]
    if answered > end or given_again(named) or (named and await is_replaced(t, subjects, max(named), timeout=timeout)):
        return OlderMail(answered, end)
    return None


async def is_replaced(t: Transport, subjects: Subjects, answered: AnsweredMessage, *, timeout: float = 5.0) -> bool | None:
    """Whether another message has the place of one that was answered; None if none has it (any more).

    Raises:
        Unavailable: the mail cannot be read now.
    """
    found = await get_next(t, subjects.stream("mail"), f"{subjects.root}.>", answered.seq, timeout=timeout)
    return None if found is None or found.seq != answered.seq else found.time != answered.stored


def describe(older: OlderMail) -> str:
    """What was found, for people, and what to do about it."""
    seen = (
        f"request {older.answered} is answered, the mail ends at {older.end}"
        if older.answered > older.end
        else "sequences of answered requests have been given again"
    )
    return (
        f"the mail was put back to an older state than the results: {seen}. Agents that have consumed more than there is stop "
        "(`store_lost`): stop all nodes, and restore all streams from one moment (docs/operations.md#a-store-that-was-put-back)"
    )
