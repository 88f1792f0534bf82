"""Interrupts and stops that come while one of the agent's callbacks runs (docs/semantics.md#control-requests-in-every-phase).

The callback is told to end (`CancelCallback`), and the machine goes on when it has ended: no other code of the agent runs beside
it. What it returns behind an interrupt is thrown away. A callback that a stop would cut short may end by itself first; then the
machine goes on as ever, and the next callback is told again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from msgspec import structs

from agentmesh.turn.configuration import refuse_waiting
from agentmesh.turn.crash import record_crash
from agentmesh.turn.deferral import tell_closed
from agentmesh.turn.delegation import to_withdraw
from agentmesh.turn.dispatch import decided, drain, fail, on_post_run, refuse, tell_failure, transition
from agentmesh.turn.draft import Out, commit, pending_stop
from agentmesh.turn.lifecycle import on_closing, on_ending, on_stop
from agentmesh.turn.outcome import outcome_of
from agentmesh.turn.tracing import event_handled
from agentmesh.turn.values import (
    AnswerControl,
    CancelCallback,
    Choice,
    Core,
    CutShort,
    Interrupt,
    Phase,
    Raised,
    Stop,
)
from agentmesh.wire import ErrorBody

NOTHING_MORE: Mapping[str, object] = MappingProxyType({})
STOP_PATIENCE_S = 0.5
"""How long a callback may still run when its agent is to stop."""
CALLBACKS: dict[Phase, str] = {
    Phase.INIT: "init_agent",
    Phase.SESSION: "resume_session",
    Phase.ACTIVATE: "activate_agent",
    Phase.PRE_RUN: "pre_run",
    Phase.PRE_TURN: "pre_turn",
    Phase.DECIDING: "handle_response",
    Phase.POST_TURN: "post_turn",
    Phase.HANDLING: "handle_event",
    Phase.POST_RUN: "post_run",
    Phase.CRASHING: "terminate_agent",
    Phase.CONFIGURING: "change_options",
    Phase.ENDING: "terminate_agent",
    Phase.CLOSING: "terminate_session",
}
"""The phases in which a callback runs, and its name."""
LAST = (Phase.ENDING, Phase.CLOSING)
"""Phases of a stop itself."""


def running_callback(core: Core) -> str | None:
    """The name of the callback that runs now."""
    if core.phase is Phase.DECIDING and core.active is not None and core.active.error is not None:
        return "handle_error"
    if core.phase is Phase.SESSION and core.ledger.phase == "new":
        return "start_session"
    return CALLBACKS.get(core.phase)


# --- interrupts -------------------------------------------------------------------------------------------------------
def on_interrupt(core: Core, item: Interrupt, out: Out) -> None:
    """Interrupt the callback of a turn that runs now. It is cancelled once; callbacks behind it still run."""
    active = core.active
    if active is None or item.ref not in (None, active.ref):
        on_interrupt_elsewhere(core, item, out)
        return
    _answer(core, item, out, hit=True, told=to_withdraw(core, active.ref))
    if core.cut is None:
        message = f"the turn was interrupted while {running_callback(core)} ran"
        core.cut = ErrorBody(code="interrupted", message=message)
        out.append(CancelCallback())


def on_interrupt_elsewhere(core: Core, item: Interrupt, out: Out) -> None:
    """Nothing that an interrupt ends runs now. That is fine, and the answer names what runs in its place."""
    _answer(core, item, out, hit=False)


def _answer(core: Core, item: Interrupt, out: Out, *, hit: bool, told: Mapping[str, object] = NOTHING_MORE) -> None:
    if not item.token:
        return
    body: dict[str, object] = {"interrupted": hit, **told}
    hook = running_callback(core)
    if hook is not None:
        body["callback"] = hook
        if hook in core.config.plain:
            body["plain"] = True
    out.append(AnswerControl(item.token, body))


# --- stops ------------------------------------------------------------------------------------------------------------
def hurry(core: Core, out: Out) -> None:
    """If a stop waits for the callback that runs now, bound that callback."""
    if core.phase in CALLBACKS and core.phase not in LAST and pending_stop(core) is not None:
        out.append(CancelCallback(STOP_PATIENCE_S))


# --- the end of a callback that was told to end ---------------------------------------------------------------------------
def on_cut(core: Core, item: CutShort, out: Out) -> None:
    """The callback was cancelled: for a stop, or for an interrupt."""
    error, core.cut = core.cut, None
    if core.phase is Phase.CRASHING:
        record_crash(core, out)
    elif core.phase is Phase.ENDING:
        on_ending(core, _as_raised(core), out)
    elif core.phase is Phase.CLOSING:
        on_closing(core, _as_raised(core), out)
    elif (stop := pending_stop(core)) is not None:
        core.stash = tuple(i for i in core.stash if not isinstance(i, Stop))
        if core.configuring is not None:
            refuse_waiting(core, ErrorBody(code="stopped", message="the agent was stopped meanwhile"), out)
        on_stop(core, stop, out)
    elif error is not None and core.active is not None:
        _INTERRUPTED[core.phase](core, error, out)
    else:
        raise AssertionError(f"nothing has cut {core.phase} short")


def _as_raised(core: Core) -> Raised:
    return Raised(ErrorBody(code="timeout", message=f"{running_callback(core)} held up the stop"))


def _in_pre_turn(core: Core, error: ErrorBody, out: Out) -> None:
    """No turn has begun: the prompt ends without one, and the state stays as it was."""
    refuse(core, error)
    commit(core, "refused", out)


def _in_decision(core: Core, error: ErrorBody, out: Out) -> None:
    """`handle_response` decides nothing, and nothing that it did is kept. An interrupted `handle_error` means "stay idle"."""
    active = core.active
    assert active is not None
    if active.error is not None:
        decided(core, Choice(kind="idle"), out)
        return
    core.work = structs.replace(core.work, state=core.ledger.state, session=core.ledger.session)
    core.asks = ()
    _take_back(core, error)
    fail(core, error, out)


def _in_post_turn(core: Core, error: ErrorBody, out: Out) -> None:
    """What was decided holds, as if `post_turn` had raised."""
    _end_unanswered(core, error, out)
    transition(core, out)


def _in_event(core: Core, error: ErrorBody, out: Out) -> None:
    """The event changes nothing, as if `handle_event` had raised. Those behind it are handled once the caller has its outcome."""
    event_handled(core, error.code)
    _end_unanswered(core, error, out)
    core.drains = 0
    drain(core, out)


def _in_post_run(core: Core, error: ErrorBody, out: Out) -> None:
    """The halt is complete all the same."""
    assert core.active is not None
    if not core.active.refused:
        _end_unanswered(core, error, out)
    core.drains = 0
    on_post_run(core, Raised(error), out)


_INTERRUPTED: dict[Phase, Callable[[Core, ErrorBody, Out], None]] = {
    Phase.PRE_TURN: _in_pre_turn,
    Phase.DECIDING: _in_decision,
    Phase.POST_TURN: _in_post_turn,
    Phase.HANDLING: _in_event,
    Phase.POST_RUN: _in_post_run,
}


def _take_back(core: Core, error: ErrorBody) -> None:
    """The caller gets `error` and not the answer, which stays in the history."""
    active = core.active
    assert active is not None
    response = active.response
    if response is not None:
        core.active = structs.replace(active, response=None, error=error, usage=response.usage, unsaid=response.text)


def _end_unanswered(core: Core, error: ErrorBody, out: Out) -> None:
    """Behind the decision: the turn's outcome becomes `error`, unless it has failed before."""
    active = core.active
    assert active is not None
    if active.error is not None:
        return
    _take_back(core, error)
    active = core.active
    assert active is not None and active.choice is not None
    choice = active.choice
    if choice.kind == "defer":
        choice = Choice(kind="idle")  # the request ends now, and the agent thinks that it is open
        tell_closed(core, active.ref, "interrupted", active.caller)
    core.active = structs.replace(active, choice=choice, outcome=outcome_of(core, active))
    tell_failure(core, error, out)
