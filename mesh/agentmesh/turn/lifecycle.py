"""The life of an agent around its turns: start, crash and restart, stop (docs/architecture.md#the-life-of-an-agent,
docs/architecture.md#the-end-of-a-life)."""

from __future__ import annotations

from msgspec import structs

from agentmesh.configuration import merged
from agentmesh.ledger import shortened
from agentmesh.records import NOTHING, CancelTimer, Ledger
from agentmesh.turn import delegation
from agentmesh.turn.crash import begin_crash, drop_draft
from agentmesh.turn.deferral import date
from agentmesh.turn.dispatch import go_on, kill, take_withdrawals
from agentmesh.turn.draft import Out, commit, consume, end_request, end_unanswered
from agentmesh.turn.steps import drop_requests
from agentmesh.turn.tracing import attempted
from agentmesh.turn.values import (
    Backoff,
    BackoffOver,
    Core,
    Emit,
    KillTurn,
    Misbehaved,
    Phase,
    Raised,
    Returned,
    RunCallback,
    SetStatus,
    Start,
    Stop,
    Sweep,
    Swept,
    Unreadable,
    Watchdog,
)
from agentmesh.wire import ErrorBody

BACKOFF_S = 0.1
"""First back-off after a crash; it doubles with each crash in the restart window."""
MAX_BACKOFF_S = 5.0
SWEEP_BATCH = 500
"""Most messages that one `swept` record ends."""


# --- start --------------------------------------------------------------------------------------------------------
def on_start(core: Core, item: Start, out: Out) -> None:
    """Go on from what the journal says."""
    core.wary = item.died
    if core.ledger.phase == "stopped":
        after_stop(core, out)
    elif core.ledger.failed is not None:
        core.phase = Phase.FAILED
        core.reason = core.ledger.failed
        out.append(SetStatus("failed", core.ledger.failed))
        take_withdrawals(core, out)
    elif core.ledger.phase == "new":
        core.phase = Phase.INIT
        out.append(RunCallback(hook="init_agent", args=(core.config.options,)))
    else:
        boot(core, out)


def boot(core: Core, out: Out) -> None:
    """Start an initialised agent in this process: first its backend's session, then its own local resources."""
    core.phase = Phase.SESSION
    out.append(
        RunCallback(
            hook="resume_session",
            args=(core.ledger.session, core.ledger.backend_options, core.ledger.state_version),
            state=core.ledger.state,
        )
    )


def on_init(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    """`init_agent` ended. An error is the end of a life that never began; the name is free again."""
    if not isinstance(item, Returned):
        begin_end(core, ErrorBody(code="init_failed", message=item.error.message, details=item.error.details), out)
        return
    chosen = merged(item.choice.backend, core.config.backend_options)
    core.work = structs.replace(core.work, state=item.state, state_version=core.config.state_version, backend_options=chosen)
    core.asks = item.asks
    core.phase = Phase.SESSION
    out.append(RunCallback(hook="start_session", args=(chosen,), state=item.state))


def on_session(core: Core, item: Returned | Misbehaved | Raised | Unreadable, out: Out) -> None:
    """The backend has started or resumed its session."""
    fresh = core.ledger.phase == "new"
    if isinstance(item, Unreadable):
        # Nothing is lost and nothing is written: a repaired class, or one with `migrate_state`, reads the state again.
        core.phase = Phase.FAILED
        core.reason = item.error
        out.append(SetStatus("failed", item.error))
        out.append(Emit("failed", {"reason": item.error.message}))
    elif not isinstance(item, Returned):
        if fresh:
            begin_end(core, ErrorBody(code="backend_start_failed", message=item.error.message), out)
        else:
            begin_crash(core, item.error, out)
    elif fresh:
        pre_run = "pre_run" in core.config.hooks
        core.work = structs.replace(core.work, session=item.choice.session, phase="init" if pre_run else "ready")
        core.emits = (*core.emits, Emit("started", {}), Emit("state_changed", {"from": None, "to": "idle"}))
        commit(core, "init", out, then="activate")
    elif item.choice.session != core.ledger.session or item.state != NOTHING:
        # The backend repaired its session, or the class has migrated an older version's state.
        core.work = structs.replace(core.work, session=item.choice.session)
        if item.state != NOTHING:
            core.work = structs.replace(core.work, state=item.state, state_version=core.config.state_version)
        commit(core, "init", out, then="activate")
    else:
        activate(core, out)


def activate(core: Core, out: Out) -> None:
    """Run `activate_agent`, then `pre_run` if this life has not had it yet."""
    if "activate_agent" in core.config.hooks:
        core.phase = Phase.ACTIVATE
        out.append(RunCallback(hook="activate_agent", state=core.work.state))
    else:
        activated(core, out)


def on_activate(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    if isinstance(item, Returned):
        core.asks = (*core.asks, *item.asks)
        activated(core, out)
    else:
        begin_crash(core, item.error, out)


def activated(core: Core, out: Out) -> None:
    """The agent is up in this process."""
    out.append(SetStatus("running"))
    if core.ledger.phase == "init":
        core.phase = Phase.PRE_RUN
        out.append(RunCallback(hook="pre_run", state=core.work.state))
    elif core.asks or date(core):
        commit(core, "ready", out)
    else:
        go_on(core, out)


def on_pre_run(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    """`pre_run` ended. Its error ends the agent, and `terminate_agent` gets the reason."""
    if isinstance(item, Returned):
        core.work = structs.replace(core.work, state=item.state, phase="ready")
        core.asks = (*core.asks, *item.asks)
        commit(core, "ready", out)
        return
    code = "pre_run_crashed" if isinstance(item, Raised) else "pre_run_failed"
    begin_end(core, ErrorBody(code=code, message=item.error.message, details=item.error.details), out)


# --- crash --------------------------------------------------------------------------------------------------------
def after_crash(core: Core, out: Out) -> None:
    """The crash is recorded: restart, stay failed, or end, according to the restart policy."""
    core.active = None
    reason = core.reason
    if core.ledger.failed is not None:
        core.phase = Phase.FAILED
        core.reason = core.ledger.failed
        out.append(SetStatus("failed", core.ledger.failed))
        take_withdrawals(core, out)
    elif core.config.restart.policy == "temporary":
        assert reason is not None
        core.work = structs.replace(core.work, failed=reason)
        record_stop(core, reason, out)
    else:
        core.phase = Phase.RESTARTING
        crashes = max(1, len(core.ledger.restarts))
        out.append(Backoff(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (crashes - 1))))


def on_restarted(core: Core, item: BackoffOver, out: Out) -> None:
    core.reason = None
    boot(core, out)


def on_watchdog(core: Core, item: Watchdog, out: Out) -> None:
    if core.active is not None and core.active.number == item.turn:
        limit = core.config.watchdog_s
        kill(
            core,
            ErrorBody(code="timeout", message=f"the turn ran longer than {limit:g} s and was killed"),
            item.usage,
            out,
            tools=item.tools,
            inner=item.inner,
        )


# --- stop ---------------------------------------------------------------------------------------------------------
def on_stop(core: Core, item: Stop, out: Out) -> None:
    """The spec says `stopping`: kill the prompt task, call `terminate_agent`, then write the `stopped` record."""
    if core.ledger.phase in ("stopped", "over"):
        return  # the journal says so already: this owner only finishes the stop (docs/architecture.md#the-end-of-a-life)
    if core.phase is Phase.TURN and core.active is not None:
        drop_requests(core)
        out.append(KillTurn(core.active.number))
    begin_end(core, item.reason, out, asked=True)


def begin_end(core: Core, reason: ErrorBody, out: Out, *, asked: bool = False) -> None:
    """End this life: `terminate_agent`, the backend's session, the `stopped` record.

    `asked`: the spec asked for it. Otherwise `reason` goes into that record, and the registry gets it only after the commit: a
    former owner that was frozen must not mark a healthy agent (docs/architecture.md#the-fence).
    """
    ran = core.ledger.phase in ("init", "ready") and core.phase not in (Phase.FAILED, Phase.BOOT, Phase.RESTARTING)
    drop_draft(core)
    attempted(core, ErrorBody(code="stopped"))
    core.active = None
    core.reason = reason
    core.work = structs.replace(core.work, failed=None if asked else reason)
    core.phase = Phase.ENDING
    if ran and "terminate_agent" in core.config.hooks:
        out.append(RunCallback(hook="terminate_agent", args=(reason,), state=core.ledger.state))
    elif ran:
        _end_session(core, out)
    else:
        record_stop(core, reason, out)


def on_ending(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    """`terminate_agent` ended; a failure in it is ignored."""
    _end_session(core, out)


def _end_session(core: Core, out: Out) -> None:
    core.phase = Phase.CLOSING
    out.append(RunCallback(hook="terminate_session", args=(core.ledger.session,)))


def on_closing(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    """`terminate_session` ended; a failure in it is ignored."""
    assert core.reason is not None
    record_stop(core, core.reason, out)


def record_stop(core: Core, reason: ErrorBody, out: Out) -> None:
    """Answer `stopped` to every request in the ledger. The mail in the lanes is swept next."""
    error = ErrorBody(code="stopped", message=f"the agent was stopped: {reason.message}" if reason.message else "")
    items = ([core.work.next] if core.work.next else []) + list(core.work.queue)
    for queued in items:
        if queued.caller is not None:
            end_request(core, queued.caller, error)
    for entry in core.work.deferred.values():
        end_request(core, entry.caller, error)
    delegation.withdraw_all(core, error)
    core.effects = (*core.effects, *(CancelTimer(id=timer_id) for timer_id in core.work.timers))
    core.work = structs.replace(
        core.work,
        phase="stopped",
        next=None,
        queue=(),
        notices=(),
        deferred={},
        timers={},
        awaiting={},
        turning=None,
        steps={},
        waits={},
        kept={},
        halted=False,
    )
    core.swept = False
    commit(core, "stopped", out, then="sweep")


def after_stop(core: Core, out: Out) -> None:
    """The `stopped` record is committed: give the registry the reason, and sweep the mail that is still in the lanes."""
    core.phase = Phase.STOPPED
    if core.ledger.failed is not None:
        out.append(SetStatus("stopping", core.ledger.failed))
    out.append(Sweep())


def on_swept(core: Core, item: Swept, out: Out) -> None:
    """The lanes are known up to their last sequences: end the mail that they hold."""
    error = ErrorBody(code="stopped", message="the agent was stopped before it came to this")
    for _ in range(min(SWEEP_BATCH, len(core.prompts))):
        mail, core.prompts = core.prompts[0], core.prompts[1:]
        end_unanswered(core, mail, error)
    while core.events:
        mail, core.events = core.events[0], core.events[1:]
        consume(core, mail)
    while core.answered:
        mail, core.answered = core.answered[0], core.answered[1:]
        consume(core, mail)
    while core.withdrawals:
        mail, core.withdrawals = core.withdrawals[0], core.withdrawals[1:]
        consume(core, mail)
    core.swept = not core.prompts
    if core.work is core.ledger and not core.effects:
        finish(core, out)
    else:
        commit(core, "swept", out, then="swept")


def after_sweep(core: Core, out: Out) -> None:
    """A part of the lanes is done: go on with the next part, or finish."""
    core.phase = Phase.STOPPED
    if core.swept:
        finish(core, out)
    else:
        on_swept(core, Swept(), out)


def finish(core: Core, out: Out) -> None:
    """Once every effect is done, end the journal with a tombstone. It keeps what belongs to the name: positions and origins."""
    if not core.swept or any(origin not in core.done for origin in core.ledger.effects):
        return
    old = core.ledger
    bare = Ledger(incarnation=old.incarnation, epoch=old.epoch, phase="over")
    core.work = structs.replace(
        bare,
        generation=old.generation,
        node=old.node,
        boot=old.boot,
        failed=old.failed,
        history=shortened(old.history),
        sets=old.sets,
        positions=old.positions,
        taken=old.taken,
        origins=old.origins,
        seen=old.seen,
    )
    core.done = ()
    core.emits = (*core.emits, Emit("stopped", {"reason": _why(core.reason)}, turn=old.turn))
    commit(core, "tombstone", out, then="over", snapshot=core.work)


def _why(reason: ErrorBody | None) -> str:
    return (reason.message or reason.code) if reason is not None else "stopped"


def after_tombstone(core: Core, out: Out) -> None:
    core.phase = Phase.OVER
    out.append(SetStatus("stopped", core.reason))
