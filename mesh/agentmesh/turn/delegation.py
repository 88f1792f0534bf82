"""What was asked of other agents on behalf of a request: let go when that is answered, withdrawn when it ends in any other way
(docs/architecture.md#withdrawals). This is the asking agent's side; `agentmesh.turn.withdrawal` is that of the agent asked.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import structs

from agentmesh.budget import DELEGATED, NOTHING_SPENT, added, as_usage, spending_of
from agentmesh.callback_context import Ask
from agentmesh.identity import Chain, handed_on
from agentmesh.records import Caller, Delegated, Ledger, Notice, SendMail
from agentmesh.turn.values import Active, Core
from agentmesh.wire import ErrorBody, Mail, Outcome, Withdrawal

MAX_WHY = 400
"""Most characters of an error's text that a withdrawal repeats."""
BEING_HANDLED = ""
"""`SendMail.request` of what a callback sends, until the machine says which request that is for."""


# --- whose requests they are ------------------------------------------------------------------------------------------
def root_of(core: Core, ref: str, caller: Caller | None) -> str | None:
    """The request of a client that a request of this agent is for: itself, if no agent sent it. None for a prompt that the agent
    gives itself."""
    return None if caller is None else caller.root or f"{core.config.name}/{ref}"


def open_caller(ledger: Ledger, ref: str) -> Caller | None:
    """Who asked the request `ref`, if it is open between two turns: deferred, or about to be tried again."""
    entry = ledger.deferred.get(ref)
    if entry is not None:
        return entry.caller
    return next((q.caller for q in (ledger.next, *ledger.queue) if q is not None and q.ref == ref), None)


def attributed(core: Core, asks: tuple[Ask, ...], active: Active | None) -> tuple[Ask, ...]:
    """What a callback of the turn `active` asks for, as requests on behalf of the turn's own."""
    if active is None or active.caller is None:
        return asks
    return tuple(_for(core, ask, active.ref, active.caller) for ask in in_chain(core, asks, active.caller.chain))


def in_chain(core: Core, asks: tuple[Ask, ...], chain: Chain) -> tuple[Ask, ...]:
    """What a callback asks for while it handles something with this chain: its mail hands that on, detached or not."""
    if not chain:
        return asks
    behalf = handed_on(chain, core.config.name)
    return tuple(structs.replace(ask, chain=behalf) if isinstance(ask, SendMail) else ask for ask in asks)


def attributed_to_answered(core: Core, asks: tuple[Ask, ...], answered: Delegated) -> tuple[Ask, ...]:
    """What `handle_event` asks for when it is given the answer to a request that was made on behalf of another.

    If that one has ended in any way but its answer, nothing more is asked on its behalf: the agent is told so.
    """
    if answered.withdrawn:
        return tuple(ask for ask in asks if not _is_refused(core, ask, answered.request))
    caller = open_caller(core.work, answered.request)
    if caller is None:
        return asks
    return tuple(_for(core, ask, answered.request, caller) for ask in in_chain(core, asks, caller.chain))


def _for(core: Core, ask: Ask, ref: str, caller: Caller) -> Ask:
    if not isinstance(ask, SendMail) or ask.request != BEING_HANDLED:
        return ask
    return structs.replace(ask, request=ref, root=root_of(core, ref, caller), end_by=caller.end_by)


def _is_refused(core: Core, ask: Ask, ref: str) -> bool:
    if not isinstance(ask, SendMail) or ask.request != BEING_HANDLED:
        return False
    _refuse(core, ask, ref)
    return True


def _refuse(core: Core, ask: SendMail, ref: str) -> None:
    """Add to the draft that a prompt is not sent, since the request that it is for has ended: it comes back to the agent."""
    effect: dict[str, object] = {"kind": "tell", "target": ask.to}
    if ask.tag is not None:
        effect["tag"] = ask.tag
    error = ErrorBody(
        code="cancelled",
        message=f"the request {ref}, which this is for, has ended; what is to be sent all the same is detached",
    )
    notice = Notice(effect=effect, error=error, trace=(ask.trace or core.trace) if core.config.traced else {})
    core.work = structs.replace(core.work, notices=(*core.work.notices, notice))


def keep_attributions(core: Core, ended: frozenset[str]) -> None:
    """Add to the draft on behalf of which requests its mail is sent: of those that stay open. What is sent in the record that
    ends a request follows from its end, and is not withdrawn with it. But what is for a request that has `ended` meanwhile, in
    a record beside the draft, is not sent."""
    if any(isinstance(e, SendMail) and e.request is not None for e in core.effects):
        kept = (_kept(core, e, ended) if isinstance(e, SendMail) else e for e in core.effects)
        core.effects = tuple(effect for effect in kept if effect is not None)


def _kept(core: Core, effect: SendMail, ended: frozenset[str]) -> SendMail | None:
    ref = effect.request
    if ref is None or open_caller(core.work, ref) is not None:
        return effect
    if ref in ended and (core.active is None or core.active.ref != ref):
        _refuse(core, effect, ref)
        return None
    return structs.replace(effect, request=None, root=None, end_by=None)


# --- the end of a request ---------------------------------------------------------------------------------------------
def let_go(core: Core, ref: str) -> None:
    """Add to the draft that the request `ref` is answered: what was asked on its behalf goes on."""
    delegated = core.work.delegated
    kept = {origin: one for origin, one in delegated.items() if one.withdrawn or one.request != ref}
    if len(kept) < len(delegated):
        core.work = structs.replace(core.work, delegated=kept)


def withdraw(core: Core, ref: str, error: ErrorBody) -> None:
    """Add to the draft that all is withdrawn that is open on behalf of the request `ref`, which ends with `error`."""
    work = core.work
    told = {origin: one.agent for origin, one in work.delegated.items() if one.request == ref and not one.withdrawn}
    # The outcome of what was told without a tag comes back to nobody.
    kept = {o: one for o, one in work.delegated.items() if o not in told or o in work.awaiting}
    kept |= {origin: structs.replace(kept[origin], withdrawn=True) for origin in told if origin in kept}
    if told:
        core.work = structs.replace(work, delegated=kept)
        core.effects = (*core.effects, *withdrawals(told, error))
    withdraw_questions(core, ref, error)


def withdraw_questions(core: Core, ref: str, error: ErrorBody) -> None:
    """Add to the draft that the questions are withdrawn which the turn of the request `ref` still waits for."""
    asked = {origin: agent for origin, agent in questions(core.ledger, ref) if origin not in core.work.delegated}
    if asked:
        entries = {origin: Delegated(agent, ref, True) for origin, agent in asked.items()}
        core.work = structs.replace(core.work, delegated={**core.work.delegated, **entries})
        core.effects = (*core.effects, *withdrawals(asked, error))


def withdraw_all(core: Core, error: ErrorBody) -> None:
    """Add to the draft that all is withdrawn: the agent's life ends. Nothing of it comes back."""
    ledger = core.ledger
    told = {origin: one.agent for origin, one in core.work.delegated.items() if not one.withdrawn}
    if ledger.turning is not None:
        asked = questions(ledger, ref_in(ledger.turning.key))
        told |= {origin: agent for origin, agent in asked if origin not in core.work.delegated}
    core.work = structs.replace(core.work, delegated={})
    core.effects = (*core.effects, *withdrawals(told, error))


def questions(ledger: Ledger, ref: str) -> Iterable[tuple[str, str]]:
    """What the turn of the request `ref` waits for, as the journal has it: origins and agents."""
    turning = ledger.turning
    if turning is None or ref_in(turning.key) != ref:
        return ()
    return ((wait.origin, wait.agent) for wait in ledger.waits.values() if wait.outcome is None and wait.origin)


def to_withdraw(core: Core, ref: str) -> dict[str, list[dict[str, str]]]:
    """What would be withdrawn if the request `ref` ended now, as the replies to control requests have it; empty if nothing."""
    told = {origin: one.agent for origin, one in core.work.delegated.items() if one.request == ref and not one.withdrawn}
    found = {**dict(questions(core.ledger, ref)), **told}
    return {"withdrawn": [{"agent": agent, "origin": origin} for origin, agent in found.items()]} if found else {}


def all_open(core: Core) -> list[dict[str, str]]:
    """All that is open on behalf of requests of this agent, as replies show it."""
    ledger = core.ledger
    told = {origin: one.agent for origin, one in ledger.delegated.items() if not one.withdrawn}
    if ledger.turning is not None:
        told |= dict(questions(ledger, ref_in(ledger.turning.key)))
    return [{"agent": agent, "origin": origin} for origin, agent in told.items()]


def pruned(ledger: Ledger) -> Ledger:
    """`ledger` without the entries of requests that are open no longer: a process of an older build, which knows no entries, has
    ended those."""
    kept = {o: one for o, one in ledger.delegated.items() if one.withdrawn or open_caller(ledger, one.request) is not None}
    return ledger if len(kept) == len(ledger.delegated) else structs.replace(ledger, delegated=kept)


def ref_in(key: str) -> str:
    """The ref of the input that has this key in the ledger's counters."""
    return key.rpartition(":")[2]


def withdrawals(withdrawn: dict[str, str], error: ErrorBody) -> tuple[SendMail, ...]:
    """The mail that withdraws these: agents by origins."""
    why = ErrorBody(code=error.code, message=error.message[:MAX_WHY])
    return tuple(
        SendMail(to=agent, lane="peer-answer", event=msgspec.to_builtins(Withdrawal(withdraws=origin, why=why)))
        for origin, agent in withdrawn.items()
    )


# --- what comes back --------------------------------------------------------------------------------------------------
def ended(core: Core, origin: str) -> None:
    """Add to the draft that a request to another agent has ended, or was never delivered."""
    if origin in core.work.delegated:
        kept = {other: one for other, one in core.work.delegated.items() if other != origin}
        core.work = structs.replace(core.work, delegated=kept)


def came_back(core: Core, mail: Mail) -> None:
    """Add to the draft what an answer that no turn waits for has cost, if it is that of a question which was withdrawn."""
    one = core.work.delegated.get(mail.tag or "")
    if one is None or mail.tag is None or not one.withdrawn or one.agent != mail.sender:
        return
    ended(core, mail.tag)
    try:
        spent = spending_of(msgspec.convert(mail.event, Outcome).usage)
    except msgspec.ValidationError:
        return
    if spent != NOTHING_SPENT:
        core.work = structs.replace(core.work, usage=added(core.work.usage, {DELEGATED: as_usage(spent)}))
