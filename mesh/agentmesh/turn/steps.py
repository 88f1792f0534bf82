"""Steps and waits: the parts of a running turn that are durable before it is over (docs/architecture.md#steps).

A step record changes only the journal's ledger. The turn's draft starts without steps and waits, so the record that ends the turn
removes them, as does any other record that deals with the turn's input (`draft.forget_charges`). A turn that is tried again, by
another owner or after a crash of the agent's code, finds them in the ledger.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, structs

from agentmesh.carried import MAX_PATH
from agentmesh.identity import handed_on
from agentmesh.records import Delegated, Effect, Ledger, SendMail, Step, Turning, Wait
from agentmesh.steps import inner_s
from agentmesh.turn import tracing
from agentmesh.turn.delegation import came_back, root_of, withdrawals
from agentmesh.turn.draft import Out, append_side, commit, commit_change, consume
from agentmesh.turn.step_values import AskAgent, Circled, StepTaken, TakeStep, WaitLost, WaitOver
from agentmesh.turn.values import CUT_SHORT, Active, Core, HandOn, KillTurn, Phase, Wake
from agentmesh.wire import ErrorBody, Mail, Outcome

MAX_STEP_BYTES = 16 << 20
"""The largest step, as JSON."""
MAX_STEPS_BYTES = 64 << 20
"""The most that all steps of a turn may take: each owner that takes the turn over reads them."""
_TAKES_ANSWERS = (Phase.IDLE, Phase.SUSPECT, Phase.TURN, *CUT_SHORT, Phase.RESTARTING, Phase.FAILED)
"""Phases in which answers are consumed: all that may last."""


# --- a turn that begins, or begins again ------------------------------------------------------------------------------
def resumed(core: Core, active: Active) -> Active:
    """`active` as it was at its first step: a prompt that `pre_turn` rewrites anew may not fit the steps."""
    turning = core.ledger.turning
    if turning is None or turning.key != active.key:
        return active
    return structs.replace(active, text=turning.prompt, number=turning.number, started=turning.began or active.started)


def watchdog_left(core: Core, active: Active) -> float:
    """Seconds that the turn may still run: the watchdog counts from its first start, over all its owners."""
    turning = core.ledger.turning
    if turning is None or not turning.began or turning.key != active.key:
        return core.config.watchdog_s
    return max(0.0, core.config.watchdog_s - max(0.0, core.now - turning.began))


def taken_so_far(core: Core, active: Active) -> tuple[Raw, ...]:
    """The steps that earlier tries of this turn took, oldest first."""
    if not core.ledger.steps or not _is_own(core.ledger, active):
        return ()
    steps = core.ledger.steps
    return tuple(steps[index].value for index in sorted(steps, key=int))


def delegated_so_far(core: Core, active: Active) -> dict[str, Any]:
    """Usages of the agents that answered waits of earlier tries, by the names of the waits."""
    if not core.ledger.waits or not _is_own(core.ledger, active):
        return {}
    ended = ((name, wait.outcome) for name, wait in core.ledger.waits.items())
    return {name: outcome.usage for name, outcome in ended if outcome is not None and outcome.usage}


def drop_requests(core: Core) -> None:
    """The prompt task ends: drop its requests for steps and waits that are still in the stash."""
    if core.stash:
        core.stash = tuple(i for i in core.stash if not isinstance(i, TakeStep | AskAgent | Circled | WaitLost))


def _is_own(ledger: Ledger, active: Active | None) -> bool:
    return active is not None and ledger.turning is not None and ledger.turning.key == active.key


# --- steps ------------------------------------------------------------------------------------------------------------
def on_step(core: Core, item: TakeStep | AskAgent, out: Out) -> None:
    """Commit a step or a wait. Requests that came while a record was in flight go into one record."""
    active = core.active
    assert active is not None
    batch = [item, *(i for i in core.stash if isinstance(i, TakeStep | AskAgent))]
    withdrawn = {id(i) for i in batch}
    core.stash = tuple(i for i in core.stash if id(i) not in withdrawn)
    draft = _Draft(core, active)
    for wanted in batch:
        if wanted.turn != active.number:
            continue
        if isinstance(wanted, TakeStep):
            draft.step(wanted, out)
        else:
            draft.ask(wanted, out)
    if draft.changed:
        _commit(core, draft.ledger(), tuple(draft.effects), tuple(draft.answers), out)
    else:
        take_answers(core, out)


class _Draft:
    """The draft of one step record."""

    def __init__(self, core: Core, active: Active) -> None:
        own = _is_own(core.ledger, active)
        self._core = core
        self._active = active
        self._steps = dict(core.ledger.steps) if own else {}
        self._waits = dict(core.ledger.waits) if own else {}
        self._bytes = sum(step.size for step in self._steps.values())
        self.changed = False
        self.effects: list[Effect] = []
        self.answers: list[StepTaken | WaitOver] = []

    def step(self, item: TakeStep, out: Out) -> None:
        """Add a step; one that is too large is refused at once."""
        step = self._step(item)
        size = step.size
        if size > MAX_STEP_BYTES or self._bytes + size > MAX_STEPS_BYTES:
            whole = f"the turn's steps would take {self._bytes + size} bytes; the most is {MAX_STEPS_BYTES}"
            alone = f"the step takes {size} bytes; the most is {MAX_STEP_BYTES}"
            error = ErrorBody(code="too_large", message=alone if size > MAX_STEP_BYTES else whole)
            out.append(StepTaken(item.token, len(self._steps), error))
            return
        self._bytes += size
        self._steps[str(len(self._steps))] = step
        self.answers.append(StepTaken(item.token, len(self._steps)))
        self.changed = True

    def _step(self, item: TakeStep) -> Step:
        attempt = self._active.attempt
        if attempt is None:
            return Step(item.value)
        ledger, span, inner = self._core.ledger, attempt.context.span_id, item.inner
        if inner is not None:
            began, ended = inner.began, inner.ended
        else:
            last = next(reversed(self._steps.values()), None)
            began = last.ended if last is not None and last.attempt == span else attempt.began
            ended = max(self._core.now, began)
        return Step(item.value, began, ended, ledger.generation, ledger.boot, span, inner)

    def ask(self, item: AskAgent, out: Out) -> None:
        """Add a wait, or find the one of that name: its request is not sent twice."""
        core, wait = self._core, self._waits.get(item.wait)
        if wait is None:
            wait = self._waits[item.wait] = self._opened(item)
            self.changed = True
            if wait.outcome is not None:
                self.answers.append(WaitOver(item.wait, wait.outcome))
        elif wait.outcome is not None:
            # If it is part of this very record, not before that is committed.
            (self.answers if self.changed else out).append(WaitOver(item.wait, wait.outcome))
        if wait.outcome is None:
            out.append(Wake(max(wait.deadline, core.now)))

    def _opened(self, item: AskAgent) -> Wait:
        core, caller = self._core, self._active.caller
        name, above = core.config.name, caller.path if caller is not None else ()
        end_by = caller.end_by if caller is not None else None
        deadline = item.deadline
        if end_by is not None:
            deadline = core.now + inner_s(deadline - core.now, end_by - core.now)
        wait = Wait(agent=item.agent, since=core.now, deadline=deadline)
        if (attempt := self._active.attempt) is not None:
            ledger, span = core.ledger, attempt.context.span_id
            wait = structs.replace(wait, generation=ledger.generation, boot=ledger.boot, attempt=span)
        if item.agent == name or item.agent in above:
            chain = " waits for ".join((*above, name, item.agent))
            return structs.replace(wait, outcome=_circle(core, wait, f"that would never end: {chain}"))
        context = tracing.current(core)
        request = SendMail(
            to=item.agent,
            lane="peer-inbox",
            prompt=item.prompt,
            path=(*above, name)[-MAX_PATH:],
            wait=item.wait,
            deadline=deadline,
            end_by=deadline,
            budget=item.budget,
            trace=tracing.handed_on(core, context, item.trace) if context is not None else item.trace,
            root=root_of(core, self._active.ref, caller),
            chain=handed_on(caller.chain, name) if caller is not None and caller.chain else (),
        )
        self.effects.append(request)
        return wait

    def ledger(self) -> Ledger:
        """The journal's ledger with the draft's steps and waits."""
        turning = self._core.ledger.turning
        if turning is None or not _is_own(self._core.ledger, self._active):
            active = self._active
            told = tracing.of_first_step(self._core, active)
            turning = Turning(
                key=active.key,
                number=active.number,
                prompt=active.text,
                began=active.started,
                code=self._core.config.code,
                traced=told,
            )
        return structs.replace(self._core.ledger, turning=turning, steps=self._steps, waits=self._waits)


def _commit(core: Core, base: Ledger, effects: tuple[Effect, ...], answers: tuple[StepTaken | WaitOver, ...], out: Out) -> None:
    """Append a step record. The turn makes progress, so the death of this node will not be charged to its input."""
    if base.trying is not None:
        base = structs.replace(base, trying=None)
    core.answers = (*core.answers, *answers)
    append_side(core, "step", base, effects, out)


# --- a turn that moves ------------------------------------------------------------------------------------------------
def on_hand_on(core: Core, item: HandOn, out: Out) -> None:
    """Hand the running turn on: this owner's last record, behind which the next one goes on with the next call. It says that the
    turn has been begun, so the death of this node is charged to no input."""
    active = core.active
    if active is None or item.turn != active.number or not core.retiring:
        return
    drop_requests(core)
    base = _Draft(core, active).ledger()
    assert base.turning is not None
    turning = structs.replace(base.turning, moves=base.turning.moves + 1)
    core.work = structs.replace(base, turning=turning, trying=None)
    core.effects, core.asks, core.emits, core.handled, core.attempted = (), (), (), (), None
    out.append(KillTurn(active.number))
    commit(core, "step", out, then="handed_on")


# --- waits ------------------------------------------------------------------------------------------------------------
def claim(ledger: Ledger, mail: Mail) -> str | None:
    """The name of the open wait that `mail` answers: it must bear the request's origin and come from the agent that was asked."""
    if mail.tag is None or mail.for_life not in (None, ledger.incarnation):
        return None
    waits = ledger.waits.items()
    return next((n for n, w in waits if w.outcome is None and (w.origin, w.agent) == (mail.tag, mail.sender)), None)


def take_answers(core: Core, out: Out) -> bool:
    """Consume answers, in a record of their own: waiting events cannot hold them up. The running turn is given those that it
    waits for. Those that no wait is open for go too: a turn may last for hours, and their lane is bounded, so they must not keep
    out the answer that it waits for. Returns whether there were any that can be taken now."""
    if core.inflight is not None or core.phase not in _TAKES_ANSWERS:
        return False
    waits = core.phase is Phase.TURN and _is_own(core.ledger, core.active)
    mails = tuple(mail for mail in core.answered if waits or claim(core.ledger, mail) is None)
    if not mails:
        return False
    core.answered = tuple(mail for mail in core.answered if mail not in mails)
    ended: dict[str, Outcome] = {}
    late: list[Mail] = []
    for mail in mails:
        name = claim(core.ledger, mail)
        if name is None:
            late.append(mail)
        elif name not in ended:  # else it is a repetition
            ended[name] = _outcome_in(core, mail, core.ledger.waits[name])

    def change(draft: Core) -> None:
        for mail in mails:
            consume(draft, mail)
        for mail in late:
            came_back(draft, mail)
        _end(draft, ended)

    core.answers = (*core.answers, *(WaitOver(name, outcome) for name, outcome in ended.items()))
    commit_change(core, "step" if ended else "control", change, out)
    return True


def _outcome_in(core: Core, mail: Mail, wait: Wait) -> Outcome:
    try:
        outcome = msgspec.convert(mail.event, Outcome)
    except msgspec.ValidationError as error:
        return _failed(core, wait, ErrorBody(code="bad_request", message=f"what came back is no outcome: {error}"))
    if outcome.error is not None and outcome.error.code == "expired":
        return _failed(core, wait, _timeout(wait))  # the request's deadline is the wait's, by another clock
    return outcome


def _end(core: Core, outcomes: dict[str, Outcome]) -> None:
    """Add outcomes to the waits of the draft, if it has waits (a turn's draft has none)."""
    waits = core.work.waits
    ended = {name: structs.replace(waits[name], outcome=outcome) for name, outcome in outcomes.items() if name in waits}
    if ended:
        core.work = structs.replace(core.work, waits={**waits, **ended}, trying=None)


def _failed(core: Core, wait: Wait, error: ErrorBody) -> Outcome:
    return Outcome(agent=wait.agent, ref="", ok=False, error=error, node=core.ledger.node)


def _circle(core: Core, wait: Wait, why: str) -> Outcome:
    return _failed(core, wait, ErrorBody(code="cycle", message=why))


def on_circled(core: Core, item: Circled, out: Out) -> None:
    """End a wait that is part of a circle: it is the one of the circle that must end."""
    wait = core.ledger.waits.get(item.wait)
    if wait is None or wait.outcome is not None or wait.origin != item.origin or not _is_own(core.ledger, core.active):
        return
    outcome = _circle(core, wait, f"{wait.agent} waits, directly or by way of others, for {core.config.name}")
    _end_waits(core, {item.wait: outcome}, out)


def on_wait_lost(core: Core, item: WaitLost, out: Out) -> None:
    """End a wait whose agent does not get to it, and withdraw its question: that must not run a turn later."""
    wait, active = core.ledger.waits.get(item.wait), core.active
    if (
        wait is None
        or wait.outcome is not None
        or wait.origin != item.origin
        or active is None
        or not _is_own(core.ledger, active)
    ):
        return
    outcome = _failed(core, wait, item.error)
    withdrawn = {wait.origin: Delegated(wait.agent, active.ref, True)}
    core.work = structs.replace(core.work, delegated={**core.work.delegated, **withdrawn})
    base = structs.replace(
        core.ledger,
        waits={**core.ledger.waits, item.wait: structs.replace(wait, outcome=outcome)},
        delegated={**core.ledger.delegated, **withdrawn},
    )
    _commit(core, base, withdrawals({wait.origin: wait.agent}, item.error), (WaitOver(item.wait, outcome),), out)


def expire_waits(core: Core, out: Out) -> bool:
    """End the waits of the running turn whose time is over. Returns whether there were any."""
    if not _is_own(core.ledger, core.active):
        return False
    late = {n: w for n, w in core.ledger.waits.items() if w.outcome is None and w.deadline <= core.now}
    if late:
        _end_waits(core, {name: _failed(core, wait, _timeout(wait)) for name, wait in late.items()}, out)
    return bool(late)


def _timeout(wait: Wait) -> ErrorBody:
    return ErrorBody(code="timeout", message=f"{wait.agent} gave no answer within {wait.deadline - wait.since:g} s")


def _end_waits(core: Core, outcomes: dict[str, Outcome], out: Out) -> None:
    waits = core.ledger.waits
    ended = {name: structs.replace(waits[name], outcome=outcome) for name, outcome in outcomes.items()}
    base = structs.replace(core.ledger, waits={**waits, **ended})
    _commit(core, base, (), tuple(WaitOver(name, outcome) for name, outcome in outcomes.items()), out)


def end_undelivered(core: Core, origin: str, name: str, error: ErrorBody, out: Out) -> None:
    """A request could not be delivered: `error` is the outcome of its wait, if that is still open."""
    wait = core.ledger.waits.get(name)
    if wait is None or wait.origin != origin or wait.outcome is not None:
        return  # its turn is over, or has given the wait up
    outcomes = {name: _failed(core, wait, error)}
    if core.phase is Phase.TURN:
        core.answers = (*core.answers, WaitOver(name, outcomes[name]))
    commit_change(core, "gave_up", lambda draft: _end(draft, outcomes), out)
