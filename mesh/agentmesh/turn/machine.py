"""The turn machine: one pure function over one table.

`advance(core, input, now)` returns the new core and the commands to perform, in order. It has no clock, no randomness and no I/O,
and it never raises for an input from outside: one that does not fit is answered or dropped.

How to read the table: it has, for each phase, the inputs that it handles, their handlers, and the phases that can follow. Inputs
in `ANYWHERE` are handled in every phase. Inputs in `DEFERRED` change the ledger: they wait until the record in flight is
committed and a phase is reached that has a move for them. `THEN` has what follows a committed record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import structs

from agentmesh.records import Ledger
from agentmesh.turn import configuration, control, crash, deferral, dispatch, draft, interruption, lifecycle, steps
from agentmesh.turn.step_values import AskAgent, Circled, TakeStep, WaitLost
from agentmesh.turn.values import (
    Arrived,
    AskTimer,
    BackoffOver,
    Cancel,
    Cleared,
    Command,
    Committed,
    Config,
    Configure,
    Core,
    CutShort,
    DropTimer,
    EffectsDone,
    Emit,
    GaveUp,
    HandOn,
    Input,
    Interrupt,
    Misbehaved,
    Perform,
    Phase,
    Raised,
    Reply,
    Rest,
    Resume,
    Retire,
    Returned,
    ReturnPermit,
    Start,
    Stop,
    Swept,
    Then,
    Tick,
    Trim,
    TurnEnded,
    Unreadable,
    Watchdog,
)


class Move(NamedTuple):
    """The handler of an input in a phase, and the phases that can follow."""

    handler: Callable[[Core, Any, list[Command]], None]
    to: tuple[Phase, ...]


P = Phase
_NEXT = (P.IDLE, P.PRE_TURN, P.TURN, P.HANDLING, P.COMMITTING, P.SUSPECT)
"""Where `go_on` leads."""
_END = (P.ENDING, P.CLOSING, P.COMMITTING)
"""Where the end of a life begins."""
_CRASH = (P.CRASHING, P.COMMITTING)
"""Where a crash leads."""
_TAIL = (P.POST_TURN, P.POST_RUN, P.HANDLING, P.COMMITTING)
"""What can follow a decision."""
_LEFT = P.HANDED_ON
"""The phase of an owner that has handed its agent on."""


_ENDS = (Returned, Misbehaved, Raised)
"""How a callback ends by itself."""


_BESIDE: dict[type, Callable[[Core, Any, list[Command]], None]] = {
    Cancel: control.on_cancel,
    Reply: deferral.on_reply,
    AskTimer: control.on_ask_timer,
    DropTimer: control.on_drop_timer,
    Trim: control.on_trim,
    GaveUp: control.on_gave_up,
    Tick: control.on_tick,
}
"""What is done while something runs, in records of its own."""


def _beside(phase: Phase) -> dict[type, Move]:
    return {kind: Move(handler, (phase,)) for kind, handler in _BESIDE.items()}


def _callback(handler: Callable[[Core, Any, list[Command]], None], *to: Phase, cut: tuple[Phase, ...] = _END) -> dict[type, Move]:
    """The ends of a callback. If it is cut short, `cut` follows."""
    return {**dict.fromkeys(_ENDS, Move(handler, to)), CutShort: Move(interruption.on_cut, cut)}


def _of_turn(
    phase: Phase, handler: Callable[[Core, Any, list[Command]], None], *to: Phase, cut: tuple[Phase, ...]
) -> dict[type, Move]:
    """The moves of a phase whose callback may belong to a turn: if it is interrupted, `cut` follows."""
    ends = _callback(handler, *to, cut=(*cut, *_END))
    arrived = Move(control.on_arrived, (phase,))  # a withdrawal cuts the callback short
    return {**ends, **_beside(phase), Arrived: arrived, Interrupt: Move(interruption.on_interrupt, (phase,))}


TABLE: dict[Phase, dict[type, Move]] = {
    P.BOOT: {
        Start: Move(lifecycle.on_start, (P.INIT, P.SESSION, P.FAILED, P.COMMITTING, P.STOPPED)),
        Stop: Move(lifecycle.on_stop, _END),  # by a node that has none of the agent's code, or before its life began
    },
    P.INIT: {**_callback(lifecycle.on_init, P.SESSION, *_END), **_beside(P.INIT)},
    P.SESSION: {
        **_callback(lifecycle.on_session, P.COMMITTING, P.ACTIVATE, P.PRE_RUN, *_NEXT, *_CRASH, *_END),
        **_beside(P.SESSION),
        Unreadable: Move(lifecycle.on_session, (P.FAILED,)),
    },
    P.ACTIVATE: {**_callback(lifecycle.on_activate, P.PRE_RUN, *_NEXT, *_CRASH), **_beside(P.ACTIVATE)},
    P.PRE_RUN: {**_callback(lifecycle.on_pre_run, P.COMMITTING, *_END), **_beside(P.PRE_RUN)},
    P.IDLE: {
        Arrived: Move(control.on_arrived, _NEXT),
        EffectsDone: Move(control.on_done, _NEXT),
        Resume: Move(control.on_resume, (P.IDLE, P.COMMITTING)),
        Cancel: Move(control.on_cancel, (P.COMMITTING, *_NEXT)),
        Reply: Move(deferral.on_reply, (P.IDLE, P.COMMITTING)),
        AskTimer: Move(control.on_ask_timer, (P.COMMITTING,)),
        DropTimer: Move(control.on_drop_timer, (P.IDLE, P.COMMITTING)),
        Trim: Move(control.on_trim, (P.COMMITTING,)),
        GaveUp: Move(control.on_gave_up, (P.IDLE, P.COMMITTING)),
        Tick: Move(control.on_tick, (P.IDLE, P.COMMITTING)),
        Rest: Move(control.on_rest, (P.IDLE, P.COMMITTING)),
        Configure: Move(configuration.on_configure, (P.CONFIGURING, *_NEXT)),
        Stop: Move(lifecycle.on_stop, _END),
    },
    P.SUSPECT: {
        **_beside(P.SUSPECT),
        Cleared: Move(dispatch.on_cleared, _NEXT),
        Stop: Move(lifecycle.on_stop, _END),
    },
    P.PRE_TURN: _of_turn(P.PRE_TURN, dispatch.on_pre_turn, P.TURN, P.POST_RUN, P.COMMITTING, cut=(P.COMMITTING,)),
    P.TURN: {
        **_beside(P.TURN),
        Arrived: Move(control.on_arrived, (P.TURN, P.DECIDING, *_TAIL)),  # a withdrawal ends the turn
        Cancel: Move(control.on_cancel, (P.TURN, P.DECIDING, *_TAIL)),
        Tick: Move(control.on_tick, (P.TURN, P.DECIDING, *_TAIL)),
        TurnEnded: Move(dispatch.on_ended, (P.TURN, P.DECIDING, *_TAIL)),
        Interrupt: Move(control.on_interrupt, (P.TURN, P.DECIDING, *_TAIL)),
        Watchdog: Move(lifecycle.on_watchdog, (P.TURN, P.DECIDING, *_TAIL)),
        TakeStep: Move(steps.on_step, (P.TURN,)),
        AskAgent: Move(steps.on_step, (P.TURN,)),
        Circled: Move(steps.on_circled, (P.TURN,)),
        WaitLost: Move(steps.on_wait_lost, (P.TURN,)),
        HandOn: Move(steps.on_hand_on, (P.TURN, P.COMMITTING)),
        Stop: Move(lifecycle.on_stop, _END),
    },
    P.DECIDING: {
        **_of_turn(P.DECIDING, dispatch.on_decision, *_TAIL, cut=(P.DECIDING, *_TAIL)),
        Raised: Move(dispatch.on_decision, (*_TAIL, *_CRASH)),
    },
    P.POST_TURN: _of_turn(P.POST_TURN, dispatch.on_post_turn, P.POST_RUN, P.HANDLING, P.COMMITTING, cut=_TAIL),
    P.HANDLING: _of_turn(P.HANDLING, dispatch.on_event_handled, P.HANDLING, P.POST_RUN, P.COMMITTING, cut=(P.COMMITTING,)),
    P.POST_RUN: _of_turn(P.POST_RUN, dispatch.on_post_run, P.HANDLING, P.COMMITTING, cut=(P.COMMITTING,)),
    P.COMMITTING: {},  # what follows stands in `THEN`
    P.CRASHING: {**_callback(crash.on_crashing, P.COMMITTING, cut=(P.COMMITTING,)), **_beside(P.CRASHING)},
    P.RESTARTING: {
        **_beside(P.RESTARTING),
        BackoffOver: Move(lifecycle.on_restarted, (P.SESSION,)),
        Stop: Move(lifecycle.on_stop, _END),
    },
    P.FAILED: {
        Arrived: Move(control.on_arrived, (P.FAILED, P.COMMITTING)),
        Cancel: Move(control.on_cancel, (P.FAILED, P.COMMITTING)),
        Reply: Move(deferral.on_reply, (P.FAILED, P.COMMITTING)),
        AskTimer: Move(control.on_ask_timer, (P.COMMITTING,)),
        DropTimer: Move(control.on_drop_timer, (P.FAILED, P.COMMITTING)),
        Trim: Move(control.on_trim, (P.COMMITTING,)),
        Tick: Move(control.on_tick, (P.FAILED, P.COMMITTING)),
        Resume: Move(control.on_resume_failed, (P.COMMITTING, P.SESSION)),
        GaveUp: Move(control.on_gave_up, (P.FAILED, P.COMMITTING)),
        Configure: Move(configuration.on_configure, (P.FAILED, P.CONFIGURING, P.COMMITTING)),
        Stop: Move(lifecycle.on_stop, _END),
    },
    P.CONFIGURING: {**_callback(configuration.on_checked, P.FAILED, *_NEXT), **_beside(P.CONFIGURING)},
    P.ENDING: _callback(lifecycle.on_ending, P.CLOSING, cut=(P.CLOSING,)),
    P.CLOSING: _callback(lifecycle.on_closing, P.COMMITTING, cut=(P.COMMITTING,)),
    P.STOPPED: {
        Swept: Move(lifecycle.on_swept, (P.STOPPED, P.COMMITTING)),
        EffectsDone: Move(control.on_done, (P.STOPPED, P.COMMITTING)),
        GaveUp: Move(control.on_gave_up, (P.STOPPED, P.COMMITTING)),
    },
    P.HANDED_ON: {},
    P.OVER: {},
}

ANYWHERE: dict[type, Callable[[Core, Any, list[Command]], None]] = {
    Arrived: control.on_arrived,
    EffectsDone: control.on_done,
    Retire: control.on_retire,
}
ELSEWHERE: dict[type, Callable[[Core, Any, list[Command]], None]] = {
    Interrupt: interruption.on_interrupt_elsewhere,
    Resume: control.on_resume_elsewhere,
}
"""Handlers of these inputs in phases that have no move for them."""
GONE = (P.ENDING, P.CLOSING, P.STOPPED, P.OVER)
"""Phases from which no turn and no record of a life comes any more."""
TOO_LATE = (Cancel, Reply, AskTimer, DropTimer)
"""Control requests that are answered at once in these phases."""
DEFERRED = (Cancel, Reply, AskTimer, DropTimer, Trim, GaveUp, Stop, Tick, Resume, Swept, BackoffOver, Configure)


def _failed(core: Core, out: list[Command]) -> None:
    core.phase = Phase.FAILED
    dispatch.take_withdrawals(core, out)
    steps.take_answers(core, out)


def _handed_on(core: Core, out: list[Command]) -> None:
    core.phase = _LEFT


def _is_handed_on(core: Core) -> bool:
    """Whether the owner's last record stands or is on its way: whatever comes is the next owner's."""
    return core.phase is _LEFT or (core.inflight is not None and core.inflight.then == "handed_on")


THEN: dict[Then, tuple[Callable[[Core, list[Command]], None], tuple[Phase, ...]]] = {
    "go_on": (dispatch.go_on, _NEXT),
    "activate": (lifecycle.activate, (P.ACTIVATE, P.PRE_RUN, *_NEXT)),
    "boot": (lifecycle.boot, (P.SESSION,)),
    "failed": (_failed, (P.FAILED, P.COMMITTING)),
    "after_crash": (lifecycle.after_crash, (P.FAILED, P.RESTARTING, P.COMMITTING)),
    "sweep": (lifecycle.after_stop, (P.STOPPED,)),
    "swept": (lifecycle.after_sweep, (P.STOPPED, P.COMMITTING)),
    "over": (lifecycle.after_tombstone, (P.OVER,)),
    "configured": (configuration.after_set, (P.FAILED, *_NEXT)),
    "handed_on": (_handed_on, (P.HANDED_ON,)),
}
"""What follows a committed record, and the phases that can follow."""


def new_core(config: Config, ledger: Ledger, *, record: Any = "activated") -> Core:
    """The core of an owner whose `activated` record (or the record of kind `record`) has just been committed."""
    return Core(config=configuration.in_force(config, ledger), ledger=ledger, work=ledger, record=record)


def advance(core: Core, item: Input, now: float) -> tuple[Core, list[Command]]:
    """The core after `item`, and the commands to perform, in order. `core` itself is not changed."""
    core = structs.replace(core, now=now if now > core.now else core.now)
    out: list[Command] = []
    _feed(core, item, out)
    while core.stash and (waiting := _ready(core)) is not None:
        core.stash = tuple(i for i in core.stash if i is not waiting)
        _feed(core, waiting, out)
    if core.stash and not _is_handed_on(core):
        interruption.hurry(core, out)
    return core, out


def _ready(core: Core) -> Input | None:
    """The next input in the stash that can be handled now. A stop overtakes the others: it makes them moot."""
    if core.inflight is not None or core.phase is _LEFT:
        return None
    fitting = [i for i in core.stash if type(i) in TABLE[core.phase] or _is_answered_at_once(core, i)]
    return next((i for i in fitting if isinstance(i, Stop)), fitting[0] if fitting else None)


def _is_answered_at_once(core: Core, item: Input) -> bool:
    """Whether `item` needs only an answer in a phase that has no move for it."""
    if isinstance(item, Resume):
        return not _may_be_resumed(core)
    return isinstance(item, Interrupt) or _is_too_late(core, item)


def _is_too_late(core: Core, item: Input) -> bool:
    return core.phase in GONE and isinstance(item, TOO_LATE)


def _feed(core: Core, item: Input, out: list[Command]) -> None:
    kind = type(item)
    if (core.inflight is not None or core.phase is _LEFT) and kind is not Committed and _is_handed_on(core):
        return
    if core.cut is not None and kind in _ENDS:
        item, kind = CutShort(), CutShort  # it was interrupted: what it returns counts no more
    if (anywhere := ANYWHERE.get(kind)) is not None:
        anywhere(core, item, out)
    elif kind is Committed:
        _on_committed(core, item, out)
    elif (move := TABLE[core.phase].get(kind)) is not None:
        if core.inflight is None:
            move.handler(core, item, out)
        else:  # a record in mid-turn is in flight
            core.stash = (*core.stash, control.bound(core, item))
    elif kind in ELSEWHERE and not (kind is Resume and _may_be_resumed(core)):
        ELSEWHERE[kind](core, item, out)
    elif _is_too_late(core, item):
        control.on_too_late(core, item, out)
    elif isinstance(item, Configure):
        core.stash = configuration.stashed(core, item, out)
    elif kind in DEFERRED:
        core.stash = (*core.stash, item)


def _may_be_resumed(core: Core) -> bool:
    """Whether a resume has something to do, later: the agent is halted, or has failed and is being configured. It is halted until
    the record is committed that resumes it: a second request is answered no sooner than the first."""
    if core.phase in GONE:
        return False
    configuring = core.configuring is not None or (core.inflight is not None and core.inflight.then == "configured")
    reviving = core.inflight is not None and core.ledger.failed is not None
    return core.work.halted or core.ledger.halted or reviving or (configuring and core.reason is not None)


def _on_committed(core: Core, item: Any, out: list[Command]) -> None:
    """The record is committed: perform its effects, answer its callers, and go on."""
    if core.inflight is None:
        return
    flight, opened = draft.settle(core, seq=item.seq, nonce=item.id, at=item.at, size=item.size)
    if opened:
        out.append(Perform(opened))
    if core.answers:
        out.extend(core.answers)
        core.answers = ()
    if not flight.side:
        if core.cleared and flight.kind != "trying":
            core.cleared = False
            out.append(ReturnPermit())
        out.extend(core.emits)
        core.emits = ()
        THEN[flight.then][0](core, out)
    elif core.answered:
        steps.take_answers(core, out)


def state_of(core: Core) -> str:
    """What callers see: GenAgent's `idle` or `processing`."""
    return "processing" if core.active is not None else "idle"


__all__ = ["DEFERRED", "ELSEWHERE", "TABLE", "Emit", "Move", "advance", "new_core", "state_of"]
