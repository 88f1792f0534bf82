"""Traces: which one a turn, an event and what they make belong to, and what records tell of their spans
(docs/design/035-spans-are-told-by-records.md).

Without `Config.traced` none of it happens: a context is handed on as it came, and records say nothing of spans.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from agentmesh.callback_context import Ask
from agentmesh.headers import STATE_KEY, bounded_baggage
from agentmesh.records import Caller, Derived, Handled, Queued, SendMail, SetTimer, Traced, TurnBefore, TurnInfo
from agentmesh.subjects import LANES
from agentmesh.tool_runs import counted
from agentmesh.trace.context import (
    MAX_AGE_S,
    MAX_DEPTH,
    TraceContext,
    attempt_span_id,
    context_in,
    is_sampled,
    next_trace_id,
    process_span_id,
    trace_id_of,
)
from agentmesh.trace.derived import traced_of
from agentmesh.trace.spans import Began
from agentmesh.turn.kept import name_of, runs_of
from agentmesh.turn.values import Active, AttemptSpans, Config, Core, Phase, TurnAttempt
from agentmesh.wire import ErrorBody, Mail, parse_time

MAX_CAUSES = 32
"""Most events that a prompt links to: the newest."""
MAX_INNER = 64
"""Most calls without a step that a record tells of: the newest."""


# --- which trace ------------------------------------------------------------------------------------------------------
def _entered(
    config: Config,
    life: str,
    headers: Mapping[str, str],
    root: str | None,
    ref: str,
    *,
    stored: str | None,
    anew: bool = False,
) -> tuple[TraceContext, tuple[str, ...]]:
    """The context that something stands in which bears `headers`, and what it links to. Another trace begins if it bears no
    context, if its trace is as long as traces may be, and `anew`."""
    before = context_in(headers) if headers else None
    if before is not None and before.depth < MAX_DEPTH and not anew:
        return before, ()
    trace_id = trace_id_of(root, config.name, life, ref, stored) if before is None or anew else next_trace_id(before)
    sampled = config.trace_ratio >= 1.0 or is_sampled(trace_id, config.trace_ratio)
    if not headers:
        return TraceContext(trace_id, "", sampled), ()
    baggage = bounded_baggage(headers.get("baggage", "")) if before is None else before.baggage
    begun = TraceContext(trace_id, "", sampled, baggage=baggage)
    return begun, () if before is None else (before.link,)


def _below(above: TraceContext, span_id: str, began: float) -> TraceContext:
    """The context of the span `span_id` below `above`, which is one turn further; `began`: when it began, if it is the first."""
    return TraceContext(above.trace_id, span_id, above.sampled, above.depth + 1, above.began or began, above.state, above.baggage)


def _time_of(stored: str | None) -> float:
    return parse_time(stored) if stored is not None else 0.0


def _without(links: tuple[str, ...], above: TraceContext) -> tuple[str, ...]:
    """`links` without the parent and repetitions."""
    return tuple(dict.fromkeys(link for link in links if link != above.link))


# --- attempts ---------------------------------------------------------------------------------------------------------
def attempt_of(core: Core, active: Active) -> TurnAttempt:
    """The attempt of the turn `active` that begins now."""
    return TurnAttempt(_spans_of, core.config, core.ledger, active, core.now)


def _spans_of(attempt: TurnAttempt) -> AttemptSpans:
    config, ledger, active = attempt.config, attempt.ledger, attempt.active
    agent, life, mail, queued = config.name, ledger.incarnation, active.mail, active.queued
    crashes = ledger.attempts.get(active.key, 0)
    retries = queued.attempt - 1 if queued is not None else 0
    span_id = attempt_span_id(name_of(agent, ledger, active), ledger.generation, ledger.boot, crashes, retries)
    if mail is not None:
        process = process_span_id(agent, life, mail.lane, active.ref)
        above, links = _entered(config, life, mail.trace, mail.root, active.ref, stored=mail.stored)
        parent, lane, stored = process, mail.lane, _time_of(mail.stored)
    else:
        caller = active.caller
        root, at = (caller.root, caller.stored) if caller is not None else (None, None)
        above, links = _entered(config, life, active.trace, root, active.ref, stored=at)
        links = _without((*links, *(queued.links if queued is not None else ())), above)
        process, parent, lane, stored = "", above.span_id, "", 0.0
    last = traced_of(agent, life, ledger.history[-1]) if ledger.history else None
    if last is not None and last.trace != above.trace_id:
        link = f"{last.trace}-{last.span or last.process}"
        links = _without((*links, link), above) if links else (link,)
    return AttemptSpans(
        context=_below(above, span_id, stored or attempt.began),
        parent=parent,
        links=links,
        crashes=crashes,
        retries=retries,
        process=process,
        above=above.span_id if process else "",
        lane=lane,
        stored=stored,
    )


def traced(core: Core, active: Active) -> tuple[Traced | None, Derived | None]:
    """What a record tells of the spans of the turn `active`, whose message it consumes, or what they are derived from."""
    attempt = active.attempt
    if attempt is None:
        # No attempt has begun here: too many owners before this one had died of it.
        return _told(core, active, attempt_of(core, active).spans, None), None
    if not active.inner and (plain := _derived(attempt)) is not None:
        return None, plain
    return _told(core, active, attempt.spans, attempt.began), None


def _derived(attempt: TurnAttempt) -> Derived | None:
    """What the spans of an attempt are derived from; None if its ids are known, or it is no plain one."""
    ledger, active = attempt.ledger, attempt.active
    mail = active.mail
    if attempt.found is not None or mail is None or mail.trace or mail.root is not None or ledger.turning is not None:
        return None
    before: TurnBefore | None = None
    links: tuple[str, ...] = ()
    if ledger.history:
        last = ledger.history[-1]
        if (plain := last.derived) is not None:
            same = last.generation == ledger.generation and plain.boot == ledger.boot
            before = TurnBefore(
                number=last.number,
                ref=last.ref,
                key=plain.key,
                stored=plain.stored,
                generation=0 if same else last.generation,
                boot="" if same else plain.boot,
                epoch=plain.epoch,
                crashes=plain.crashes,
            )
        elif (told := last.trace) is not None:
            links = (f"{told.trace}-{told.span or told.process}",)
    ratio = attempt.config.trace_ratio
    return Derived(
        key=active.key,
        stored=mail.stored,
        boot=ledger.boot,
        epoch=ledger.epoch,
        crashes=ledger.attempts.get(active.key, 0) if ledger.attempts else 0,
        began=attempt.began if attempt.began != active.started else None,
        ratio=ratio if ratio < 1.0 else None,
        before=before,
        links=links,
    )


def _told(core: Core, active: Active, spans: AttemptSpans, began: float | None) -> Traced:
    """`began`: when the attempt did; None if none has."""
    context = spans.context
    return Traced(
        trace=context.trace_id,
        span=context.span_id if began is not None else "",
        parent=spans.parent,
        links=spans.links,
        sampled=context.sampled,
        began=began or 0.0,
        boot=core.ledger.boot,
        crashes=spans.crashes,
        retries=spans.retries,
        process=spans.process,
        above=spans.above,
        lane=spans.lane,
        stored=spans.stored,
        inner=active.inner[-MAX_INNER:],
    )


def of_first_step(core: Core, active: Active) -> Traced | None:
    """What the next owner must know of the spans of the turn `active`, whose attempts it may have to tell of."""
    attempt = active.attempt
    return _told(core, active, attempt.spans, attempt.began) if attempt is not None else None


def attempted(core: Core, error: ErrorBody, *, consumed: bool = False) -> None:
    """Add to the draft that the attempt of the running turn has ended, which is no turn of the history.

    Args:
        error: how it ended.
        consumed: whether its message ends with it.
    """
    active = core.active
    if active is None or active.attempt is None:
        return
    told = _told(core, active, active.attempt.spans, active.attempt.began)
    runs = active.tools or runs_of(core, active)
    core.attempted = TurnInfo(
        number=active.number,
        ref=active.ref,
        started=active.started,
        ended=max(core.now, active.started),
        node=core.ledger.node,
        generation=core.ledger.generation,
        sender=active.sender,
        chain=active.caller.chain if active.caller is not None else (),
        label=active.label,
        error=ErrorBody(code=error.code),  # its text stands where the error is told to somebody
        usage=active.response.usage if active.response is not None else active.usage,
        takeovers=core.ledger.takeovers.get(active.key, 0),
        tools=counted(runs) if runs else {},
        trace=told if consumed else structs.replace(told, process="", above="", lane="", stored=0.0),
    )


def began_of(core: Core) -> Began | None:
    """The fact that the attempt which runs now has begun; None if none runs, or turns are not traced."""
    active = core.active
    if active is None or active.attempt is None:
        return None
    attempt, ledger = active.attempt.spans, core.ledger
    return Began(
        trace=attempt.context.trace_id,
        span=attempt.context.span_id,
        parent=attempt.parent,
        agent=core.config.name,
        service=core.config.kind,
        life=ledger.incarnation,
        ref=active.ref,
        input=active.key,
        turn=active.number,
        started=active.attempt.began,
        node=ledger.node,
        generation=ledger.generation,
        boot=ledger.boot,
        crashes=attempt.crashes,
        retries=attempt.retries,
        sender=active.sender,
        chain=active.caller.chain if active.caller is not None else (),
        links=attempt.links,
        sampled=attempt.context.sampled,
    )


# --- messages without a turn ------------------------------------------------------------------------------------------
def _process(core: Core, mail: Mail, *, anew: bool = False, timer: str = "") -> tuple[Handled, TraceContext]:
    """The span of `mail`, and its context."""
    ref = mail.ref if LANES[mail.lane].kind == "prompt" else f"{mail.lane}:{mail.seq}"
    life = core.ledger.incarnation
    above, links = _entered(core.config, life, mail.trace, mail.root, ref, stored=mail.stored, anew=anew)
    span_id = process_span_id(core.config.name, life, mail.lane, mail.ref)
    stored = _time_of(mail.stored)
    span = Handled(
        lane=mail.lane,
        seq=mail.seq,
        trace=above.trace_id,
        span=span_id,
        parent=above.span_id,
        links=links,
        sampled=above.sampled,
        sender=mail.sender,
        chain=mail.chain,
        stored=stored,
        timer=timer,
    )
    return span, _below(above, span_id, stored or core.now)


def of_message(core: Core, mail: Mail) -> dict[str, str]:
    """The context of the span of `mail`, as headers."""
    return _process(core, mail)[1].headers() if core.config.traced else {}


def ended_unrun(core: Core, mail: Mail, error: str) -> None:
    """Add to the draft that `mail` has ended with an error of this code before anything ran."""
    if core.config.traced:
        span, _ = _process(core, mail)
        core.handled = (*core.handled, structs.replace(span, ended=core.now, error=error))


def begin_event(core: Core, mail: Mail, *, timer: str = "", repeats: bool = False) -> None:
    """`handle_event` is about to be called with `mail`: what it makes stands below the span of that.

    Args:
        timer: whose tick it is.
        repeats: whether that timer repeats: each of its ticks begins another trace.
    """
    if not core.config.traced:
        core.trace = mail.trace
        return
    span, core.context = _process(core, mail, anew=repeats, timer=timer)
    core.handling = structs.replace(span, began=core.now)
    core.trace = core.context.headers()


def begin_notice(core: Core, headers: dict[str, str]) -> None:
    """`handle_event` is about to be called with a notice, which has no span: what it makes stands below what it tells of."""
    above = context_in(headers) if core.config.traced and headers else None
    core.context = None if above is None else _below(above, above.span_id, core.now)
    core.trace = {} if core.context is None else core.context.headers()


def event_handled(core: Core, error: str = "") -> None:
    """Add to the draft that `handle_event` has ended; `error`: the code of an error."""
    span, core.handling = core.handling, None
    if span is None:
        return
    core.handled = (*core.handled, structs.replace(span, ended=core.now, error=error))
    causes = (*core.work.causes, f"{span.trace}-{span.span}")[-MAX_CAUSES:]
    core.work = structs.replace(core.work, causes=causes)


def of_request(core: Core, caller: Caller) -> dict[str, str]:
    """The context of the span of a request that stays open, as headers."""
    if not core.config.traced:
        return {}
    life = core.ledger.incarnation
    above, _ = _entered(core.config, life, caller.trace, caller.root, caller.ref, stored=caller.stored)
    # Of the trusted lane are the requests of agents, and those whose user the gateway knows.
    lane = "inbox" if caller.sender is None and not caller.chain else "peer-inbox"
    span_id = process_span_id(core.config.name, life, lane, caller.ref)
    return _below(above, span_id, _time_of(caller.stored) or core.now).headers()


# --- what is handed on ------------------------------------------------------------------------------------------------
def running(core: Core) -> TurnAttempt | TraceContext | None:
    """What runs now: a turn's attempt, or an event, as its context; None if turns are not traced, or neither runs."""
    active = core.active
    return core.context if active is None or core.phase is Phase.HANDLING else active.attempt


def current(core: Core) -> TraceContext | None:
    """The context of what runs now."""
    found = running(core)
    return found.context if isinstance(found, TurnAttempt) else found


def handed_on(core: Core, context: TraceContext, headers: dict[str, str]) -> dict[str, str]:
    """The headers of something that is made in `context`, where `headers` have the span that makes it, if they have one.

    Whether the trace is too old to go on is decided here, once, and not by those who get it: a message that is handled twice is
    in one trace.
    """
    old = context.began > 0 and core.now - context.began > MAX_AGE_S
    if not headers:
        return (structs.replace(context, depth=MAX_DEPTH) if old else context).headers()
    if not old and STATE_KEY + "=" in headers.get("tracestate", ""):
        return headers
    maker = context_in(headers)
    if maker is None:
        return handed_on(core, context, {})
    return structs.replace(maker, depth=MAX_DEPTH if old else context.depth, began=context.began).headers()


def stamped(core: Core, asks: tuple[Ask, ...]) -> tuple[Ask, ...]:
    """The asks of a callback, with the contexts that they are handed."""
    context = current(core) if asks else None
    if context is None:
        return asks
    return tuple(
        structs.replace(ask, trace=handed_on(core, context, ask.trace)) if isinstance(ask, SendMail | SetTimer) else ask
        for ask in asks
    )


def asked_by_client(core: Core, timer: SetTimer) -> SetTimer:
    """`timer`, which a client sets: its ticks go on in the client's trace, if that has sent a context."""
    context = context_in(timer.trace) if core.config.traced else None
    return structs.replace(timer, trace=context.headers() if context is not None else {})


def chained(core: Core, item: Queued, active: Active, *, retried: bool) -> Queued:
    """`item`, which the turn `active` makes for itself, with the context in which it goes on.

    Args:
        retried: it is tried in the place of that turn's prompt, and stands below what that stood below.
    """
    attempt = active.attempt
    if attempt is None:
        return item
    context, parent = attempt.context, attempt.spans.parent
    if retried:
        tries = active.queued.attempt if active.queued is not None else 1
        context = structs.replace(context, span_id=parent) if parent else context
        return structs.replace(item, trace=handed_on(core, context, {}), attempt=tries + 1)
    return structs.replace(item, trace=handed_on(core, context, {}))


def made_by_event(core: Core, item: Queued) -> Queued:
    """`item`, which `handle_event` makes, with its context and what else has caused it: each event causes one prompt."""
    context = core.context
    if context is None:
        return item
    links = tuple(cause for cause in core.work.causes if cause != context.link)
    core.work = structs.replace(core.work, causes=())
    return structs.replace(item, trace=handed_on(core, context, {}), links=links)


def forget_causes(core: Core) -> None:
    """Add to the draft that a turn begins: what caused it is no cause of later ones."""
    if core.work.causes:
        core.work = structs.replace(core.work, causes=())
