"""Which prompt or event comes next, and which of them need no turn and no call (docs/architecture.md#turns)."""

from __future__ import annotations

import copy
from typing import Any

from msgspec import structs

from agentmesh.agent import Closed, Timer, Undelivered
from agentmesh.callback_context import Request
from agentmesh.identity import refusal, whole
from agentmesh.records import CancelTimer, Queued, SetTimer
from agentmesh.turn import tracing, withdrawal
from agentmesh.turn.deferral import close_from_outside, overdue
from agentmesh.turn.draft import bury, caller_of, consume, echo, end_request, expired, is_repetition, key_of, repeats
from agentmesh.turn.outcome import answered
from agentmesh.turn.values import Active, Core
from agentmesh.wire import ErrorBody, Mail

NO_EVENT = object()
"""There is nothing to handle. (Not None: `null` is an event, docs/protocol.md#an-event.)"""


# --- prompts ------------------------------------------------------------------------------------------------------
def choose(core: Core) -> Active | None:
    """Remove the next prompt from those that wait."""
    work = core.work
    number = work.turn + 1
    if work.next is not None:
        return _from_queue(work.next, "next", number, core.now)
    head = _first(core) if core.prompts or work.queue else None
    if head is None:
        return None
    if type(head) is Queued:
        return _from_queue(head, "queue", number, core.now)
    assert isinstance(head, Mail)
    core.prompts = core.prompts[1:] if head is core.prompts[0] else tuple(m for m in core.prompts if m is not head)
    body, key = head.prompt, key_of(head)
    text = body.prompt if body else ""
    return Active(
        ref=head.ref,
        key=key,
        number=number,
        text=text,
        original=text,
        started=core.now,
        mail=head,
        caller=caller_of(head),
        sender=head.sender,
        metadata=body.metadata if body else {},
        attachments=body.attachments if body else (),
        trace=head.trace,
    )


def _first(core: Core) -> Mail | Queued | None:
    """The first prompt of the mailbox: mail, or a prompt that the agent has given itself.

    The one whose turn has taken steps goes on before all others. A former owner may have begun it ahead of an earlier one, if
    the copy of that was lost; a turn in between would be given the answers that it waits for, and leave the journal without what
    it has done.
    """
    turning = core.ledger.turning
    if turning is None and not core.work.queue and not core.work.deferred:  # as nearly always
        return core.prompts[0] if core.prompts else None
    queued = core.work.queue[0] if core.work.queue else None
    if turning is not None:
        if queued is not None and turning.key == f"ref:{queued.ref}":
            return queued
        begun = next((mail for mail in core.prompts if key_of(mail) == turning.key), None)
        if begun is not None:
            return begun
    head = core.prompts[0] if core.prompts else None
    if head is not None and core.work.deferred and any(entry.exclusive for entry in core.work.deferred.values()):
        head = None
    return queued if queued is not None and (head is None or queued.place < head.seq) else head


def _from_queue(item: Queued, slot: Any, number: int, now: float) -> Active:
    return Active(
        ref=item.ref,
        key=f"ref:{item.ref}",
        number=number,
        text=item.text,
        original=item.text,
        started=now,
        queued=item,
        slot=slot,
        caller=item.caller,
        label=item.label,
        sender=item.caller.sender if item.caller else None,
        metadata=item.metadata,
        attachments=item.attachments,
        trace=item.trace,
    )


def end_without_turn(core: Core, mail: Mail) -> bool:
    """End `mail` if it needs no turn. Returns whether it did."""
    error: ErrorBody | None = None
    if mail.origin is not None and is_repetition(core.work, mail):
        consume(core, mail)
        return True
    first = repeats(core, mail)
    if first is not None:
        echo(core, mail, first)
        return True
    if mail.problem is not None:
        error = ErrorBody(code="bad_request", message=mail.problem)
        bury(core, mail, error)
    elif mail.for_life is not None and mail.for_life != core.ledger.incarnation:
        error = ErrorBody(code="stopped", message="the agent that this was meant for has ended; another bears its name now")
    elif mail.deadline is not None and mail.deadline <= core.now:
        error = expired(core, mail.deadline, "the turn could begin")
    elif core.config.callers is not None and not _is_begun(core, mail):
        error = _not_permitted(core, mail)
    if error is None:
        return False
    consume(core, mail)
    end_request(core, caller_of(mail), error)
    tracing.ended_unrun(core, mail, error.code)
    return True


def _is_begun(core: Core, mail: Mail) -> bool:
    """Whether its turn has taken steps: it was permitted then, and goes on."""
    return core.ledger.turning is not None and core.ledger.turning.key == key_of(mail)


def _not_permitted(core: Core, mail: Mail) -> ErrorBody | None:
    """Why this agent does not handle `mail`: its class says who may ask it. None: it does."""
    policy = core.config.callers
    if policy is None:
        return None
    chain, body = whole(mail.chain, mail.sender), mail.prompt
    metadata, attachments = ({}, ()) if body is None else (body.metadata, body.attachments)
    why = refusal(policy, chain, Request(mail.ref, None, mail.sender, copy.deepcopy(metadata), attachments, chain))
    return None if why is None else ErrorBody(code="not_permitted", message=why)


def end_late(core: Core, active: Active) -> bool:
    """End a request that is to be tried again, if its time is over. Returns whether it is."""
    end_by = active.caller.end_by if active.caller is not None else None
    if end_by is None or end_by > core.now or active.queued is None:
        return False
    withdrawal.end_queued(core, active.queued, out_of_time(core, end_by))
    return True


def out_of_time(core: Core, end_by: float) -> ErrorBody:
    """The error of a request that is not answered by the time at which it ends (`Mesh-End-By`)."""
    return expired(core, end_by, "the answer")


# --- events -------------------------------------------------------------------------------------------------------
def next_event(core: Core, *, handles: bool) -> tuple[Any, str | None]:
    """Remove the oldest event: `(argument of handle_event, sender)`; `NO_EVENT` if there is nothing to handle. Its context is the
    current one then.

    Args:
        handles: whether the agent has a `handle_event`.
    """
    core.answering, core.context, core.handling, core.trace, core.chain = None, None, None, {}, ()
    if core.work.notices:
        notice, *rest = core.work.notices
        core.work = structs.replace(core.work, notices=tuple(rest))
        tracing.begin_notice(core, notice.trace)
        if notice.closed is not None:
            return Closed(notice.closed, notice.error.code), None  # type: ignore[arg-type]
        return Undelivered(notice.effect, notice.error), None
    mail, core.events = core.events[0], core.events[1:]
    repeated = is_repetition(core.work, mail) or repeats(core, mail) is not None
    stale = mail.for_life is not None and mail.for_life != core.ledger.incarnation
    late = mail.deadline is not None and mail.deadline <= core.now
    consume(core, mail)
    if repeated:
        return NO_EVENT, None
    if stale or late:
        tracing.ended_unrun(core, mail, "stopped" if stale else "expired")
        return NO_EVENT, None
    if mail.problem is not None:
        bury(core, mail, ErrorBody(code="bad_request", message=mail.problem))
        tracing.ended_unrun(core, mail, "bad_request")
        return NO_EVENT, None
    if mail.lane == "due":
        return _fired(core, mail, handles=handles), None
    answers = mail.tag is not None and mail.sender is not None
    refused = None if answers else _not_permitted(core, mail)
    if refused is not None:
        bury(core, mail, refused)
        tracing.ended_unrun(core, mail, refused.code)
        return NO_EVENT, None
    if handles:
        tracing.begin_event(core, mail)
    core.chain = mail.chain
    return answered(core, mail) if answers else mail.event, mail.sender


def _fired(core: Core, mail: Mail, *, handles: bool) -> Any:
    """The tick of a timer. Delivered only if the ledger has the timer with the same origin; then the ledger forgets it."""
    timer_id = (mail.schedule or "").rpartition(".")[2]
    entry = core.work.timers.get(timer_id)
    if entry is None or entry.origin != mail.origin or _is_replaced(core, timer_id):
        return NO_EVENT
    core.work = structs.replace(core.work, timers={k: v for k, v in core.work.timers.items() if k != timer_id})
    if timer_id.startswith("_deadline-"):
        ref = timer_id.removeprefix("_deadline-")
        deferred = core.work.deferred.get(ref)
        if deferred is not None:
            close_from_outside(core, ref, "expired", error=overdue(core, deferred, entry.due), fired=True)
            core.drains += 1  # the event that tells of it
        return NO_EVENT
    missed = 0
    if handles:
        tracing.begin_event(core, mail, timer=timer_id, repeats=entry.every is not None)
    if entry.every is not None:
        # A repeating timer keeps its rhythm: the record that consumes a tick sets the next one, and merges missed ticks.
        missed = max(0, int((core.now - entry.due) // entry.every))
        due = entry.due + (missed + 1) * entry.every
        trace = core.trace if core.config.traced else {}
        again = SetTimer(id=timer_id, due=due, every=entry.every, event=entry.event, trace=trace)
        core.effects = (*core.effects, again)
    # A copy: changes that the callback makes to it must not show at the next tick.
    return Timer(timer_id, copy.deepcopy(entry.event), entry.due, missed)


def _is_replaced(core: Core, timer_id: str) -> bool:
    """Whether this draft sets or cancels the timer: the ledger shows that only once it is committed."""
    return any(isinstance(ask, SetTimer | CancelTimer) and ask.id == timer_id for ask in (*core.effects, *core.asks))
