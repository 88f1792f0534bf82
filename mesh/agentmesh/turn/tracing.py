"""Traces: which one a turn, an event and what they make belong to, and what records tell of their spans
(docs/design/035-spans-are-told-by-records.md).

Without `Config.traced` none of it happens: a context is handed on as it came, and records say nothing of spans.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from agentmesh.callback_context import Ask
from agentmesh.headers import STATE_KEY, bounded_baggage
from agentmesh.records import Caller, Handled, Queued, SendMail, SetTimer, Traced, TurnInfo
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
from agentmesh.trace.spans import Began
from agentmesh.turn.kept import runs_of
from agentmesh.turn.values import Active, Core, Phase, TurnAttempt
from agentmesh.wire import ErrorBody, Mail, parse_time

MAX_CAUSES = 32
"""Most events that a prompt links to: the newest."""
MAX_INNER = 64
"""Most calls without a step that a record tells of: the newest."""


# --- which trace ------------------------------------------------------------------------------------------------------
def _entered(
    core: Core, headers: Mapping[str, str], root: str | None, ref: str, stored: str | None, *, anew: bool = False
) -> tuple[TraceContext, tuple[str, ...]]:
    """The context that something stands in which bears `headers`, and what it links to. Another trace begins if it bears no
    context, if its trace is as long as traces may be, and `anew`."""
    before = context_in(headers) if headers else None
    if before is not None and before.depth < MAX_DEPTH and not anew:
        return before, ()
    config = core.config
    if before is not None and not anew:
        trace_id = next_trace_id(before)
    else:
        trace_id = trace_id_of(root, config.name, core.ledger.incarnation, ref, stored)
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
def attempt_of(core: Core, active: Active, name: str) -> TurnAttempt:
    """The attempt of the turn `name` that begins now."""
    ledger, mail, queued = core.ledger, active.mail, active.queued
    crashes = ledger.attempts.get(active.key, 0)
    retries = queued.attempt - 1 if queued is not None else 0
    span_id = attempt_span_id(name, ledger.generation, ledger.boot, crashes, retries)
    if mail is not None:
        process = process_span_id(core.config.name, ledger.incarnation, mail.lane, active.ref)
        above, links = _entered(core, mail.trace, mail.root, active.ref, mail.stored)
        parent, lane, stored = process, mail.lane, parse_time(mail.stored) if mail.stored is not None else 0.0
    else:
        caller = active.caller
        root, at = (caller.root, caller.stored) if caller is not None else (None, None)
        above, links = _entered(core, active.trace, root, active.ref, at)
        links = _without((*links, *(queued.links if queued is not None else ())), above)
        process, parent, lane, stored = "", above.span_id, "", 0.0
    last = ledger.history[-1].trace if ledger.history else None
    if last is not None and last.trace != above.trace_id:
        link = f"{last.trace}-{last.span or last.process}"
        links = _without((*links, link), above) if links else (link,)
    return TurnAttempt(
        context=_below(above, span_id, stored or core.now),
        began=core.now,
        parent=parent,
        links=links,
        crashes=crashes,
        retries=retries,
        process=process,
        above=above.span_id if process else "",
        lane=lane,
        stored=stored,
    )


def traced(core: Core, active: Active) -> Traced | None:
    """What a record tells of the spans of the turn `active`, whose message it consumes; None if turns are not traced."""
    attempt = active.attempt
    if attempt is None:
        # No attempt has begun here: too many owners before this one had died of it.
        return _told(core, active, attempt_of(core, active, ""), began=False) if core.config.traced else None
    return _told(core, active, attempt)


def _told(core: Core, active: Active, attempt: TurnAttempt, *, began: bool = True) -> Traced:
    context = attempt.context
    return Traced(
        trace=context.trace_id,
        span=context.span_id if began else "",
        parent=attempt.parent,
        links=attempt.links,
        sampled=context.sampled,
        began=attempt.began if began else 0.0,
        boot=core.ledger.boot,
        crashes=attempt.crashes,
        retries=attempt.retries,
        process=attempt.process,
        above=attempt.above,
        lane=attempt.lane,
        stored=attempt.stored,
        inner=active.inner[-MAX_INNER:],
    )


def of_first_step(core: Core, active: Active) -> Traced | None:
    """What the next owner must know of the spans of the turn `active`, whose attempts it may have to tell of."""
    return _told(core, active, active.attempt) if active.attempt is not None else None


def attempted(core: Core, error: ErrorBody, *, consumed: bool = False) -> None:
    """Add to the draft that the attempt of the running turn has ended, which is no turn of the history.

    Args:
        error: how it ended.
        consumed: whether its message ends with it.
    """
    active = core.active
    if active is None or active.attempt is None:
        return
    told = _told(core, active, active.attempt)
    runs = active.tools or runs_of(core, active)
    core.attempted = TurnInfo(
        number=active.number,
        ref=active.ref,
        started=active.started,
        ended=max(core.now, active.started),
        node=core.ledger.node,
        generation=core.ledger.generation,
        sender=active.sender,
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
    attempt, ledger = active.attempt, core.ledger
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
        started=attempt.began,
        node=ledger.node,
        generation=ledger.generation,
        boot=ledger.boot,
        crashes=attempt.crashes,
        retries=attempt.retries,
        sender=active.sender,
        links=attempt.links,
        sampled=attempt.context.sampled,
    )


# --- messages without a turn ------------------------------------------------------------------------------------------
def _process(core: Core, mail: Mail, *, anew: bool = False, timer: str = "") -> tuple[Handled, TraceContext]:
    """The span of `mail`, and its context."""
    ref = mail.ref if LANES[mail.lane].kind == "prompt" else f"{mail.lane}:{mail.seq}"
    above, links = _entered(core, mail.trace, mail.root, ref, mail.stored, anew=anew)
    span_id = process_span_id(core.config.name, core.ledger.incarnation, mail.lane, mail.ref)
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
    above, _ = _entered(core, caller.trace, caller.root, caller.ref, caller.stored)
    lane = "inbox" if caller.sender is None else "peer-inbox"
    span_id = process_span_id(core.config.name, core.ledger.incarnation, lane, caller.ref)
    return _below(above, span_id, _time_of(caller.stored) or core.now).headers()


# --- what is handed on ------------------------------------------------------------------------------------------------
def current(core: Core) -> TraceContext | None:
    """The context of what runs now: of an event, or of a turn's attempt; None if turns are not traced, or neither runs."""
    active = core.active
    if active is None or core.phase is Phase.HANDLING:
        return core.context
    return active.attempt.context if active.attempt is not None else None


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
    context = current(core)
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
    context = attempt.context
    if retried:
        tries = active.queued.attempt if active.queued is not None else 1
        context = structs.replace(context, span_id=attempt.parent) if attempt.parent else context
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
