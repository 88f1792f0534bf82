"""A crash of the agent's own code: nothing of the turn is kept, and its input is charged (docs/architecture.md#poison)."""

from __future__ import annotations

from msgspec import structs

from agentmesh.records import TurnInfo
from agentmesh.turn.draft import Out, commit
from agentmesh.turn.poison import begin, end_without_answer
from agentmesh.turn.tracing import attempted
from agentmesh.turn.values import TO_IDLE, Active, Core, Emit, Misbehaved, Phase, Raised, Returned, RunCallback
from agentmesh.wire import ErrorBody


def drop_draft(core: Core) -> None:
    """Forget the draft: the mail that it had consumed waits again."""
    active = core.active
    if active is not None and active.mail is not None:
        core.prompts = (active.mail, *core.prompts)
    core.work, core.effects, core.asks, core.emits = core.ledger, (), (), ()
    core.handled, core.handling, core.context, core.attempted = (), None, None, None


def begin_crash(core: Core, error: ErrorBody, out: Out) -> None:
    """The agent's own code raised where that is a crash: nothing of the turn is kept."""
    drop_draft(core)
    core.reason = error
    if core.active is not None:
        out.append(TO_IDLE)
    if "terminate_agent" in core.config.hooks:
        core.phase = Phase.CRASHING
        out.append(RunCallback(hook="terminate_agent", args=(error,), state=core.ledger.state))
    else:
        record_crash(core, out)


def on_crashing(core: Core, item: Returned | Misbehaved | Raised, out: Out) -> None:
    record_crash(core, out)


def record_crash(core: Core, out: Out) -> None:
    """Charge the crash to the input that was handled and to the restart window."""
    reason = core.reason
    assert reason is not None
    active, restart, turn = core.active, core.config.restart, None
    begin(core)
    if active is not None:
        attempts = core.work.attempts.get(active.key, 0) + 1
        if attempts >= core.config.max_attempts:
            turn = _give_up_input(core, active, attempts, reason)
        else:
            core.work = structs.replace(core.work, attempts={**core.work.attempts, active.key: attempts})
            attempted(core, reason)
    recent = (*(t for t in core.work.restarts if t > core.now - restart.within_s), core.now)
    core.work = structs.replace(core.work, restarts=recent)
    if restart.policy != "temporary" and len(recent) > restart.max:
        failed = ErrorBody(
            code="failed",
            message=f"crashed {len(recent)} times in {restart.within_s:g} s, last with {reason.code}: {reason.message}",
            details=reason.details,
        )
        core.work = structs.replace(core.work, failed=failed)
        core.emits = (*core.emits, Emit("failed", {"reason": failed.message}))
    commit(core, "crashed", out, then="after_crash", turn=turn)


def _give_up_input(core: Core, active: Active, attempts: int, reason: ErrorBody) -> TurnInfo:
    """Give up the input, which has crashed the agent so often. Returns what the history shows of it."""
    error = ErrorBody(
        code="failed",
        message=f"this prompt crashed the agent {attempts} times, last with: {reason.message}",
        details=reason.details,
    )
    if active.mail is not None:
        core.prompts = tuple(m for m in core.prompts if m is not active.mail)
    return end_without_answer(core, active, error)
