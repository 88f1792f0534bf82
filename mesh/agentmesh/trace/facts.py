"""Facts of records: what a record has to say of spans, without its content. Pure.

To publish what a record tells costs each turn something, and to tell it costs more. So a node publishes what the spans are told
from, and readers tell them (`agentmesh.trace.told`): the same function makes the same spans, whenever it is asked.
"""

from __future__ import annotations

import msgspec
from msgspec import structs

from agentmesh.effects import CancelTimer, Effect, SendMail
from agentmesh.errors import BadRequest
from agentmesh.ledger_entries import Handled, TurnInfo
from agentmesh.records import Ledger, Record
from agentmesh.trace.spans import ToldSpan, decode_spans
from agentmesh.trace.told import SENT_LANES, inner_told, mail_sent, spans_told
from agentmesh.wire import ErrorBody


class SentMail(msgspec.Struct, frozen=True, array_like=True):
    """Mail that a record sends."""

    index: int
    """Its place among the record's effects: its origin has that."""
    to: str
    lane: str
    trace: dict[str, str] = {}


class RecordFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a committed record has to say of spans."""

    service: str
    """The agent's kind."""
    seq: int
    """The record's sequence in the journal."""
    at: float
    life: str
    epoch: int = 1
    generation: int = 0
    node: str = ""
    boot: str = ""
    turn: TurnInfo | None = None
    attempt: TurnInfo | None = None
    handled: tuple[Handled, ...] = ()
    sends: tuple[SentMail, ...] = ()
    ratio: float = 1.0
    """The share of traces that the node samples where nobody has decided."""
    v: int = 1


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RecordFact).decode
_NO_EFFECT = CancelTimer(id="")


def record_fact(service: str, before: Ledger | None, record: Record, seq: int, ratio: float = 1.0) -> bytes | None:
    """The fact of a record, as it is published; None if the record tells no span.

    Args:
        service: the agent's kind.
        before: the ledger that the record changes.
        record: it.
        seq: its sequence in the journal.
        ratio: the share of traces that are sampled where nobody has decided.
    """
    mails = mail_sent(record)
    sends = tuple(SentMail(index, mail.to, mail.lane, mail.trace) for index, mail in mails) if mails else ()
    turn = _bare(record.turn, before) if record.turn is not None else None
    attempt = _bare(record.attempt, before) if record.attempt is not None else None
    if turn is None and attempt is None and not sends and not record.handled:
        return None
    return _encode(
        RecordFact(
            service=service,
            seq=seq,
            at=record.at,
            life=record.incarnation,
            epoch=record.epoch,
            generation=record.generation,
            node=record.node,
            boot=record.boot,
            turn=turn,
            attempt=attempt,
            handled=record.handled,
            sends=sends,
            ratio=ratio,
        )
    )


def _bare(info: TurnInfo, before: Ledger | None) -> TurnInfo | None:
    """A turn's entry without its content, and with what ran in it; None if it tells no span."""
    traced = info.trace
    if traced is None and info.derived is None:
        return None
    if traced is not None and before is not None and before.steps:
        traced = structs.replace(traced, inner=inner_told(info, before.steps))
    error = ErrorBody(code=info.error.code, message="") if info.error is not None else None
    return structs.replace(info, prompt="", answer=None, note=None, label=None, error=error, trace=traced)


def spans_in(agent: str, what: str, body: bytes, root: str) -> tuple[ToldSpan, ...]:
    """The spans that a fact on `mesh.trace.<agent>.<what>` tells; none if it is of another kind.

    Raises:
        msgspec.DecodeError: it is no such fact.
    """
    if what == "spans":
        return tuple(span for span in decode_spans(body) if span.agent == agent)
    if what != "record":
        return ()
    fact = _decode(body)
    try:
        return spans_told(agent, fact.service, None, _record(fact), fact.seq, root=root, ratio=fact.ratio)
    except (TypeError, ValueError, OverflowError, KeyError, BadRequest) as error:
        raise msgspec.DecodeError(f"a fact of a record tells no spans: {error}") from None


def _record(fact: RecordFact) -> Record:
    effects: list[Effect] = [_NO_EFFECT] * (max((sent.index for sent in fact.sends), default=-1) + 1 if _is_sound(fact) else 0)
    for sent in fact.sends if effects else ():
        effects[sent.index] = SendMail(to=sent.to, lane=sent.lane, trace=sent.trace)  # type: ignore[arg-type]
    return Record(
        kind="turn",
        id="",
        at=fact.at,
        incarnation=fact.life,
        epoch=fact.epoch,
        generation=fact.generation,
        node=fact.node,
        boot=fact.boot,
        turn=fact.turn,
        attempt=fact.attempt,
        handled=fact.handled,
        effects=tuple(effects),
    )


MOST_EFFECTS = 100_000
"""More effects than a record has: a fact that says otherwise is a stranger's."""


def _is_sound(fact: RecordFact) -> bool:
    return all(0 <= sent.index < MOST_EFFECTS and sent.lane in SENT_LANES for sent in fact.sends)
