"""Requests that were withdrawn: their sender has no use for them any more (docs/architecture.md#withdrawals). This is the
side of the agent that was asked; `agentmesh.turn.delegation` is the asking one.

A withdrawal lies in the lane of answers, names the request's origin, and waits in `Core.withdrawals` until it is consumed. It
comes behind its request, so a request that neither waits nor is open has ended, and nothing is to be done. What runs is ended by
`dispatch.take_withdrawals`; its withdrawal is consumed behind the record that ends it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from agentmesh.records import Caller, Queued
from agentmesh.turn.deferral import close_from_outside
from agentmesh.turn.draft import consume, end_prompts, end_request, forget_charges, is_repetition
from agentmesh.turn.values import Active, Core
from agentmesh.wire import ErrorBody, Mail, withdrawal_in


def reason_in(mail: Mail) -> ErrorBody:
    """The error with which a request ends that `mail` withdraws."""
    found = withdrawal_in(mail)
    why = f" ({found.why.code})" if found is not None and found.why is not None else ""
    return ErrorBody(code="cancelled", message=f"{mail.sender} has withdrawn this: the request that it was for has ended{why}")


def of_active(core: Core, active: Active) -> Mail | None:
    """The withdrawal of the request that the turn `active` answers, if it has come."""
    caller = active.caller
    if not core.withdrawals or caller is None:
        return None
    return next((mail for mail in core.withdrawals if _withdraws(mail, caller.sender, origin_of(caller))), None)


def take(core: Core, mails: tuple[Mail, ...]) -> Callable[[Core], None]:
    """Take withdrawals, and the prompts that they withdraw, from what waits. Returns what is to be done to a draft: whatever they
    withdraw has ended, and they are consumed."""
    # A copy of what runs, or has ended, has no outcome of its own; for the journal what runs has yet to be consumed.
    named = [(m, mail) for m in core.prompts for mail in mails if _withdraws(mail, m.sender, m.origin)]
    withdrawn = [(m, reason_in(mail)) for m, mail in named if not is_repetition(core.work, m)]
    waiting = core.prompts
    core.withdrawals = tuple(m for m in core.withdrawals if m not in mails)

    def change(draft: Core) -> None:
        end_prompts(draft, waiting, withdrawn)
        for mail in mails:
            _end_open(draft, mail)
            consume(draft, mail)

    return change


def _end_open(core: Core, mail: Mail) -> None:
    """Add to the draft the end of a request that is open between two turns: deferred, or about to be tried again."""
    for queued in (core.work.next, *core.work.queue):
        caller = queued.caller if queued is not None else None
        if queued is not None and caller is not None and _withdraws(mail, caller.sender, origin_of(caller)):
            end_queued(core, queued, reason_in(mail))
    for ref, entry in tuple(core.work.deferred.items()):
        if _withdraws(mail, entry.caller.sender, origin_of(entry.caller)):
            close_from_outside(core, ref, "withdrawn", error=reason_in(mail))


def end_queued(core: Core, queued: Queued, error: ErrorBody) -> None:
    """Add to the draft that a prompt which is not mail is taken out; its caller, if it has one, gets `error`."""
    following = None if core.work.next is queued else core.work.next
    rest = tuple(q for q in core.work.queue if q is not queued)
    core.work = structs.replace(core.work, next=following, queue=rest)
    forget_charges(core, f"ref:{queued.ref}")
    if queued.caller is not None:
        end_request(core, queued.caller, error)


def origin_of(caller: Caller) -> str | None:
    """The origin of a request that an agent sent; None if it is not known: an older build has written the entry."""
    return caller.origin or (caller.tag if caller.path else None)


def open_ref(core: Core, sender: str, origin: str) -> str | None:
    """The ref of the request that `sender` sent with this origin, if it waits, runs or is open here; else None."""
    waiting = next((m.ref for m in core.prompts if (m.sender, m.origin) == (sender, origin)), None)
    if waiting is not None:
        return waiting
    callers = [core.active.caller if core.active is not None else None]
    callers += [item.caller for item in (core.work.next, *core.work.queue) if item is not None]
    callers += [entry.caller for entry in core.work.deferred.values()]
    return next((c.ref for c in callers if c is not None and (c.sender, origin_of(c)) == (sender, origin)), None)


def _withdraws(mail: Mail, sender: str | None, origin: str | None) -> bool:
    if origin is None or sender is None or mail.sender != sender:
        return False
    found = withdrawal_in(mail)
    return found is not None and found.withdraws == origin
