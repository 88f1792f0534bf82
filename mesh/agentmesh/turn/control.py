"""Inputs from outside the turn: control requests (interrupt, resume, cancel, timers), new mail, ends of effects, deadlines."""

from __future__ import annotations

from itertools import pairwise, takewhile

from msgspec import structs

from agentmesh.keys import opens, refusal
from agentmesh.ledger import is_taken
from agentmesh.records import CancelTimer, Effect, Notice, Queued, SendMail, StartAgent, StopAgent, target_of
from agentmesh.subjects import LANES
from agentmesh.turn.deferral import cancel_deferred, is_open
from agentmesh.turn.delegation import ended, to_withdraw
from agentmesh.turn.dispatch import end_active, go_on, kill, take_withdrawals
from agentmesh.turn.draft import (
    Out,
    answer_later,
    caller_of,
    commit,
    commit_change,
    commit_side,
    consume,
    depth,
    end_prompts,
    end_request,
    expired,
    is_repetition,
    remember,
    repeats,
)
from agentmesh.turn.lifecycle import boot, finish
from agentmesh.turn.next_input import out_of_time
from agentmesh.turn.poison import begin
from agentmesh.turn.request_keys import digest_for
from agentmesh.turn.steps import end_undelivered, expire_waits, take_answers
from agentmesh.turn.tracing import asked_by_client, ended_unrun
from agentmesh.turn.values import (
    CUT_SHORT,
    AnswerControl,
    Arrived,
    AskTimer,
    Cancel,
    Core,
    DropTimer,
    EffectsDone,
    Emit,
    GaveUp,
    Input,
    Interrupt,
    Phase,
    Reply,
    Rest,
    Resume,
    Retire,
    Tick,
    Trim,
    Wake,
)
from agentmesh.turn.withdrawal import end_queued
from agentmesh.wire import ErrorBody, Mail, failure, format_time, withdrawal_in


# --- mail ---------------------------------------------------------------------------------------------------------
def on_arrived(core: Core, item: Arrived, out: Out) -> None:
    """File new mail; an idle agent takes it up at once."""
    idle = core.phase is Phase.IDLE and core.inflight is None
    prompts = _file(core, item.mail, out)
    if prompts:
        _queue(core, prompts)
    if item.usage is not None and _is_of_running(core, item):
        core.spent = item.usage
    if idle:
        go_on(core, out)
    else:
        _take_at_once(core, out)
    if prompts and core.prompts:
        waiting = _still_waiting(core, prompts)
        for number in range(depth(core) - waiting + 1, depth(core) + 1):
            out.append(Emit("mailbox_queued", {"depth": number}))


def _take_at_once(core: Core, out: Out) -> None:
    """Do what cannot wait for the end of a turn: end what was withdrawn, and take answers."""
    if core.withdrawals and core.phase in (Phase.TURN, Phase.FAILED, *CUT_SHORT):
        if core.inflight is None:
            take_withdrawals(core, out)
        elif not any(isinstance(i, Arrived) for i in core.stash):
            core.stash = (*core.stash, Arrived(()))  # look again once the record stands
    elif core.answered:
        take_answers(core, out)


def _file(core: Core, arrived: tuple[Mail, ...], out: Out) -> list[Mail]:
    """Put events and answers where they wait, and return the prompts. Mail that is known already is skipped.

    Mail above all that was seen of its stream cannot be known: however much waits, one more costs no look at it.
    """
    known: set[tuple[str, int]] | None = None
    prompts: list[Mail] = []
    for mail in arrived:
        place = mail.lane, mail.seq
        lane = LANES[mail.lane]
        newest = mail.seq > core.high and lane.stream == "mail"
        if not newest:
            known = known or _known(core) | {(m.lane, m.seq) for m in prompts}
            if place in known:
                continue
        if is_taken(core.work, *place):
            continue
        if known is not None:
            known.add(place)
        if newest:
            core.high = mail.seq
        if lane.kind == "prompt":
            prompts.append(mail)
            if mail.deadline is not None:
                out.append(Wake(mail.deadline))
        elif withdrawal_in(mail) is not None:
            core.withdrawals = (*core.withdrawals, mail)
        elif lane.kind == "answer":
            core.answered = (*core.answered, mail)
        else:
            core.events = (*core.events, mail)
            fields = {"lane": mail.lane, "seq": mail.seq, "sender": mail.sender, "chain": mail.chain, "event": mail.event}
            out.append(Emit("event_received", fields))
    return prompts


def _known(core: Core) -> set[tuple[str, int]]:
    """Lane and sequence of the mail that waits or is being handled."""
    known = {(m.lane, m.seq) for m in (*core.prompts, *core.events, *core.answered, *core.withdrawals)}
    if core.active is not None and core.active.mail is not None:
        known.add((core.active.mail.lane, core.active.mail.seq))
    return known


def _queue(core: Core, prompts: list[Mail]) -> None:
    """Insert new prompts in stream order, which is mostly the order in which they came."""
    merged = core.prompts + tuple(prompts)
    if len(merged) > 1 and not all(a.seq < b.seq for a, b in pairwise(merged[max(0, len(core.prompts) - 1) :])):
        merged = tuple(sorted(merged, key=lambda m: m.seq))
    core.prompts = merged


def _still_waiting(core: Core, prompts: list[Mail]) -> int:
    """How many of these prompts, which have just been filed, still wait. They are at the end, or near it."""
    seqs = {mail.seq for mail in prompts}
    least = min(seqs)
    return sum(mail.seq in seqs for mail in takewhile(lambda mail: mail.seq >= least, reversed(core.prompts)))


def _is_of_running(core: Core, item: Arrived | Interrupt | Cancel | Tick) -> bool:
    """Whether what `item` says of spending and tools is of the turn that runs now, and not of one before it."""
    return core.active is not None and item.turn in (None, core.active.number)


# --- interrupt, resume, cancel --------------------------------------------------------------------------------------
def on_interrupt(core: Core, item: Interrupt, out: Out) -> None:
    active = core.active
    hit = active is not None and item.ref in (None, active.ref)
    if item.token:
        # Interrupting an idle agent does nothing, and is fine.
        told = to_withdraw(core, active.ref) if hit and active is not None else {}
        out.append(AnswerControl(item.token, {"interrupted": hit, **told}))
    if hit:
        error = ErrorBody(code="interrupted", message="the turn was interrupted")
        if _is_of_running(core, item):
            kill(core, error, item.usage, out, tools=item.tools, inner=item.inner)
        else:
            kill(core, error, None, out)


def bound(core: Core, item: Input) -> Input:
    """`item` as it goes into the stash: an interrupt is bound to the turn that runs now, so that it cannot hit a later one."""
    if isinstance(item, Interrupt) and item.ref is None and core.active is not None:
        return structs.replace(item, ref=core.active.ref)
    return item


def on_resume(core: Core, item: Resume, out: Out) -> None:
    """Clear `halted` and run what waits. Answered after its record; without a halt nothing changes."""
    if not core.work.halted:
        if item.token:
            out.append(AnswerControl(item.token, {"resumed": False}))
        return
    core.work = structs.replace(core.work, halted=False)
    answer_later(core, item.token, {"resumed": True})
    commit(core, "control", out)


def on_resume_failed(core: Core, item: Resume, out: Out) -> None:
    """Revive a failed agent."""
    answer_later(core, item.token, {"resumed": True})
    if core.ledger.failed is None:
        # It failed without a record, because its state could not be read: try again.
        out.extend(core.answers)
        core.answers = ()
        boot(core, out)
        return
    core.work = structs.replace(core.work, failed=None, restarts=())
    commit(core, "control", out, then="boot")


def on_resume_elsewhere(core: Core, item: Resume, out: Out) -> None:
    if item.token:
        out.append(AnswerControl(item.token, {"resumed": False}))


def on_cancel(core: Core, item: Cancel, out: Out) -> None:
    """Remove a prompt that waits, or close one that is deferred; one that runs ends only if the request says so. Who names a
    repetition means what it repeats.

    While a callback runs, what waits is what the journal says: the draft may have another idea of it, and may be thrown away.
    """
    named = next((m for m in core.prompts if m.ref == item.ref), None)
    ref = (repeats(core, named) if named is not None else None) or item.ref
    mail = next((m for m in core.prompts if m.ref == ref and not _is_copy(core, m)), None)
    if not all(opens(digest_for(core, one), item.key) for one in {ref, item.ref}):
        if item.token:
            out.append(AnswerControl(item.token, failure(refusal(item.ref, item.key))))
        if core.phase is Phase.IDLE:
            go_on(core, out)
        return
    if is_open(core, ref):
        cancel_deferred(core, ref, item.token, out, told=to_withdraw(core, ref))
        return
    queued = next((q for q in (core.work.next, *core.work.queue) if q is not None and q.ref == ref), None)
    if queued is not None and queued not in (core.ledger.next, *core.ledger.queue):
        queued = None
    runs = core.active is not None and core.active.ref == ref
    if runs or (mail is None and queued is None):
        if item.tree and _cancel_tree(core, ref, item, out):
            return
        if item.token:
            out.append(AnswerControl(item.token, {"cancelled": False}))
        if core.phase is Phase.IDLE:
            go_on(core, out)  # it may have come before the next prompt
        return
    if mail is not None:
        core.prompts = tuple(m for m in core.prompts if m is not mail)
    answer_later(core, item.token, {"cancelled": True, **to_withdraw(core, ref)})
    commit_change(core, "control", lambda draft: _cancel(draft, mail, queued), out)


def _cancel_tree(core: Core, ref: str, item: Cancel, out: Out) -> bool:
    """End the request `ref` if it runs. Returns whether it does."""
    active, error = core.active, ErrorBody(code="cancelled", message="the request was cancelled")
    answer = {"cancelled": True, **to_withdraw(core, ref)}
    if active is None or active.ref != ref:
        return False
    begun = end_active(core, error, item.usage if _is_of_running(core, item) else None, out)
    if item.token:
        out.append(AnswerControl(item.token, answer if begun else {"cancelled": False}))
    return True


def _is_copy(core: Core, mail: Mail) -> bool:
    """Whether `mail` repeats mail that was consumed, runs now, or waits ahead of it: only the first copy has an outcome."""
    if mail.sender is None or mail.origin is None:
        return False
    if is_repetition(core.work, mail):
        return True
    ahead = (m for m in core.prompts if (m.lane, m.sender) == (mail.lane, mail.sender) and m.seq < mail.seq)
    return any(m.origin == mail.origin for m in ahead)


def _cancel(core: Core, mail: Mail | None, queued: Queued | None) -> None:
    error = ErrorBody(code="cancelled", message="the prompt was cancelled before its turn")
    if mail is not None:
        consume(core, mail)
        end_request(core, caller_of(mail), error)
        ended_unrun(core, mail, error.code)
    elif queued is not None:
        end_queued(core, queued, error)


def on_too_late(core: Core, item: Input, out: Out) -> None:
    """The agent ends: all that it had open gets `stopped`, and its timers go with it."""
    body: dict[str, object] = {"replied": False} if isinstance(item, Reply) else {"cancelled": False}
    if isinstance(item, AskTimer):
        body = {"error": {"code": "stopped", "message": "the agent is being stopped", "details": {}}}
    if isinstance(item, AskTimer | Cancel | DropTimer | Reply) and item.token:
        out.append(AnswerControl(item.token, body))


# --- timers -------------------------------------------------------------------------------------------------------
def on_ask_timer(core: Core, item: AskTimer, out: Out) -> None:
    answer_later(core, item.token, {"set": True, "due": format_time(item.timer.due)})
    _add_effect(core, asked_by_client(core, item.timer), out)


def on_drop_timer(core: Core, item: DropTimer, out: Out) -> None:
    known = item.id in core.work.timers
    if not known:
        if item.token:
            out.append(AnswerControl(item.token, {"cancelled": False}))
        return
    answer_later(core, item.token, {"cancelled": True})
    _add_effect(core, CancelTimer(id=item.id), out)


def _add_effect(core: Core, effect: Effect, out: Out) -> None:
    def change(draft: Core) -> None:
        draft.effects = (*draft.effects, effect)

    commit_change(core, "control", change, out)


# --- purged mail --------------------------------------------------------------------------------------------------
def on_trim(core: Core, item: Trim, out: Out) -> None:
    """Remember the ids of mail that is about to be purged, for as long as the server would have known them."""

    def change(draft: Core) -> None:
        remember(draft, item.seen, since=draft.now - core.config.remember_s)

    answer_later(core, item.token, {})
    commit_change(core, "control", change, out)


# --- effects ------------------------------------------------------------------------------------------------------
def on_done(core: Core, item: EffectsDone, out: Out) -> None:
    """The server has acknowledged these effects; the next record says so."""
    core.done = (*core.done, *[o for o in item.origins if o in core.ledger.effects and o not in core.done])
    if core.inflight is not None:
        return
    if core.phase is Phase.STOPPED:
        finish(core, out)
    elif core.phase is Phase.IDLE and depth(core):
        go_on(core, out)  # too many open effects may have held the next prompt back


def on_gave_up(core: Core, item: GaveUp, out: Out) -> None:
    """An effect cannot be done: close it, and tell the agent."""
    entry = core.ledger.effects.get(item.origin)
    if entry is None or item.origin in core.done:
        return
    core.done = (*core.done, item.origin)
    if core.phase is Phase.STOPPED:
        finish(core, out)
        return
    if isinstance(entry.effect, SendMail) and entry.effect.wait is not None:
        if item.origin in core.work.delegated:  # withdrawn meanwhile: its turn is over
            commit_change(core, "gave_up", lambda draft: ended(draft, item.origin), out)
        else:
            end_undelivered(core, item.origin, entry.effect.wait, item.error, out)
        return
    trace = entry.effect.trace if core.config.traced and isinstance(entry.effect, SendMail) else {}
    notice = Notice(effect=describe(entry.effect), error=item.error, trace=trace)

    def change(draft: Core) -> None:
        ended(draft, item.origin)
        awaiting = {k: v for k, v in draft.work.awaiting.items() if k != item.origin}
        draft.work = structs.replace(draft.work, notices=(*draft.work.notices, notice), awaiting=awaiting)

    commit_change(core, "gave_up", change, out)


def describe(effect: Effect) -> dict[str, object]:
    """An effect as `Undelivered.effect` shows it."""
    match effect:
        case SendMail():
            body: dict[str, object] = {"kind": "tell" if effect.prompt is not None else "notify", "target": effect.to}
            if effect.tag is not None:
                body["tag"] = effect.tag
            return body
        case StartAgent():
            return {"kind": "start_agent", "target": effect.name}
        case StopAgent():
            return {"kind": "stop_agent", "target": effect.name}
        case _:
            return {"kind": type(effect).__name__, "target": target_of(effect)}


# --- time ---------------------------------------------------------------------------------------------------------
def on_tick(core: Core, item: Tick, out: Out) -> None:
    """End what has lasted too long: the running turn by the end of its request, waits in it, and prompts that wait, with
    `expired`, by their deadline."""
    if _end_running(core, item, out):
        core.stash = (*core.stash, item)  # the rest once a record stands, or the turn is over
        return
    running = core.active.mail if core.active is not None else None  # behind a crash it is among those that wait
    late = [
        (m, expired(core, m.deadline, "the turn could begin"))
        for m in core.prompts
        if m.deadline is not None and m.deadline <= core.now and m is not running and not _is_copy(core, m)
    ]
    waiting = core.prompts
    if late:
        commit_change(core, "control", lambda draft: end_prompts(draft, waiting, late), out)


def _end_running(core: Core, item: Tick, out: Out) -> bool:
    """End the turn, or waits of it, if their time is over. Returns whether it was."""
    caller = core.active.caller if core.active is not None else None
    end_by = caller.end_by if caller is not None and core.cut is None else None
    usage = item.usage if _is_of_running(core, item) else None
    if end_by is not None and end_by <= core.now and end_active(core, out_of_time(core, end_by), usage, out):
        return True
    return core.phase is Phase.TURN and bool(core.ledger.waits) and expire_waits(core, out)


def on_retire(core: Core, item: Retire, out: Out) -> None:
    """Begin nothing more: mail that waits is left to the next owner. An input that the hand-over interrupts is not charged."""
    core.retiring = True
    if core.phase is Phase.TURN and core.inflight is None and core.ledger.trying is not None:
        commit_side(core, "control", begin, out)


def on_rest(core: Core, item: Rest, out: Out) -> None:
    """Let an idle agent with no open effect and nothing queued record that before it sleeps: a new owner can leave it asleep."""
    work = core.work
    waiting = work.next or work.queue or work.notices or core.events or core.answered or core.withdrawals
    busy = waiting or (core.prompts and not work.halted)
    if busy or core.record == "rest" or len(core.done) < len(core.ledger.effects):
        return
    commit(core, "rest", out)
