"""Folding records into a ledger, and writing the difference of two ledgers as a change. Pure.

The one law (tests/mesh/test_ledger.py): `patch(old, diff(old, new)) == new`, so a restart that folds the journal sees
exactly what the owner saw when it committed.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress, repeat
from operator import is_not
from typing import Any

from msgspec import UNSET, Raw, structs

from agentmesh.control_values import OpenRequest
from agentmesh.formats import FIRST
from agentmesh.outcomes import AnsweredMessage, answered_by
from agentmesh.records import (
    NOTHING,
    Awaited,
    CancelTimer,
    Change,
    Delegated,
    Effect,
    Handled,
    Ledger,
    Open,
    Record,
    RecordKind,
    Resolve,
    SendMail,
    SetTimer,
    Step,
    TimerEntry,
    TurnInfo,
)
from agentmesh.wire import format_time

MAPS = (
    "positions", "taken", "origins", "deferred", "attempts", "takeovers", "timers", "awaiting", "steps", "waits", "kept", "seen",
    "delegated",
)  # fmt: skip
_CHANGED = tuple((field, field in MAPS) for field in Change.__struct_fields__)
"""Per field of a change: its name, and whether it is a map."""
FIELDS = Ledger.__struct_fields__
NOT_IN_CHANGE = frozenset(FIELDS) - set(Change.__struct_fields__)
"""Fields that a change does not have, because every record bears them, or because they follow from the effects."""
_IN_CHANGE = tuple(None if field in NOT_IN_CHANGE else (index, field, field in MAPS) for index, field in enumerate(FIELDS))
"""Per field of a ledger: None, or what `diff` needs (index, name, whether it is a map)."""
NO_CHANGE = Change()
NO_TRACE: dict[str, str] = {}
HISTORY_TEXT = 1000
"""Characters of a prompt or an answer that the history keeps."""
TOMBSTONE_TEXT = 200
"""The same in a tombstone, which outlives its agent by days; there may be many."""


def diff(old: Ledger, new: Ledger) -> Change:
    """The change that turns `old` into `new`. Effects are left out: a record names those itself."""
    changed: dict[str, Any] = {}
    olds, news = structs.astuple(old), structs.astuple(new)
    # Every turn calls this, and most fields are the very same objects: those are passed over without running Python code.
    for told in compress(_IN_CHANGE, map(is_not, olds, news)):
        if told is None:
            continue
        index, field, is_map = told
        before, after = olds[index], news[index]
        if not is_map:
            changed[field] = after
            continue
        delta: dict[str, Any] = {key: value for key, value in after.items() if before.get(key) != value}
        delta |= {key: None for key in before if key not in after}
        if delta:
            changed[field] = delta
    return Change(**changed) if changed else NO_CHANGE


def patch(ledger: Ledger, change: Change) -> Ledger:
    """`ledger` with `change` applied."""
    fields: dict[str, Any] = {}
    values = structs.astuple(change)
    # A journal is read record by record, and most fields of a change are unset: as in `diff`.
    for (field, is_map), value in compress(zip(_CHANGED, values, strict=True), map(is_not, values, repeat(UNSET))):
        if is_map:
            merged = {**getattr(ledger, field), **value}
            fields[field] = {key: item for key, item in merged.items() if item is not None}
        else:
            fields[field] = value
    return structs.replace(ledger, **fields) if fields else ledger


def turn_name(agent: str, life: str, epoch: int, number: int, key: str) -> str:
    """A turn's name (life, number and input): the same however often it is tried, and shared with no other turn."""
    return f"{agent}.{life}.{epoch}.{number}.{key}"


def origin_of(epoch: int, seq: int, index: int) -> str:
    """The origin of a record's effect. Origins are never reused and only grow, also from one life of a name to the next."""
    return f"{epoch}.{seq}.{index}"


def origin_key(origin: str) -> tuple[int, ...]:
    """A sort key: origins compare in the order in which they were made. A malformed one sorts lowest."""
    try:
        return tuple(int(part) for part in origin.split("."))
    except ValueError:
        return (-1,)


def settle(
    ledger: Ledger,
    effects: tuple[Effect, ...],
    done: tuple[str, ...],
    *,
    seq: int,
    nonce: str,
    at: float,
    turn: TurnInfo | None = None,
) -> Ledger:
    """`ledger` after the record at `seq` is committed: its effects are open, the effects that it names as done are closed, its
    turn is remembered.

    Entries that need an effect's origin are made here, because an origin exists only once the record has a sequence: timers that
    are set, tagged requests that await their answer, those on behalf of a request that stays open, and the requests of waits
    inside a turn.
    """
    if not effects and not done and turn is None:
        return ledger
    open_ = {k: v for k, v in ledger.effects.items() if k not in done} if done else dict(ledger.effects)
    timers, awaiting, waits, delegated = ledger.timers, ledger.awaiting, ledger.waits, ledger.delegated
    for index, effect in enumerate(effects):
        origin = origin_of(ledger.epoch, seq, index)
        open_[origin] = Open(effect, nonce, at)
        if isinstance(effect, Resolve):
            continue  # the most frequent effect, and it needs no entry
        if isinstance(effect, SetTimer):
            timers = {**timers, effect.id: TimerEntry(origin, effect.due, effect.every, effect.event)}
        elif isinstance(effect, CancelTimer):
            timers = {k: v for k, v in timers.items() if k != effect.id}
        elif isinstance(effect, SendMail) and effect.request is not None:
            delegated = {**delegated, origin: Delegated(effect.to, effect.request)}
        if isinstance(effect, SendMail) and effect.tag is not None and effect.outcome is None:
            awaiting = {**awaiting, origin: Awaited(effect.to, effect.tag, at, effect.deadline)}
        elif isinstance(effect, SendMail) and effect.wait is not None and effect.wait in waits:
            waits = {**waits, effect.wait: structs.replace(waits[effect.wait], origin=origin)}
    history = ledger.history if turn is None else (*ledger.history, turn)[-ledger.history_limit :]
    return structs.replace(
        ledger, effects=open_, timers=timers, awaiting=awaiting, waits=waits, delegated=delegated, history=history
    )


def shortened(history: tuple[TurnInfo, ...]) -> tuple[TurnInfo, ...]:
    """`history` as a tombstone keeps it."""
    return tuple(
        structs.replace(
            turn,
            prompt=turn.prompt[:TOMBSTONE_TEXT],
            answer=None if turn.answer is None else turn.answer[:TOMBSTONE_TEXT],
            note=None,
        )
        for turn in history
    )


def record_of(
    ledger: Ledger,
    kind: RecordKind,
    *,
    id: str,
    at: float,
    change: Change = NO_CHANGE,
    effects: tuple[Effect, ...] = (),
    done: tuple[str, ...] = (),
    turn: TurnInfo | None = None,
    attempt: TurnInfo | None = None,
    handled: tuple[Handled, ...] = (),
    snapshot: Ledger | None = None,
    trace: dict[str, str] = NO_TRACE,
    positions: dict[str, int] | None = None,
    open: int | None = None,
    v: int = FIRST,
) -> Record:
    """A record of the owner that `ledger` names: the process that appends it acts as that owner (docs/architecture.md#the-fence).

    Args:
        ledger: the journal's ledger; gives incarnation, epoch, generation, node and boot.
        id: random, new for each record.
        at: seconds since the epoch.
        v: the version of the newest record; this one bears it, too.
        change, effects, done, turn, attempt, handled, snapshot, trace, positions, open: as in `Record`.
    """
    return Record(
        kind=kind,
        id=id,
        at=at,
        incarnation=ledger.incarnation,
        epoch=ledger.epoch,
        generation=ledger.generation,
        node=ledger.node,
        boot=ledger.boot,
        change=change,
        effects=effects,
        done=done,
        turn=turn,
        attempt=attempt,
        handled=handled,
        snapshot=snapshot,
        trace=trace,
        positions=positions,
        open=open,
        v=v,
    )


def apply(ledger: Ledger | None, record: Record, seq: int) -> Ledger:
    """The ledger after `record`, which stands at sequence `seq` of the journal stream."""
    if record.snapshot is not None:
        base = record.snapshot
    elif ledger is not None:
        base = ledger
    else:
        base = Ledger(incarnation=record.incarnation)
    base = structs.replace(
        patch(base, record.change),
        incarnation=record.incarnation,
        epoch=record.epoch,
        generation=record.generation,
        node=record.node,
        boot=record.boot,
    )
    return settle(base, record.effects, record.done, seq=seq, nonce=record.id, at=record.at, turn=record.turn)


def charged(ledger: Ledger, died: bool) -> Ledger:
    """`ledger` as the next owner begins with it. An input that the last owner named and did not finish is charged if that
    owner died with its node; drains, moves and fences charge nothing (docs/architecture.md#poison)."""
    key = ledger.trying
    if key is None:
        return ledger
    takeovers = {**ledger.takeovers, key: ledger.takeovers.get(key, 0) + 1} if died else ledger.takeovers
    return structs.replace(ledger, trying=None, takeovers=takeovers)


def fold(records: Iterable[tuple[int, Record]]) -> tuple[Ledger | None, int]:
    """The ledger that `records` (sequence, record; oldest first) build up, and the newest sequence (0 for none)."""
    ledger: Ledger | None = None
    last = 0
    for seq, record in records:
        ledger = apply(ledger, record, seq)
        last = seq
    return (None if ledger is None else _detached(ledger)), last


def journal_version(records: Iterable[tuple[int, Record]]) -> int:
    """The version that a reader of `records` (sequence, record; oldest first) must know: their newest record's."""
    return max((record.v for _, record in records), default=FIRST)


def newest_answered(records: Iterable[tuple[int, Record]]) -> AnsweredMessage | None:
    """The message with the largest sequence among those that `records` answer; None if none of them says which it answers."""
    effects = (effect for _, record in records for effect in record.effects if isinstance(effect, Resolve))
    return max((answered for effect in effects if (answered := answered_by(effect.outcome)) is not None), default=None)


def _detached(ledger: Ledger) -> Ledger:
    """`ledger` with copies of its raw values, so that it does not keep the bytes of whole records in memory."""
    steps = {index: _own(step) for index, step in ledger.steps.items()}
    kept = {name: structs.replace(turn, steps=tuple(map(_own, turn.steps))) for name, turn in ledger.kept.items()}
    return structs.replace(
        ledger, state=_copied(ledger.state), session=_copied(ledger.session), spec=_copied(ledger.spec), steps=steps, kept=kept
    )


def _own(step: Step) -> Step:
    return structs.replace(step, value=_copied(step.value))


def _copied(raw: Raw) -> Raw:
    return raw.copy() if raw != NOTHING else NOTHING


def open_requests(ledger: Ledger) -> tuple[OpenRequest, ...]:
    """The deferred requests that are open, the oldest first."""
    entries = sorted(ledger.deferred.items(), key=lambda pair: (pair[1].since, pair[1].turn))
    return tuple(
        OpenRequest(
            ref=ref,
            sender=entry.caller.sender,
            since=format_time(entry.since) if entry.since else None,
            deadline=format_time(ends) if (ends := entry.until or entry.caller.deadline) is not None else None,
            exclusive=entry.exclusive,
        )
        for ref, entry in entries
    )


def open_count(ledger: Ledger) -> int:
    """How many requests an agent without work keeps open: those that it has deferred, and those that it has made and whose end it
    does not know."""
    waits = (wait.origin for wait in ledger.waits.values() if wait.outcome is None and wait.origin)
    asked = {*ledger.awaiting, *ledger.delegated, *waits}
    return len(ledger.deferred) + len(asked)


def consume(ledger: Ledger, lane: str, seq: int, first: int | None, turn: int | None = None) -> Ledger:
    """`ledger` with message `seq` of `lane` consumed.

    Args:
        first: the oldest message of that lane that still waits, or None.
        turn: the number of the turn that consumes it, if one does.

    A position means "everything up to here": a message taken ahead of an older one waits in `taken` until the older one goes.
    """
    number = ledger.turn if turn is None else turn
    beyond = ledger.taken.get(lane, ())
    if first is not None and first < seq:
        return structs.replace(ledger, taken=_with(ledger.taken, lane, tuple(sorted((*beyond, seq)))), turn=number)
    position = max(seq, ledger.positions.get(lane, 0))
    if not beyond:  # the common case: the oldest goes first
        return structs.replace(ledger, positions={**ledger.positions, lane: position}, turn=number)
    position = max((position, *(s for s in beyond if first is None or s < first)))
    rest = tuple(s for s in beyond if s > position)
    positions = {**ledger.positions, lane: position}
    return structs.replace(ledger, positions=positions, taken=_with(ledger.taken, lane, rest), turn=number)


def is_taken(ledger: Ledger, lane: str, seq: int) -> bool:
    """Whether message `seq` of `lane` was consumed."""
    return seq <= ledger.positions.get(lane, 0) or seq in ledger.taken.get(lane, ())


def witness(ledger: Ledger, sender: str, lane: str, seq: int, origin: str) -> Ledger:
    """`ledger` with the origin of message `seq`, which was just consumed, noted for its sender.

    The newest origin stands for all older ones, so it may only cover messages that the position has passed: the origin of a
    message that is consumed ahead of older ones is kept by itself, under `<sender>/<lane>@<seq>`, until those are consumed too.
    """
    origins = {**ledger.origins, f"{sender}/{lane}@{seq}": origin}
    position = ledger.positions.get(lane, 0)
    early = f"/{lane}@"
    for key in [k for k in origins if early in k]:
        name, _, number = key.rpartition("@")
        if int(number) <= position:
            passed = origins.pop(key)
            if origin_key(passed) > origin_key(origins.get(name, "")):
                origins[name] = passed
    return structs.replace(ledger, origins=origins)


def is_witnessed(ledger: Ledger, sender: str, lane: str, origin: str) -> bool:
    """Whether a message of `sender` with this origin was consumed from `lane`."""
    key = f"{sender}/{lane}"
    newest = ledger.origins.get(key)
    if newest is not None and origin_key(origin) <= origin_key(newest):
        return True
    return lane in ledger.taken and any(o == origin for k, o in ledger.origins.items() if k.startswith(key + "@"))


def _with(taken: dict[str, tuple[int, ...]], lane: str, seqs: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    out = {k: v for k, v in taken.items() if k != lane}
    if seqs:
        out[lane] = seqs
    return out
