"""The end of a turn: its outcome, and the record that has it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import structs

from agentmesh.agent import Answer
from agentmesh.budget import DELEGATED, NOTHING_SPENT, Purse, added, as_usage, spending_of
from agentmesh.records import Caller
from agentmesh.tool_runs import Counts, counted
from agentmesh.turn import delegation
from agentmesh.turn.deferral import open_deferred
from agentmesh.turn.draft import Out, commit, end, turn_info
from agentmesh.turn.kept import end_turn, runs_of
from agentmesh.turn.steps import delegated_so_far
from agentmesh.turn.values import TO_IDLE, Active, Core
from agentmesh.wire import Mail, Outcome

ENDED_FROM_OUTSIDE = frozenset(("interrupted", "cancelled", "expired"))
"""Codes of turns whose request is over for good: what `handle_error` prompts then is no retry."""


def outcome_of(core: Core, active: Active) -> Outcome:
    response = active.response
    return Outcome(
        agent=core.config.name,
        ref=active.ref,
        ok=response is not None,
        text=response.text if response is not None else None,
        usage=response.usage if response is not None else active.usage,
        duration_ms=response.duration_ms if response is not None else None,
        session_id=response.session_id if response is not None else None,
        error=active.error if response is None else None,
        turn=active.number,
        node=core.ledger.node,
        tools=_tools(core, active),
    )


def _tools(core: Core, active: Active) -> Counts:
    if active.response is None and core.ledger.steps:
        return counted(runs_of(core, active))
    return counted(active.tools) if active.tools else {}


def purse_of(core: Core, active: Active) -> Purse:
    """What the turn may cost: the tighter of the spec's and the request's bounds, less what earlier tries have spent."""
    asked = active.caller.budget if active.caller is not None else None
    limits = core.config.budget if asked is None else core.config.budget.tighter(asked)
    return Purse(limits, max(0.0, core.now - active.started), delegated_so_far(core, active))


def charged(active: Active) -> Caller | None:
    """The caller of a request that is tried again, with what is left of its budget."""
    caller = active.caller
    if caller is None or caller.budget is None:
        return caller
    return structs.replace(caller, budget=caller.budget.less(spending_of(active.usage)))


def answered(core: Core, mail: Mail) -> Any:
    """The event for the answer to a tagged request. The cost of the answer is added to the usage of this agent."""
    try:
        outcome = msgspec.convert(mail.event, Outcome)
    except msgspec.ValidationError:
        return mail.event
    assert mail.tag is not None and mail.sender is not None
    mine = next((o for o, a in core.work.awaiting.items() if (a.agent, a.tag) == (mail.sender, mail.tag)), None)
    if mine is not None:
        core.work = structs.replace(core.work, awaiting={k: v for k, v in core.work.awaiting.items() if k != mine})
        core.answering = core.work.delegated.get(mine)
        delegation.ended(core, mine)
        spent = spending_of(outcome.usage)
        if spent != NOTHING_SPENT:
            core.work = structs.replace(core.work, usage=added(core.work.usage, {DELEGATED: as_usage(spent)}))
    return Answer(mail.tag, mail.sender, outcome)


def finish_turn(core: Core, out: Out) -> None:
    """End the turn: its caller gets the outcome, or still waits because the request was deferred or is tried again."""
    active = core.active
    assert active is not None and active.choice is not None and active.outcome is not None
    caller = active.caller
    retried = core.work.next is not None and caller is not None and core.work.next.ref == active.ref
    if caller is not None and active.choice.kind == "defer":
        open_deferred(core, caller, active.number, exclusive=active.choice.exclusive)
    elif caller is not None and not retried:
        end(core, caller, active.outcome)
    if active.outcome.error is not None:
        delegation.withdraw_questions(core, active.ref, active.outcome.error)
    if active.outcome.usage:
        core.work = structs.replace(core.work, usage=added(core.work.usage, active.outcome.usage))
    if core.work.kept or core.ledger.steps or active.tools:
        end_turn(core, active, again_of(core, active))
    core.emits = (*core.emits, TO_IDLE)
    commit(core, "turn", out, turn=turn_info(core, active, active.error))


def again_of(core: Core, active: Active) -> str | None:
    """The ref of the prompt that is tried in the place of this one, which failed."""
    failed = active.error is not None and active.error.code not in ENDED_FROM_OUTSIDE
    tried = failed and active.choice is not None and active.choice.kind == "prompt"
    return core.work.next.ref if tried and core.work.next is not None else None
