"""Inputs that kill the nodes that handle them (docs/architecture.md#poison).

After the death of a node nobody knows what it was doing: an agent's new owner is wary until it has handled all the mail that
waited. It names each input in a small record just before it begins. If its node dies too and that record is still the newest, the
next owner charges the input. An input charged twice is suspect, and waits until its node handles no other suspect: so a node that
dies again charges the culprit, and no bystander more than twice. Beyond `max_takeovers` it becomes a dead letter.
"""

from __future__ import annotations

import msgspec
from msgspec import structs

from agentmesh.records import TurnInfo
from agentmesh.tool_runs import counted
from agentmesh.turn.draft import Out, bury, bury_own, commit, consume, end_request, forget_charges, key_of, turn_info
from agentmesh.turn.kept import runs_of
from agentmesh.turn.tracing import ended_unrun
from agentmesh.turn.values import Active, AwaitPermit, Core, Phase
from agentmesh.wire import ErrorBody

SUSPECT = 2
"""Number of charges that makes an input suspect."""


def hold_back(core: Core, key: str, out: Out) -> bool:
    """Begin what must come before the input `key`. Returns False if it may begin now."""
    if not core.wary:
        return False
    if core.ledger.takeovers.get(key, 0) >= SUSPECT and not core.cleared:
        core.phase = Phase.SUSPECT
        out.append(AwaitPermit())
        return True
    if core.ledger.trying == key:
        return False
    core.work = structs.replace(core.ledger, trying=key)
    commit(core, "trying", out)
    return True


def beyond(core: Core, key: str) -> ErrorBody | None:
    """Why the input `key` must not begin any more, or None."""
    deaths = core.ledger.takeovers.get(key, 0)
    if deaths < max(core.config.max_takeovers, SUSPECT + 1):  # no input is given up before it has run alone
        return None
    return ErrorBody(code="dead_letter", message=f"{deaths} nodes died while they handled this", details={"takeovers": deaths})


def begin(core: Core) -> None:
    """Add to the draft that the input named by the last record now begins."""
    if core.work.trying is not None:
        core.work = structs.replace(core.work, trying=None)


def give_up(core: Core, active: Active, error: ErrorBody) -> None:
    """Add to the draft that a prompt (no longer among those that wait) becomes a dead letter, and its caller gets `error`."""
    tools = counted(runs_of(core, active))
    if active.mail is not None:
        consume(core, active.mail)
        bury(core, active.mail, error)
    else:
        if active.slot == "next":
            core.work = structs.replace(core.work, next=None)
        else:
            core.work = structs.replace(core.work, queue=core.work.queue[1:])
        bury_own(core, error, active.text, active.trace, active.caller.chain if active.caller is not None else ())
    if active.caller is not None:
        end_request(core, active.caller, error, tools)
    forget_charges(core, active.key)


def end_without_answer(core: Core, active: Active, error: ErrorBody) -> TurnInfo:
    """As `give_up`, for a prompt that turns have been begun for. Returns what the history shows of them."""
    info = turn_info(core, active, error)
    give_up(core, active, error)
    core.work = structs.replace(core.work, turn=active.number)
    return info


def is_beyond(core: Core, active: Active) -> TurnInfo | None:
    """Give up a prompt that too many nodes have died of. Returns what the history shows of it; None if it is no such prompt."""
    error = beyond(core, active.key) if core.ledger.takeovers else None
    return None if error is None else end_without_answer(core, active, error)


def comes_first(core: Core, out: Out) -> bool:
    """Whether a wary owner does something else before the next event: each event has a record of its own."""
    if core.work is not core.ledger or core.effects or core.asks:
        commit(core, "event", out)
        return True
    key = "notice" if core.work.notices else key_of(core.events[0])
    error = beyond(core, key)
    if error is None:
        if hold_back(core, key, out):
            return True
        begin(core)
        return False
    if core.work.notices:
        notice, *rest = core.work.notices
        core.work = structs.replace(core.work, notices=tuple(rest))
        bury_own(core, error, msgspec.json.encode(notice).decode(), notice.trace)
        forget_charges(core, key)
    else:
        mail, core.events = core.events[0], core.events[1:]
        consume(core, mail)
        bury(core, mail, error)
        ended_unrun(core, mail, error.code)
    commit(core, "event", out)
    return True
