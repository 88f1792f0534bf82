"""Prompts and events: from waiting mail to the record that says what was done with it (docs/architecture.md#turns)."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from agentmesh.callback_context import Ask
from agentmesh.records import NOTHING, Inner, Queued
from agentmesh.tool_runs import ToolRun
from agentmesh.turn import delegation, tracing, withdrawal
from agentmesh.turn.crash import begin_crash
from agentmesh.turn.deferral import orphaned, second_exclusive
from agentmesh.turn.draft import (
    Out,
    commit,
    commit_change,
    consume,
    end_request,
    enqueue,
    forget_charges,
    mint,
    pending_stop,
    recordable,
)
from agentmesh.turn.kept import end_turn, name_of
from agentmesh.turn.next_input import NO_EVENT, choose, end_late, end_without_turn, next_event, out_of_time
from agentmesh.turn.outcome import ENDED_FROM_OUTSIDE, charged, finish_turn, outcome_of, purse_of
from agentmesh.turn.poison import begin, comes_first, hold_back, is_beyond
from agentmesh.turn.steps import drop_requests, resumed, take_answers, taken_so_far, watchdog_left
from agentmesh.turn.values import (
    CUT_SHORT,
    TO_PROCESSING,
    Active,
    Cancel,
    CancelCallback,
    Choice,
    Cleared,
    Configure,
    Core,
    Emit,
    KillTurn,
    Misbehaved,
    Phase,
    Raised,
    Returned,
    RunCallback,
    RunTurn,
    Stop,
    TurnEnded,
    Wake,
)
from agentmesh.wire import ErrorBody

_COMES_FIRST = (Cancel, Configure, Stop)
"""Inputs that waited for a record, and are handled before the next prompt or event."""
MAX_DRAIN = 256
"""Events that one record handles at most, for an idle agent."""


# --- what next? ---------------------------------------------------------------------------------------------------
def go_on(core: Core, out: Out) -> None:
    """An agent between records: handle events first, then begin the next prompt, or stay idle."""
    core.phase = Phase.IDLE
    core.active, core.reason, core.trace, core.answering = None, None, {}, None
    core.context, core.handling = None, None
    core.drains = MAX_DRAIN
    if core.stash and any(type(item) in _COMES_FIRST for item in core.stash):
        return  # turns and events have no end, and a prompt that is cancelled must not begin
    if core.retiring:
        return
    if core.withdrawals:
        take_withdrawals(core, out)
        return
    if core.answered and take_answers(core, out):
        return
    if core.work.notices or core.events:
        drain(core, out)
    elif not core.work.halted and len(core.ledger.effects) - len(core.done) <= core.config.max_effects:
        dispatch(core, out)


def take_withdrawals(core: Core, out: Out) -> None:
    """End what was withdrawn, in a record of its own; what runs, if it answers such a request, is ended instead, and its
    withdrawal waits for the record of that."""
    active = core.active
    running = withdrawal.of_active(core, active) if active is not None else None
    if running is not None and end_active(core, withdrawal.reason_in(running), core.spent, out):
        return
    mails = tuple(mail for mail in core.withdrawals if mail is not running)
    if mails and core.inflight is None:
        commit_change(core, "control", withdrawal.take(core, mails), out)


def end_active(core: Core, error: ErrorBody, usage: dict[str, Any] | None, out: Out) -> bool:
    """End what runs of a request, with `error`: its prompt task, or the callback that could still answer it. Returns whether
    there was such a thing, and its end begins now."""
    active = core.active
    if active is None or core.inflight is not None:
        return False
    if core.phase is Phase.TURN:
        kill(core, error, usage, out)
        return True
    if active.error is not None or core.phase not in CUT_SHORT:
        return False
    if core.cut is None:
        core.cut = error
        out.append(CancelCallback())
    return True


def dispatch(core: Core, out: Out) -> None:
    """Begin the next prompt: the self-chained one first, then the mailbox in stream order.

    Prompts on the way that need no turn (repeated, too late, malformed, meant for another life) are ended in a record of their
    own, so that their callers need not wait for the next turn's end.
    """
    before = core.work
    while True:
        active = choose(core)
        if active is None:
            if core.work is not before or core.effects:
                commit(core, "refused", out)
            else:
                core.wary = False  # all mail that waited when the node died is handled
            return
        mail = active.mail
        if end_late(core, active) if mail is None else end_without_turn(core, mail):
            continue
        given_up = is_beyond(core, active)
        if given_up is None:
            break
        commit(core, "refused", out, turn=given_up)
        return
    turned_away = core.work is not before
    if turned_away or hold_back(core, active.key, out):
        # Put it back: something else comes first.
        if mail is not None:
            core.prompts = tuple(sorted((mail, *core.prompts), key=lambda m: m.seq))
        if turned_away:
            commit(core, "refused", out)
        return
    _begin(core, active, out)


def _awaited_until(active: Active) -> float | None:
    """When the wait for the prompt's answer ends; None where it does not."""
    if active.caller is None:
        return None
    ends = [end for end in (active.caller.deadline, active.caller.end_by) if end is not None]
    return min(ends, default=None)


def _begin(core: Core, active: Active, out: Out) -> None:
    begin(core)
    if core.config.traced:
        active = structs.replace(active, attempt=tracing.attempt_of(core, active))
        if core.work.causes:
            tracing.forget_causes(core)
    core.active = active
    kept = core.work.kept
    if active.mail is not None:
        consume(core, active.mail, turn=active.number)
    elif active.slot == "next":
        core.work = structs.replace(core.work, next=None, turn=active.number)
        forget_charges(core, active.key)
    else:
        core.work = structs.replace(core.work, queue=core.work.queue[1:], turn=active.number)
        forget_charges(core, active.key)
    if core.work.kept is not kept:
        core.work = structs.replace(core.work, kept=kept)  # it goes on: what it leaves is known at its end
    if "pre_turn" in core.config.hooks:
        core.phase = Phase.PRE_TURN
        out.append(_call(core, "pre_turn", (active.text,)))
    else:
        _run(core, out)


def _call(core: Core, hook: str, args: tuple[Any, ...] = ()) -> RunCallback:
    active = core.active
    assert active is not None
    state, request = core.work.state, active.request()
    return RunCallback(hook=hook, args=args, state=state, request=request, trace=active.trace, of=active.attempt)


def _returned(core: Core, item: Returned) -> None:
    """Add to the draft the state that a callback returned, and its asks."""
    if item.state != core.work.state:
        core.work = structs.replace(core.work, state=item.state)
    if item.asks:
        core.asks = (*core.asks, *tracing.stamped(core, _attributed(core, item.asks)))


def _attributed(core: Core, asks: tuple[Ask, ...]) -> tuple[Ask, ...]:
    """The asks of a callback, as requests on behalf of the one that it handles."""
    if core.phase is not Phase.HANDLING:
        return delegation.attributed(core, asks, core.active)
    if core.answering is None:
        return delegation.in_chain(core, asks, core.chain)
    return delegation.attributed_to_answered(core, asks, core.answering)


def _run(core: Core, out: Out) -> None:
    assert core.active is not None
    over = _is_over(core, core.active)
    if over is not None:
        refuse(core, over)
        commit(core, "refused", out)
        return
    core.phase, core.spent = Phase.TURN, None
    active, state = resumed(core, core.active), core.work.state
    core.active = active
    out.append(
        RunTurn(
            number=active.number,
            request=active.request(),
            prompt=active.text,
            state=state,
            session=core.work.session,
            watchdog_s=core.config.watchdog_s if core.ledger.turning is None else watchdog_left(core, active),
            key=name_of(core.config.name, core.ledger, active),
            steps=taken_so_far(core, active),
            kept=tuple(core.work.kept.items()) if core.work.kept else (),
            purse=purse_of(core, active),
            stream_to=active.caller.stream_to if active.caller else None,
            trace=active.trace,
            attempt=active.attempt,
            awaited_until=_awaited_until(active),
        )
    )
    out.append(TO_PROCESSING)
    out.append(
        Emit(
            "prompt_start",
            {
                "ref": active.ref,
                "rewritten": active.text != active.original,
                "prompt": active.text,
                "original_prompt": active.original,
                "agent_state": state,
                "sender": active.sender,
                "chain": active.caller.chain if active.caller is not None else (),
            },
        )
    )
    if active.caller is not None and active.caller.end_by is not None:
        out.append(Wake(active.caller.end_by))
    if core.withdrawals:
        take_withdrawals(core, out)
    elif core.answered:
        take_answers(core, out)


def _is_over(core: Core, active: Active) -> ErrorBody | None:
    """Why a request must not begin a call any more that its turn was about to make, or None."""
    withdrawn = withdrawal.of_active(core, active)
    if withdrawn is not None:
        return withdrawal.reason_in(withdrawn)
    end_by = active.caller.end_by if active.caller is not None else None
    return None if end_by is None or end_by > core.now else out_of_time(core, end_by)


# --- pre_turn -----------------------------------------------------------------------------------------------------
def on_pre_turn(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    active = core.active
    assert active is not None
    if isinstance(item, Returned) and item.choice.kind == "proceed":
        core.active = structs.replace(active, text=item.choice.text)
        _returned(core, item)
        _run(core, out)
        return
    if isinstance(item, Returned):
        _returned(core, item)
        halt = item.choice.kind == "halt"
        error = ErrorBody(code="pre_turn_halted" if halt else "pre_turn_skipped", message="pre_turn refused this prompt")
    elif isinstance(item, Misbehaved):
        halt = False
        code = "bad_state" if item.error.code == "bad_state" else "pre_turn_invalid"
        error = ErrorBody(code=code, message=item.error.message)
    else:
        # A hook that raises skips the prompt, and the state stays as it was.
        halt = False
        error = ErrorBody(code="pre_turn_skipped", message=f"pre_turn raised: {item.error.message}")
    refuse(core, error)
    if halt and _halt(core, out):
        return
    commit(core, "refused", out)


def refuse(core: Core, error: ErrorBody) -> None:
    """Add to the draft that the prompt being looked at ends with `error`, without a turn."""
    active = core.active
    assert active is not None
    core.active = active = structs.replace(active, refused=True, error=error)
    if core.work.kept or core.ledger.steps:
        end_turn(core, active, None)
    if active.caller is not None:
        end_request(core, active.caller, error)
    tracing.attempted(core, error, consumed=True)
    # No turn ran: the number is free again.
    core.work = structs.replace(core.work, turn=active.number - 1)


# --- the turn's end -------------------------------------------------------------------------------------------------
def on_ended(core: Core, item: TurnEnded, out: Out) -> None:
    active = core.active
    if active is None or item.turn != active.number:
        return  # a late result of a killed turn
    drop_requests(core)
    if item.state not in (NOTHING, core.work.state):
        core.work = structs.replace(core.work, state=item.state)
    if item.session not in (NOTHING, core.work.session):
        core.work = structs.replace(core.work, session=item.session)
    if item.response is not None:
        core.active = structs.replace(active, response=item.response, tools=item.tools, inner=item.inner)
        fields = {"ref": active.ref, "duration_ms": item.response.duration_ms, "agent_state": core.work.state}
        out.append(Emit("prompt_stop", fields))
        core.phase = Phase.DECIDING
        out.append(_call(core, "handle_response", (active.ref, item.response)))
    else:
        core.active = structs.replace(active, usage=item.usage, tools=item.tools, inner=item.inner)
        fail(core, item.error or ErrorBody(code="backend_error", message="unknown"), out)


def kill(
    core: Core,
    error: ErrorBody,
    usage: dict[str, Any] | None,
    out: Out,
    *,
    tools: tuple[ToolRun, ...] = (),
    inner: tuple[Inner, ...] = (),
) -> None:
    """End the running turn from outside: it is interrupted, withdrawn, or its time is over. Its spending still counts, and what
    its tools did is kept."""
    assert core.active is not None
    core.active = structs.replace(core.active, usage=usage, tools=tools, inner=inner)
    drop_requests(core)
    out.append(KillTurn(core.active.number))
    fail(core, error, out)


def fail(core: Core, error: ErrorBody, out: Out) -> None:
    """The turn has failed with `error`: let `handle_error` decide."""
    active = core.active
    assert active is not None
    core.active = structs.replace(active, error=error)
    tell_failure(core, error, out)
    core.phase = Phase.DECIDING
    if "handle_error" in core.config.hooks:
        out.append(_call(core, "handle_error", (active.ref, error)))
    else:
        decided(core, Choice(kind="idle"), out)


def tell_failure(core: Core, error: ErrorBody, out: Out) -> None:
    """Report the turn's failure."""
    active = core.active
    assert active is not None
    failure = {"reason": error.code, "message": error.message, "details": error.details}
    chain = active.caller.chain if active.caller is not None else ()
    fields = {"ref": active.ref, "chain": chain, **failure, "agent_state": core.work.state}
    out.append(Emit("prompt_error", fields))


def on_decision(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    """`handle_response` or `handle_error` ended. If `handle_response` raised, that is a crash."""
    active = core.active
    assert active is not None
    if isinstance(item, Returned) and (first := orphaned(core, item)) is not None:
        item = Misbehaved(second_exclusive(first))
    if isinstance(item, Returned):
        _returned(core, item)
        decided(core, item.choice, out)
    elif active.error is None and isinstance(item, Raised):
        begin_crash(core, item.error, out)
    elif active.error is not None:
        # An exception from handle_error, or a bad return, means "stay idle".
        decided(core, Choice(kind="idle"), out)
    else:
        # The turn ends with that error, is not tried again, and the agent goes on with the state before the turn.
        core.work = structs.replace(core.work, state=core.ledger.state, session=core.ledger.session)
        core.asks = ()
        spent = active.response.usage if active.response is not None else None
        core.active = structs.replace(active, response=None, error=item.error, usage=spent)
        decided(core, Choice(kind="idle"), out)


def decided(core: Core, choice: Choice, out: Out) -> None:
    """The turn has its outcome and what follows: `post_turn` is next."""
    active = core.active
    assert active is not None
    active = structs.replace(active, choice=choice, outcome=outcome_of(core, active))
    core.active = active
    if "post_turn" in core.config.hooks:
        core.phase = Phase.POST_TURN
        out.append(_call(core, "post_turn", (active.outcome, active.ref)))
    else:
        transition(core, out)


def on_post_turn(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    if isinstance(item, Returned):
        _returned(core, item)
    transition(core, out)


def transition(core: Core, out: Out) -> None:
    """Put the decision into the draft, then handle what was deferred."""
    active = core.active
    assert active is not None and active.choice is not None
    choice = active.choice
    if choice.kind == "prompt":
        retry = active.error is not None and active.error.code not in ENDED_FROM_OUTSIDE and active.caller is not None
        caller = charged(active)
        item = Queued(
            ref=active.ref if retry else mint(core),
            text=choice.text,
            label=choice.label,
            caller=None if caller is None or not retry else recordable(core, caller),
            metadata=active.metadata if retry else {},
            attachments=active.attachments if retry else (),
            trace=active.trace,
        )
        core.work = structs.replace(core.work, next=tracing.chained(core, item, active, retried=retry))
    # Events that arrive from here on are handled after this record: a stream of events cannot hold up the caller's answer.
    core.drains = len(core.events) + len(core.work.notices)
    if choice.kind == "halt" and _halt(core, out):
        return
    drain(core, out)


def _halt(core: Core, out: Out) -> bool:
    """Halt, if the agent is not halted yet: `post_run` runs once per halt. Returns whether `post_run` was called."""
    if core.work.halted:
        return False
    core.work = structs.replace(core.work, halted=True)
    if "post_run" not in core.config.hooks:
        core.emits = (*core.emits, Emit("halted", {"agent_state": core.work.state}))
        return False
    core.phase = Phase.POST_RUN
    active, of = core.active, tracing.running(core)
    request = active.request() if active is not None else None
    trace = active.trace if active is not None else core.trace if of is not None else {}
    out.append(RunCallback(hook="post_run", state=core.work.state, request=request, trace=trace, of=of))
    return True


def on_post_run(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    if isinstance(item, Returned):
        asks = delegation.attributed(core, item.asks, core.active)
        core.asks = (*core.asks, *tracing.stamped(core, asks))
    core.emits = (*core.emits, Emit("halted", {"agent_state": core.work.state}))
    if core.active is not None and core.active.refused:
        commit(core, "refused", out)
    else:
        drain(core, out)


# --- events -------------------------------------------------------------------------------------------------------
def drain(core: Core, out: Out) -> None:
    """Handle the next event that waits; if none is left for this record, end it."""
    handles = "handle_event" in core.config.hooks
    if core.stash and pending_stop(core) is not None:
        core.drains = 0  # the agent begins nothing more
    while core.drains > 0 and (core.work.notices or core.events):
        if core.wary and core.active is None and comes_first(core, out):
            return
        core.drains -= 1
        event, sender = next_event(core, handles=handles)
        if event is NO_EVENT or not handles:
            continue
        core.phase = Phase.HANDLING
        out.append(
            RunCallback(
                hook="handle_event",
                args=(event,),
                state=core.work.state,
                sender=sender,
                trace=core.trace,
                of=core.context,
            )
        )
        return
    if core.active is not None:
        finish_turn(core, out)
    elif core.work is not core.ledger or core.effects or core.asks:
        commit(core, "event", out)
    else:
        core.phase = Phase.IDLE


def on_cleared(core: Core, item: Cleared, out: Out) -> None:
    """The node handles no other suspect input: this one may begin."""
    core.cleared = True
    go_on(core, out)


def on_event_handled(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    """`handle_event` ended. A call that raised or misbehaved changes nothing; later events still run."""
    tracing.event_handled(core, "" if isinstance(item, Returned) else item.error.code)
    if isinstance(item, Returned):
        _returned(core, item)
        if item.choice.kind == "prompt":
            enqueue(core, item.choice.text, item.choice.label)
        elif item.choice.kind == "halt" and _halt(core, out):
            return
    drain(core, out)
