"""What must hold of turns that were handed on between two calls (docs/design/047-a-turn-moves.md): nothing is made again, nothing
is charged, time goes on, and readers and traces are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agentmesh import semconv
from agentmesh.ledger import apply, turn_name
from agentmesh.records import Ledger, Record
from agentmesh.trace.spans import Began, ToldSpan
from judge.evidence import Evidence, LiveMessage, TurnCall


class HandOver(NamedTuple):
    """A record by which an owner handed its turn on."""

    agent: str
    seq: int
    turn: str
    """The turn's name, as its backend knows it (`Steps.key`)."""
    record: Record
    ledger: Ledger
    """Behind that record."""
    since: int
    """The sequence of the record by which this owner began."""
    following: tuple[Record, Ledger] | None
    """The next record, and the ledger behind it."""


def hand_overs(evidence: Evidence) -> list[HandOver]:
    """All hand-overs in the journals, in the order of each journal."""
    return [one for agent, records in evidence.journals.items() for one in _of_journal(agent, records)]


def _of_journal(agent: str, records: Sequence[tuple[int, Record]]) -> Iterator[HandOver]:
    ledger: Ledger | None = None
    since, found = 0, None
    for seq, record in records:
        before, ledger = ledger, apply(ledger, record, seq)
        if found is not None:
            yield found._replace(following=(record, ledger))
            found = None
        if record.kind == "activated":
            since = seq
        if moves_of(ledger) > moves_of(before, ledger):
            turning = ledger.turning
            assert turning is not None
            name = turn_name(agent, ledger.incarnation, ledger.epoch, turning.number, turning.key)
            found = HandOver(agent, seq, name, record, ledger, since, None)
    if found is not None:
        yield found


def moves_of(ledger: Ledger | None, like: Ledger | None = None) -> int:
    """How often the turn in `ledger` was handed on; 0 if that is not the turn in `like`."""
    turning = None if ledger is None else ledger.turning
    if turning is None or ledger is None:
        return 0
    if like is not None:
        other = like.turning
        if other is None or (other.key, other.number, like.incarnation) != (turning.key, turning.number, ledger.incarnation):
            return 0
    return turning.moves


def moved_wrongly(evidence: Evidence) -> Iterator[str]:
    """What is wrong with the hand-overs of a run."""
    found = hand_overs(evidence)
    for one in found:
        yield from _followed(one)
    yield from _made_again(evidence, found)
    yield from _times(evidence)
    yield from _told(evidence, found)
    yield from _read(evidence.live)


def repeated(calls: Sequence[TurnCall]) -> Iterator[str]:
    """Calls that were made again although they had not failed: there are none where each owner ends in order."""
    made: dict[tuple[str, str, str], TurnCall] = {}
    for call in calls:
        first = made.setdefault(key := (call.agent, call.turn, call.what), call)
        if first is not call and first.end != "failed":
            yield f"{call.agent} made {call.what} of {call.turn} again at {call.at:.3f}; that of {first.at:.3f} was {first.end}"
        made[key] = call


def _followed(one: HandOver) -> Iterator[str]:
    """Nothing follows of the same owner, and the next one begins with an input that is charged with nothing."""
    if one.following is None:
        return
    where = f"{one.agent}: record {one.seq} hands {one.turn} on, and the next one"
    record, ledger = one.following
    if record.kind != "activated":
        yield f"{where} is {record.kind}"
    if (ledger.attempts, ledger.takeovers) != (one.ledger.attempts, one.ledger.takeovers) or one.ledger.trying is not None:
        yield f"{where} charges {ledger.attempts} and {ledger.takeovers}, after {one.ledger.attempts} and {one.ledger.takeovers}"
    turning = one.ledger.turning
    if record.kind == "activated" and record.incarnation == one.record.incarnation and ledger.turning != turning:
        yield f"{where} goes on with {ledger.turning}, after {turning}"


def _made_again(evidence: Evidence, found: Sequence[HandOver]) -> Iterator[str]:
    """What an owner has called that handed the turn on is called by none behind it, unless it had failed."""
    calls: dict[str, list[TurnCall]] = defaultdict(list)
    for call in evidence.turn_calls:
        calls[call.turn].append(call)
    for one in found:
        since, until = evidence.recorded.get(one.since), evidence.recorded.get(one.seq)
        if since is None or until is None:
            continue
        behind = {call.what for call in calls[one.turn] if call.at > until}
        for call in calls[one.turn]:
            of_owner = call.node == one.record.node and since <= call.at <= until
            if of_owner and call.end != "failed" and call.what in behind:
                yield f"{one.agent} handed {one.turn} on at {until:.3f}; {call.what} of {call.at:.3f} ({call.end}) was made again"


def _times(evidence: Evidence) -> Iterator[str]:
    """A turn keeps when it began, over all its owners."""
    for agent, records in evidence.journals.items():
        ledger: Ledger | None = None
        for seq, record in records:
            before, ledger = ledger, apply(ledger, record, seq)
            if before is None or before.turning is None or ledger.turning is None:
                continue
            was, now = before.turning, ledger.turning
            same = (was.key, was.number, before.incarnation) == (now.key, now.number, ledger.incarnation)
            if same and now.began != was.began:
                yield f"{agent}: record {seq} says that {now.key} began at {now.began}, after {was.began}"


def _told(evidence: Evidence, found: Sequence[HandOver]) -> Iterator[str]:
    """The attempt that was handed on is told to have `moved`, and the next one of that turn stands under the same parent."""
    if evidence.spans is None:
        return
    spans: dict[tuple[str, str], list[ToldSpan]] = defaultdict(list)
    for span in evidence.spans:
        if span.op == "invoke_agent":
            spans[span.agent, span.id].append(span)
    for one in found:
        begun = [fact for fact in evidence.begun if _is_handed_on(fact, one)]
        for fact in begun:
            ends = {span.attributes.get(semconv.ATTEMPT_END) for span in spans[one.agent, fact.span]}
            if ends - {"moved"}:
                yield f"{one.agent}: the attempt {fact.span} was handed on, and was told to have ended {sorted(map(str, ends))}"


def _is_handed_on(fact: Began, one: HandOver) -> bool:
    record, turning = one.record, one.ledger.turning
    assert turning is not None
    return (fact.agent, fact.input, fact.generation, fact.boot) == (one.agent, turning.key, record.generation, record.boot)


def _read(live: Sequence[LiveMessage]) -> Iterator[str]:
    """A `handover` is the last event of its owner, nothing of that run is void, and the next `start` has the same step."""
    runs: dict[tuple[str, str], list[LiveMessage]] = defaultdict(list)
    starts: dict[str, list[LiveMessage]] = defaultdict(list)
    for message in live:
        runs[message.reader, message.run].append(message)
        if message.type == "start":
            starts[message.reader].append(message)
    for (reader, run), sent in runs.items():
        last = next((message for message in sent if message.type == "handover"), None)
        if last is None:
            continue
        if later := [message.type for message in sent if message.seq > last.seq]:
            yield f"{reader}: the run {run} goes on with {later} behind its hand-over"
        void = max((message.seq for message in sent if message.restart), default=0)
        lost = [message.seq for message in sent if message.text and message.step >= last.step and message.seq > void]
        if lost:
            yield f"{reader}: the run {run} was handed on behind step {last.step}, and its texts {lost} are not durable"
        behind = min((s for s in starts[reader] if s.owner > last.owner), key=lambda s: s.owner, default=None)
        if behind is not None and behind.step != last.step:
            yield f"{reader}: the run {run} was handed on behind step {last.step}, and the next one starts behind {behind.step}"
