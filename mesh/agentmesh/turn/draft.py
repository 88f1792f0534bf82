"""The draft of the next record, and the changes to it that all parts of the machine share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any

from msgspec import structs

from agentmesh import ledger as book
from agentmesh.callback_context import DeferredReply
from agentmesh.formats import SECOND
from agentmesh.identity import Chain
from agentmesh.outcomes import capped, id_in_outcome, outcome_limit
from agentmesh.records import (
    Bury,
    Caller,
    CancelTimer,
    Deferred,
    Echo,
    Effect,
    Handled,
    Ledger,
    Open,
    Queued,
    RecordKind,
    Resolve,
    Seen,
    SendMail,
    TurnInfo,
    Turning,
)
from agentmesh.subjects import LANES
from agentmesh.tool_runs import Counts, counted, note_of
from agentmesh.turn import delegation, tracing
from agentmesh.turn.kept import keep_unfinished, reason_of, runs_of
from agentmesh.turn.values import Active, AnswerControl, Append, Command, Core, Emit, Inflight, Phase, Stop, Then
from agentmesh.wire import ErrorBody, Mail, Outcome, format_time, parse_time

type Out = list[Command]

MAX_SEEN = 4096
"""Ids of purged mail that an agent remembers; the oldest go first."""


def expired(core: Core, deadline: float, before: str) -> ErrorBody:
    """The error of a request whose deadline passed before what should have come. It shows both times: a caller whose clock is
    wrong sees it here."""
    due, now = format_time(deadline), format_time(core.now)
    return ErrorBody(
        code="expired",
        message=f"the deadline passed before {before}: it was {due}, and it is {now} by the server's clock",
        details={"deadline": due, "server_time": now},
    )


def deadline_timer(ref: str) -> str:
    """Id of the timer that ends a deferred request at its deadline."""
    return f"_deadline-{ref}"


def key_of(mail: Mail) -> str:
    """The key of an input that is mail in the ledger's counters of crashes and takeovers."""
    return f"{mail.lane}:{mail.seq}"


_OF_FEW = attrgetter(
    "sender", "sender_life", "tag", "path", "deadline", "budget", "origin", "end_by", "root", "key", "chain"
)  # fmt: skip
_NONE_OF_THEM = (None, None, None, (), None, None, None, None, None, None, ())


def caller_of(mail: Mail) -> Caller:
    """Where the outcome of a prompt that is mail goes."""
    caller = Caller(
        ref=mail.ref,
        reply_to=mail.reply_to,
        stream_to=mail.stream_to,
        trace=mail.trace,
        msg_id=id_in_outcome(mail.msg_id),
        stored=mail.stored,
    )
    if _OF_FEW(mail) == _NONE_OF_THEM:  # as nearly all from outside: so many arguments would cost every turn
        return caller
    return structs.replace(
        caller,
        sender=mail.sender,
        life=mail.sender_life,
        tag=mail.tag,
        path=mail.path,
        deadline=mail.deadline,
        budget=mail.budget,
        origin=mail.origin,
        end_by=mail.end_by,
        root=mail.root,
        key=mail.key,
        chain=mail.chain,
    )


def recordable[T: Caller | Echo | Resolve](core: Core, value: T) -> T:
    """`value` as a record may have it: without key and chain while a process is up that would lose them (agentmesh.formats)."""
    if core.writes >= SECOND:
        return value
    if isinstance(value, Caller) and value.chain:
        value = structs.replace(value, chain=())
    return structs.replace(value, key=None) if value.key is not None else value


def failed_outcome(core: Core, ref: str, error: ErrorBody, tools: Counts | None = None) -> Outcome:
    """The outcome of a request that ended without a turn, or whose turn was given up: `tools` ran in that one."""
    return Outcome(agent=core.config.name, ref=ref, ok=False, error=error, node=core.ledger.node, tools=tools or {})


def resolve(core: Core, caller: Caller, outcome: Outcome) -> tuple[Effect, ...]:
    """The effects that give a request its one outcome: stored, published to a caller that waits, mailed to an agent that
    tagged it. The outcome names the message that it answers."""
    outcome = structs.replace(outcome, msg_id=caller.msg_id, stored=caller.stored)
    mailed = caller.sender is not None and caller.tag is not None
    outcome = capped(outcome, outcome_limit(core.config.max_payload, mailed=mailed))
    told = Resolve(outcome=outcome, reply_to=caller.reply_to, stream_to=caller.stream_to, key=caller.key)
    if told.key is not None:
        told = recordable(core, told)
    if caller.sender is None or caller.tag is None:
        return (told,)
    answer = SendMail(
        to=caller.sender,
        lane="peer-answer" if caller.path else "peer-notify",
        outcome=outcome,
        tag=caller.tag,
        life=caller.life,
        trace=caller.trace,
    )
    return told, answer


def end(core: Core, caller: Caller, outcome: Outcome) -> None:
    """Add to the draft that the caller's request ends with `outcome`. All requests end here: in any way but an answer, all is
    withdrawn that is open on their behalf."""
    core.effects = (*core.effects, *resolve(core, caller, outcome))
    if not outcome.ok:
        core.ended |= {caller.ref}
    if core.work.delegated or core.ledger.waits:
        if outcome.ok:
            delegation.let_go(core, caller.ref)
        else:
            delegation.withdraw(core, caller.ref, outcome.error or ErrorBody(code="error"))


def end_request(core: Core, caller: Caller, error: ErrorBody, tools: Counts | None = None) -> None:
    """Add to the draft that the caller's request ended with `error`; `tools` ran for it."""
    end(core, caller, failed_outcome(core, caller.ref, error, tools))


def turn_info(core: Core, active: Active, error: ErrorBody | None) -> TurnInfo:
    """What the history shows of a turn that ended now, with `error` or with an answer."""
    trace, derived = tracing.traced(core, active) if core.config.traced else (None, None)
    ledger, outcome, now, started = core.ledger, active.outcome, core.now, active.started
    answer = active.unsaid if error is not None else outcome.text if outcome else None
    plain = TurnInfo(
        number=active.number,
        ref=active.ref,
        started=started,
        ended=now if now > started else started,
        node=ledger.node,
        generation=ledger.generation,
        sender=active.sender,
        label=active.label,
        prompt=active.text[: book.HISTORY_TEXT],
        answer=None if answer is None else answer[: book.HISTORY_TEXT],
        error=error,
        usage=outcome.usage if outcome else None,
        trace=trace,
        derived=derived,
    )
    more = _rarely_told(core, active, error)
    return structs.replace(plain, **more) if more else plain


def _rarely_told(core: Core, active: Active, error: ErrorBody | None) -> dict[str, Any]:
    """What of a turn's entry in the history is empty in most of them: so many arguments would cost every turn."""
    ledger, caller = core.ledger, active.caller
    more: dict[str, Any] = {}
    if caller is not None and caller.chain:
        more["chain"] = caller.chain
    if ledger.takeovers:
        more["takeovers"] = ledger.takeovers.get(active.key, 0)
    if runs := active.tools if error is None else runs_of(core, active):
        more["tools"] = counted(runs)
        if error is not None:
            more["note"] = note_of(active.number, active.text, reason_of(error), runs)
    if ledger.turning is not None:
        more["code"] = _versions(core, active, ledger.turning)
    return more


def _versions(core: Core, active: Active, turning: Turning) -> tuple[str, ...]:
    """The versions of the code with which the turn began and ended; none if they are one, or not known."""
    now = core.config.code
    return (turning.code, now) if turning.key == active.key and turning.code and now not in ("", turning.code) else ()


def bury(core: Core, mail: Mail, reason: ErrorBody) -> None:
    """Add to the draft that `mail` becomes a dead letter."""
    _bury(core, Bury(lane=mail.lane, seq=mail.seq, reason=reason, trace=tracing.of_message(core, mail)), mail.chain)


def bury_own(core: Core, reason: ErrorBody, text: str, trace: dict[str, str], chain: Chain = ()) -> None:
    """Add to the draft that an input which is not mail becomes a dead letter with this text; `trace`: its context, `chain`: on
    whose behalf it was."""
    _bury(core, Bury(lane="self", seq=0, reason=reason, text=text, trace=trace if core.config.traced else {}), chain)


def _bury(core: Core, effect: Bury, chain: Chain) -> None:
    core.effects = (*core.effects, effect)
    lane, seq, reason = effect.lane, effect.seq, effect.reason
    core.emits = (*core.emits, Emit("dead_lettered", {"lane": lane, "seq": seq, "reason": reason.code, "chain": chain}))


def consume(core: Core, mail: Mail, *, turn: int | None = None) -> None:
    """Add to the draft that `mail` is consumed (by turn number `turn`, if given), and that its sender's origin is seen."""
    # The mail of a lane waits in order, so the first match is the oldest.
    lane = mail.lane
    kind = LANES[lane].kind
    waiting = core.prompts if kind == "prompt" else core.events
    if kind == "answer":
        waiting = tuple(sorted((*core.answered, *core.events, *core.withdrawals), key=lambda m: m.seq))
    first = next((m.seq for m in waiting if m.lane == lane), None) if waiting else None
    running = core.active.mail if core.active is not None else None
    if running is not None and running is not mail and _still_waits(core.work, running, lane):
        # A record in mid-turn: as far as the journal knows, the prompt of the turn still waits.
        first = running.seq
    work = book.consume(core.work, lane, mail.seq, first, turn)
    if mail.sender is not None and mail.origin is not None and kind != "answer":
        work = book.witness(work, mail.sender, lane, mail.seq, mail.origin)
    core.work = work
    forget_charges(core, key_of(mail))


def _still_waits(ledger: Ledger, mail: Mail, lane: str) -> bool:
    return mail.lane == lane and not book.is_taken(ledger, lane, mail.seq)


def forget_charges(core: Core, key: str) -> None:
    """Add to the draft that an input is dealt with: its charges no longer count, and the steps of its turn are what it leaves."""
    work = core.work
    if work.turning is not None and work.turning.key == key:
        keep_unfinished(core)
        work = core.work
        core.work = work = structs.replace(work, turning=None, steps={}, waits={})
    if key in work.attempts or key in work.takeovers:
        core.work = structs.replace(
            work,
            attempts={k: v for k, v in work.attempts.items() if k != key},
            takeovers={k: v for k, v in work.takeovers.items() if k != key},
        )


def is_repetition(ledger: Ledger, mail: Mail) -> bool:
    """Whether this mail from an agent was consumed before: its origin is not newer than the newest of that sender and lane."""
    if mail.sender is None or mail.origin is None:
        return False
    return book.is_witnessed(ledger, mail.sender, mail.lane, mail.origin)


def digest(msg_id: str) -> str:
    """The form of a `Nats-Msg-Id` that the ledger keeps."""
    return hashlib.blake2b(msg_id.encode(), digest_size=12).hexdigest()


def remember(core: Core, seen: Mapping[str, Seen], *, since: float) -> None:
    """Add to the draft the ids of mail that is about to be purged, by digest; those from before `since` (seconds since the epoch)
    are forgotten."""
    kept = {key: one for key, one in core.work.seen.items() if one.at > since}
    newest = sorted({**kept, **seen}.items(), key=lambda pair: pair[1].at)[-MAX_SEEN:]
    core.work = structs.replace(core.work, seen=dict(newest))


def repeats(core: Core, mail: Mail) -> str | None:
    """The ref of the message that `mail` repeats, or None.

    It repeats one that waits, runs or was consumed, as its owner found by the id; or a purged one, if the ledger remembers its
    id, and the id was still in use when `mail` was stored.
    """
    if mail.repeats is not None:
        return mail.repeats
    ledger = core.work
    if mail.msg_id is None or not ledger.seen:
        return None
    seen = ledger.seen.get(digest(mail.msg_id))
    if seen is None or seen.ref == mail.ref:
        return None
    late = mail.stored is not None and parse_time(mail.stored) > seen.at + core.config.remember_s
    return None if late else seen.ref


def echo(core: Core, mail: Mail, first: str) -> None:
    """Add to the draft that the prompt `mail` is consumed, and gets the outcome of the one that it repeats."""
    consume(core, mail)
    msg_id, stored = id_in_outcome(mail.msg_id), mail.stored
    addresses = {"reply_to": mail.reply_to, "stream_to": mail.stream_to}
    effect = Echo(ref=mail.ref, of=first, msg_id=msg_id, stored=stored, key=mail.key, **addresses)
    core.effects = (*core.effects, recordable(core, effect))


def end_unanswered(core: Core, mail: Mail, error: ErrorBody) -> None:
    """Add to the draft that the prompt `mail` is consumed without a turn, and ends with `error`; if it repeats another one, as
    that one did."""
    repeated = is_repetition(core.work, mail)
    first = None if repeated else repeats(core, mail)
    if first is not None:
        echo(core, mail, first)
        return
    consume(core, mail)
    if not repeated:
        end_request(core, caller_of(mail), error)
        tracing.ended_unrun(core, mail, error.code)


def end_prompts(core: Core, waiting: tuple[Mail, ...], ended: Iterable[tuple[Mail, ErrorBody]]) -> None:
    """Add to the draft that some of the prompts `waiting` end without a turn, each with its error.

    One leaves after the other: while one is consumed those behind it still wait, or the position would pass them, and their
    sender's newest origin with it, and they would be taken for repetitions, which have no outcome of their own.
    """
    core.prompts = waiting
    for mail, error in ended:
        core.prompts = tuple(other for other in core.prompts if other is not mail)
        end_unanswered(core, mail, error)


def apply_replies(core: Core) -> None:
    """Turn the draft's asks into effects. Of several replies to one request the first wins; the others are dropped."""
    before = core.ended
    for ask in core.asks:
        if not isinstance(ask, DeferredReply):
            core.effects = (*core.effects, ask)
            continue
        entry = core.work.deferred.get(ask.ref)
        if entry is None:
            continue
        close_deferred(core, ask.ref, entry)
        if ask.error is not None:
            end_request(core, entry.caller, ask.error)
        else:
            answer_deferred(core, entry, ask.text)
    core.asks = ()
    delegation.keep_attributions(core, before)


def close_deferred(core: Core, ref: str, entry: Deferred, *, fired: bool = False) -> None:
    """Add to the draft that a deferred request is open no longer. `fired`: its timer has done its work."""
    core.work = structs.replace(core.work, deferred={k: v for k, v in core.work.deferred.items() if k != ref})
    if not fired and (entry.until is not None or entry.caller.deadline is not None):
        core.effects = (*core.effects, CancelTimer(id=deadline_timer(ref)))


def answer_deferred(core: Core, entry: Deferred, text: str | None) -> None:
    """Add to the draft that a deferred request has its answer."""
    outcome = Outcome(agent=core.config.name, ref=entry.caller.ref, ok=True, text=text, turn=entry.turn, node=core.ledger.node)
    end(core, entry.caller, outcome)


def mint(core: Core) -> str:
    """A ref for a prompt that is not mail: it answers nobody and cannot be polled."""
    core.work = structs.replace(core.work, minted=core.work.minted + 1)
    return f"c{core.work.minted}"


def enqueue(core: Core, text: str, label: str | None) -> None:
    """Add to the draft a prompt that `handle_event` makes, at the tail of the mailbox: behind all mail that has been seen."""
    item = Queued(ref=mint(core), text=text, label=label, place=core.high, trace=core.trace)
    item = tracing.made_by_event(core, item)
    core.work = structs.replace(core.work, queue=(*core.work.queue, item))
    core.emits = (*core.emits, Emit("mailbox_queued", {"depth": depth(core)}))


def depth(core: Core) -> int:
    """How many prompts wait."""
    return len(core.prompts) + len(core.work.queue) + (core.work.next is not None)


def _snapshot_is_due(core: Core) -> bool:
    if core.records + 1 >= core.config.snapshot_records:
        return True
    if core.bytes < core.config.snapshot_bytes:
        return False
    # A snapshot repeats steps: waiting until as many bytes of records have come keeps that from happening too often.
    steps, kept = core.ledger.steps.values(), core.ledger.kept.values()
    return core.bytes >= sum(step.size for step in steps) + sum(turn.size for turn in kept)


def commit(
    core: Core,
    kind: RecordKind,
    out: Out,
    *,
    then: Then = "go_on",
    turn: TurnInfo | None = None,
    snapshot: Ledger | None = None,
) -> None:
    """Append the draft; `then` follows once it stands. Nothing of it has happened until `Committed`."""
    if core.asks:
        apply_replies(core)
    whole = snapshot or (core.ledger if _snapshot_is_due(core) else None)
    change = book.diff(core.ledger if whole is None else whole, core.work)
    core.inflight = Inflight(
        kind=kind, effects=core.effects, done=core.done, base=core.work, then=then, turn=turn, snapshot=whole is not None
    )
    core.phase = Phase.COMMITTING
    trace = core.active.trace if core.active is not None and core.active.attempt is None else {}
    out.append(
        Append(
            kind=kind,
            change=change,
            effects=core.effects,
            done=core.done,
            turn=turn,
            attempt=core.attempted,
            handled=core.handled,
            snapshot=whole,
            trace=trace,
        )
    )
    core.attempted, core.handled = None, ()


def append_side(
    core: Core, kind: RecordKind, base: Ledger, effects: tuple[Effect, ...], out: Out, *, handled: tuple[Handled, ...] = ()
) -> None:
    """Append a record in mid-turn that turns the journal's ledger into `base`. The caller looks after the turn's draft."""
    whole = core.ledger if _snapshot_is_due(core) else None
    core.inflight = Inflight(kind=kind, effects=effects, done=core.done, base=base, snapshot=whole is not None, side=True)
    change = book.diff(core.ledger, base)
    out.append(Append(kind=kind, change=change, effects=effects, done=core.done, handled=handled, snapshot=whole))


def commit_change(core: Core, kind: RecordKind, change: Callable[[Core], None], out: Out) -> None:
    """Commit a change now, in a record of its own: also in mid-turn, and while a callback runs."""
    if core.phase in (Phase.IDLE, Phase.FAILED):
        change(core)
        commit(core, kind, out, then="failed" if core.phase is Phase.FAILED else "go_on")
    else:
        commit_side(core, kind, change, out)


def commit_side(core: Core, kind: RecordKind, change: Callable[[Core], None], out: Out) -> None:
    """Append a record in mid-turn: `change` is applied to the journal's ledger, and to the turn's draft as well."""
    draft = (core.work, core.effects, core.asks, core.emits, core.handled)
    core.work, core.effects, core.asks, core.emits, core.handled = core.ledger, (), (), (), ()
    change(core)
    base, effects, emits = core.work, core.effects, core.emits
    append_side(core, kind, base, effects, out, handled=core.handled)
    core.work, core.effects, core.asks = draft[0], (), ()
    change(core)
    core.effects, core.asks, core.emits, core.handled = draft[1], draft[2], (*draft[3], *emits), draft[4]


def settle(core: Core, *, seq: int, nonce: str, at: float, size: int) -> tuple[Inflight, tuple[tuple[str, Open], ...]]:
    """Make the committed record's ledger the current one. Returns the record, and its effects, which are now open."""
    flight = core.inflight
    assert flight is not None
    core.inflight = None
    core.ledger = book.settle(flight.base, flight.effects, flight.done, seq=seq, nonce=nonce, at=at, turn=flight.turn)
    if flight.side:
        core.work = book.settle(core.work, flight.effects, flight.done, seq=seq, nonce=nonce, at=at)
    else:
        core.work = core.ledger
        core.effects = ()
        core.ended = frozenset()
    if flight.done:
        core.done = tuple(o for o in core.done if o not in flight.done)
    core.record = flight.kind
    core.records = 0 if flight.snapshot else core.records + 1
    core.bytes = 0 if flight.snapshot else core.bytes + size
    opened = tuple(core.ledger.effects.items())[-len(flight.effects) :] if flight.effects else ()
    return flight, opened


def pending_stop(core: Core) -> Stop | None:
    """The stop that waits for the end of what runs now."""
    return next((item for item in core.stash if isinstance(item, Stop)), None)


def answer_later(core: Core, token: str, body: dict[str, Any]) -> None:
    """Answer a control request once the draft is committed."""
    if token:
        core.answers = (*core.answers, AnswerControl(token, body))
