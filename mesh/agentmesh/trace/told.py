"""The spans that a committed record tells (docs/design/035-spans-are-told-by-records.md). Pure.

All who know the record make the same spans of it: the owner that has committed it, the next one, a rebuild. They never hold
content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from agentmesh import semconv
from agentmesh.budget import COSTS
from agentmesh.identity import Chain, told
from agentmesh.ledger import origin_of
from agentmesh.ledger_entries import Handled, Inner, Step, Traced, TurnInfo
from agentmesh.records import Ledger, Record, SendMail
from agentmesh.trace.context import sent_context
from agentmesh.trace.derived import traced_of
from agentmesh.trace.spans import AttemptEnd, Attributes, ToldSpan

SENT_LANES = frozenset(("peer-inbox", "peer-notify"))
"""Lanes of mail that begins something. An answer ends it, and is no span."""
MOST_COUNT = 1 << 63
"""Greater numbers of tokens are no numbers of tokens, and fit no span."""


class Teller(msgspec.Struct, frozen=True, kw_only=True):
    """Whose spans they are."""

    agent: str
    service: str
    """The agent's kind."""
    life: str
    """Its incarnation."""
    epoch: int = 1
    root: str = "mesh"
    """The mesh's, as subjects have it."""


def spans_told(
    agent: str,
    service: str,
    before: Ledger | None,
    record: Record,
    seq: int,
    *,
    root: str = "mesh",
    ratio: float = 1.0,
) -> tuple[ToldSpan, ...]:
    """All spans that a committed record tells: of the attempt that it ends and of its message, of what ran in it, of the events
    and prompts that it dealt with, and of the mail that it sends.

    Args:
        agent: whose journal it is from.
        service: that agent's kind.
        before: the ledger that the record changes, which has the steps of the turn that it ends; None if that is not known.
        record: the record.
        seq: its sequence in the journal.
        root: the mesh's.
        ratio: the share of traces that are sampled where nobody has decided.
    """
    teller = Teller(agent=agent, service=service, life=record.incarnation, epoch=record.epoch, root=root)
    found: list[ToldSpan] = []
    steps = before.steps if before is not None else {}
    for info in (record.turn, record.attempt):
        if info is not None:
            found += turn_spans(teller, info, steps)
    found += [_handled(teller, handled, record.node) for handled in record.handled]
    found += _sends(teller, record, seq, ratio)
    return tuple(found)


def mail_sent(record: Record) -> list[tuple[int, SendMail]]:
    """The mail that a record sends and that begins something, each with its place among the record's effects."""
    return [
        (index, effect)
        for index, effect in enumerate(record.effects)
        if type(effect) is SendMail and effect.lane in SENT_LANES and effect.outcome is None
    ]


def turn_spans(teller: Teller, info: TurnInfo, steps: Mapping[str, Step] | None = None) -> Iterator[ToldSpan]:
    """The spans of an attempt that has ended, as a record or the history has it: of its message, if that ended with it; of
    itself; of what ran in it, as far as `steps` and the entry itself know."""
    traced = traced_of(teller.agent, teller.life, info)
    if traced is None:
        return
    if traced.process:
        yield _process(teller, info, traced)
    if not traced.span:
        return
    attempt = _attempt(teller, info, traced)
    yield attempt
    yield from inner_spans(teller, attempt, inner_of(traced.span, steps or {}, traced.inner))


def inner_of(attempt: str, steps: Mapping[str, Step], further: Iterable[Inner] = ()) -> Iterator[Inner]:
    """What ran in the attempt with this id, each once: as its steps have it, and `further` ones."""
    seen: set[str] = set()
    of_steps = (step.inner for step in steps.values() if step.inner is not None and step.attempt == attempt)
    for inner in (*of_steps, *further):
        if inner.id not in seen:
            seen.add(inner.id)
            yield inner


def inner_told(info: TurnInfo, steps: Mapping[str, Step]) -> tuple[Inner, ...]:
    """What ran in the attempt of a turn's entry."""
    return tuple(inner_of(info.trace.span, steps, info.trace.inner)) if info.trace is not None else ()


def inner_spans(teller: Teller, attempt: ToldSpan, inner: Iterable[Inner]) -> Iterator[ToldSpan]:
    """The spans of model calls and tool runs inside an attempt."""
    for one in inner:
        chat = one.op == "chat"
        attributes: Attributes = {
            **_common(teller, attempt.node),
            semconv.OPERATION: one.op,
            **one.attributes,
            **({} if chat else {semconv.TOOL_NAME: one.name}),
            **_failed(one.error),
        }
        yield ToldSpan(
            trace=attempt.trace,
            id=one.id,
            parent=attempt.id,
            name=semconv.chat(one.name) if chat else semconv.execute_tool(one.name),
            op=one.op,
            kind="client" if chat else "internal",
            start=one.began,
            end=max(one.began, one.ended),
            agent=teller.agent,
            service=teller.service,
            node=attempt.node,
            error=one.error,
            attributes=attributes,
            sampled=attempt.sampled,
        )


def attempt_span(
    teller: Teller,
    *,
    trace: str,
    span: str,
    parent: str,
    ref: str,
    turn: int,
    began: float,
    ended: float,
    end: AttemptEnd,
    node: str,
    generation: int,
    boot: str,
    crashes: int = 0,
    retries: int = 0,
    takeovers: int = 0,
    sender: str | None = None,
    chain: Chain = (),
    error: str = "",
    usage: Mapping[str, Any] | None = None,
    links: tuple[str, ...] = (),
    sampled: bool = True,
) -> ToldSpan:
    """The span of an attempt, which ended in this way; its other arguments are as in `Began` and `TurnInfo`."""
    attributes: Attributes = {
        **_common(teller, node),
        semconv.OPERATION: semconv.OPERATION_INVOKE_AGENT,
        **({semconv.CALLER_NAME: sender} if sender else {}),
        **(_behalf(chain) if chain else {}),
        semconv.REF: ref,
        semconv.TURN: turn,
        semconv.ATTEMPT: 1 + crashes + retries,
        semconv.ATTEMPT_END: end,
        semconv.EPOCH: teller.epoch,
        semconv.GENERATION: generation,
        semconv.BOOT: boot,
        **({semconv.TAKEOVERS: takeovers} if takeovers else {}),
        **_spending(usage or {}),
        **_failed(error),
    }
    return ToldSpan(
        trace=trace,
        id=span,
        parent=parent,
        name=semconv.invoke_agent(teller.agent),
        op="invoke_agent",
        kind="internal",
        start=began,
        end=max(began, ended),
        agent=teller.agent,
        service=teller.service,
        node=node,
        error=error,
        links=links,
        attributes=attributes,
        sampled=sampled,
    )


def tokens_of(usage: Mapping[str, Any]) -> Attributes:
    """The attributes for the tokens of a usage. The conventions count cached tokens among the input."""
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_write_input_tokens")
    counts = {
        semconv.INPUT_TOKENS: _count(usage, "input_tokens") + read + written,
        semconv.OUTPUT_TOKENS: _count(usage, "output_tokens"),
        semconv.CACHE_READ_TOKENS: read,
        semconv.CACHE_WRITE_TOKENS: written,
    }
    return {name: count for name, count in counts.items() if count}


# --- one span each ------------------------------------------------------------------------------------------------------
def _attempt(teller: Teller, info: TurnInfo, traced: Traced) -> ToldSpan:
    error = info.error.code if info.error is not None else ""
    return attempt_span(
        teller,
        trace=traced.trace,
        span=traced.span,
        parent=traced.parent,
        ref=info.ref,
        turn=info.number,
        began=traced.began or info.started,
        ended=info.ended,
        end="error" if error else "ok",
        node=info.node,
        generation=info.generation,
        boot=traced.boot,
        crashes=traced.crashes,
        retries=traced.retries,
        takeovers=info.takeovers,
        sender=info.sender,
        chain=info.chain,
        error=error,
        usage=info.usage,
        links=traced.links,
        sampled=traced.sampled,
    )


def _process(teller: Teller, info: TurnInfo, traced: Traced) -> ToldSpan:
    """The span of the message that a turn was for."""
    return _message(
        teller,
        lane=traced.lane,
        trace=traced.trace,
        span=traced.process,
        parent=traced.above,
        links=() if traced.span else traced.links,
        sampled=traced.sampled,
        stored=traced.stored or info.started,
        began=info.started,
        ended=info.ended,
        sender=info.sender,
        chain=info.chain,
        node=info.node,
        error=info.error.code if info.error is not None else "",
        more={semconv.MESSAGE_ID: info.ref, semconv.REF: info.ref, semconv.TURN: info.number},
    )


def _handled(teller: Teller, handled: Handled, node: str) -> ToldSpan:
    """The span of an event, or of a prompt that needed no turn."""
    more: Attributes = {semconv.MESSAGE_ID: str(handled.seq)}
    if handled.timer:
        more[semconv.TIMER] = handled.timer
    return _message(
        teller,
        lane=handled.lane,
        trace=handled.trace,
        span=handled.span,
        parent=handled.parent,
        links=handled.links,
        sampled=handled.sampled,
        stored=handled.stored or handled.began or handled.ended,
        began=handled.began,
        ended=handled.ended,
        sender=handled.sender,
        chain=handled.chain,
        node=node,
        error=handled.error,
        more=more,
    )


def _message(
    teller: Teller,
    *,
    lane: str,
    trace: str,
    span: str,
    parent: str,
    links: tuple[str, ...],
    sampled: bool,
    stored: float,
    began: float,
    ended: float,
    sender: str | None,
    chain: Chain,
    node: str,
    error: str,
    more: Attributes,
) -> ToldSpan:
    """The span in which an agent deals with a message."""
    attributes: Attributes = {
        **_common(teller, node),
        **_messaging(teller.root, lane, teller.agent, semconv.OPERATION_PROCESS),
        semconv.MESSAGE_CONVERSATION_ID: teller.life,
        **more,
        **({semconv.CALLER_NAME: sender} if sender else {}),
        **(_behalf(chain) if chain else {}),
        **({semconv.WAIT: round(max(0.0, began - stored), 6)} if began else {}),
        **_failed(error),
    }
    return ToldSpan(
        trace=trace,
        id=span,
        parent=parent,
        name=semconv.process(lane),
        op="process",
        kind="consumer",
        start=stored,
        end=max(stored, ended),
        agent=teller.agent,
        service=teller.service,
        node=node,
        error=error,
        links=links,
        attributes=attributes,
        sampled=sampled,
    )


def _sends(teller: Teller, record: Record, seq: int, ratio: float) -> Iterator[ToldSpan]:
    """The spans of the mail that a record sends."""
    for index, effect in mail_sent(record):
        origin = origin_of(record.epoch, seq, index)
        context, parent = sent_context(teller.agent, teller.life, origin, effect.trace, ratio)
        attributes: Attributes = {
            **_common(teller, record.node),
            **_messaging(teller.root, effect.lane, effect.to, semconv.OPERATION_SEND),
            semconv.TO: effect.to,
            semconv.ORIGIN: origin,
        }
        yield ToldSpan(
            trace=context.trace_id,
            id=context.span_id,
            parent=parent,
            name=semconv.send(effect.lane),
            op="send",
            kind="producer",
            start=record.at,
            end=record.at,
            agent=teller.agent,
            service=teller.service,
            node=record.node,
            attributes=attributes,
            sampled=context.sampled,
        )


# --- attributes -----------------------------------------------------------------------------------------------------------
def _common(teller: Teller, node: str) -> Attributes:
    return {
        semconv.AGENT_NAME: teller.agent,
        semconv.CONVERSATION_ID: teller.life,
        semconv.KIND: teller.service,
        semconv.NODE: node,
    }


def _messaging(root: str, lane: str, agent: str, operation: str) -> Attributes:
    return {
        semconv.MESSAGING_SYSTEM: semconv.SYSTEM_NATS,
        semconv.MESSAGING_OPERATION: operation,
        semconv.MESSAGING_OPERATION_TYPE: operation,
        semconv.DESTINATION: f"{root}.{lane}.{agent}",
        semconv.DESTINATION_TEMPLATE: semconv.destination_template(lane),
        semconv.LANE: lane,
    }


def _behalf(chain: Chain) -> Attributes:
    """On whose behalf something is: the user, who is the first of a chain that a record has, and all parties."""
    first = chain[0]
    user: Attributes = {semconv.USER: first.name} if first.kind == "user" and first.name else {}
    return {**user, **({semconv.ACCOUNT: first.account} if first.account else {}), semconv.CHAIN: told(chain)}


def _failed(error: str) -> Attributes:
    return {semconv.ERROR_TYPE: error} if error else {}


def _spending(usage: Mapping[str, Any]) -> Attributes:
    """Tokens, model and money of a turn's usage."""
    found = tokens_of(usage)
    model = usage.get("model")
    if isinstance(model, str) and model:
        found[semconv.RESPONSE_MODEL] = model
    cost = next((usage[name] for name in COSTS if name in usage), None)
    if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 < cost < MOST_COUNT:
        found[semconv.COST] = cost
    return found


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST_COUNT else 0
