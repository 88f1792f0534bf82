"""Deferred requests: open beyond their turn, until the agent replies or somebody else ends them (docs/agent.md#defer)."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from agentmesh.callback_context import DeferredReply
from agentmesh.records import Caller, Deferred, Notice, SetTimer
from agentmesh.turn.draft import (
    Out,
    answer_deferred,
    answer_later,
    close_deferred,
    commit_change,
    deadline_timer,
    end_request,
    expired,
    recordable,
)
from agentmesh.turn.tracing import of_request
from agentmesh.turn.values import AnswerControl, Core, Reply, Returned
from agentmesh.wire import ErrorBody

EXCLUSIVE_S = 7 * 86_400.0
"""How long an exclusive request stays open if the agent's class does not say: meanwhile the agent takes no other prompt."""


# --- open -------------------------------------------------------------------------------------------------------------
def open_deferred(core: Core, caller: Caller, turn: int, *, exclusive: bool) -> None:
    """Add to the draft that the caller's request stays open beyond its turn."""
    entry = _dated(core, Deferred(caller=recordable(core, caller), turn=turn, exclusive=exclusive))
    core.work = structs.replace(core.work, deferred={**core.work.deferred, caller.ref: entry})
    if entry.until is not None:
        core.effects = (*core.effects, SetTimer(id=deadline_timer(caller.ref), due=entry.until))


def _dated(core: Core, entry: Deferred) -> Deferred:
    """`entry`, open since now."""
    bound = core.config.defer_s
    if bound is None and entry.exclusive:
        bound = EXCLUSIVE_S
    ends = [end for end in (entry.caller.deadline, None if bound is None else core.now + bound) if end is not None]
    return structs.replace(entry, since=core.now, until=min(ends, default=None))


def date(core: Core) -> bool:
    """Add to the draft that requests which a former build has deferred are open since now, with their bounds. Returns whether
    there are any."""
    undated = {ref: entry for ref, entry in core.work.deferred.items() if not entry.since}
    for ref, entry in undated.items():
        dated = _dated(core, entry)
        core.work = structs.replace(core.work, deferred={**core.work.deferred, ref: dated})
        if dated.until is not None and dated.until != entry.caller.deadline:  # else its timer is set
            core.effects = (*core.effects, SetTimer(id=deadline_timer(ref), due=dated.until))
    return bool(undated)


def orphaned(core: Core, item: Returned) -> str | None:
    """The exclusive request that nobody would think of any more if the agent defers another one in that way."""
    if item.choice.kind != "defer" or not item.choice.exclusive:
        return None
    replied = {ask.ref for ask in (*core.asks, *item.asks) if isinstance(ask, DeferredReply)}
    return next((ref for ref, entry in core.work.deferred.items() if entry.exclusive and ref not in replied), None)


def second_exclusive(first: str) -> ErrorBody:
    """The error of such a turn."""
    message = (
        f"a second Defer(exclusive=True) while request {first} is open: reply to that first (or `mesh reply`, `mesh cancel`)"
    )
    return ErrorBody(code="bad_return", message=message, details={"open": first})


# --- closed from outside ----------------------------------------------------------------------------------------------
def close_from_outside(
    core: Core, ref: str, how: str, *, error: ErrorBody | None = None, text: str | None = None, fired: bool = False
) -> bool:
    """Add to the draft that a deferred request ends with `error`, or else with the answer `text`, and that the agent is told.

    Args:
        how: as `agentmesh.agent.Closed` has it.
        fired: its timer ends it, and need not be cancelled.

    Returns: False, with nothing added, if it is not open.
    """
    entry = core.work.deferred.get(ref)
    if entry is None:
        return False
    close_deferred(core, ref, entry, fired=fired)
    if error is not None:
        end_request(core, entry.caller, error)
    else:
        answer_deferred(core, entry, text)
    tell_closed(core, ref, how, entry.caller)
    return True


def tell_closed(core: Core, ref: str, how: str, caller: Caller | None) -> None:
    """Add to the draft the event that a request of `caller` which the agent has deferred was closed."""
    if "handle_event" in core.config.hooks:
        error = ErrorBody(code=how, message=f"the deferred request {ref} was {how}")
        trace = of_request(core, caller) if caller is not None else {}
        notice = Notice(effect={"kind": "deferred", "target": ref}, error=error, closed=ref, trace=trace)
        core.work = structs.replace(core.work, notices=(*core.work.notices, notice))


def overdue(core: Core, entry: Deferred, due: float) -> ErrorBody:
    """The error of a deferred request that has been open for too long."""
    if due == entry.caller.deadline:
        return expired(core, due, "the reply")
    message = f"the agent deferred this and did not reply within {due - entry.since:g} s, which is as long as it may stay open"
    return ErrorBody(code="expired", message=message, details={"open_s": due - entry.since})


def is_open(core: Core, ref: str) -> bool:
    """Whether a deferred request can be closed now: the journal says that it is open, and the draft has not closed it."""
    return ref in core.ledger.deferred and ref in core.work.deferred


def on_reply(core: Core, item: Reply, out: Out) -> None:
    """Answer a deferred request in the agent's place. Should the callback that runs reply to it, this answer came first."""
    if is_open(core, item.ref):
        answer_later(core, item.token, {"replied": True})
        _close(core, item.ref, "replied", out, text=item.text)
    elif item.token:
        out.append(AnswerControl(item.token, {"replied": False}))


def cancel_deferred(core: Core, ref: str, token: str, out: Out, *, told: Mapping[str, object]) -> None:
    """End a deferred request that is open with `cancelled`. `told`: what the answer says besides."""
    error = ErrorBody(code="cancelled", message="the agent had deferred this, and it was cancelled")
    answer_later(core, token, {"cancelled": True, **told})
    _close(core, ref, "cancelled", out, error=error)


def _close(core: Core, ref: str, how: str, out: Out, *, error: ErrorBody | None = None, text: str | None = None) -> None:
    def change(draft: Core) -> None:
        close_from_outside(draft, ref, how, error=error, text=text)

    commit_change(core, "control", change, out)
