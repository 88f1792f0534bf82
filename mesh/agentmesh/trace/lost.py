"""The attempts that their owners did not end: what the next owner tells of them (docs/design/039-attempts-that-nobody-ended.md).
Pure.

What is known of such an attempt is the fact that it began, which it has published itself, and the steps that it has taken, which
stand in the journal. Its end is not: it lies before the record by which another owner took its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from msgspec import structs

from agentmesh import semconv
from agentmesh.ledger import apply
from agentmesh.ledger_entries import Inner
from agentmesh.records import Ledger, Record
from agentmesh.trace.derived import boot_of, traced_of
from agentmesh.trace.spans import AttemptEnd, Attributes, Began, ToldSpan
from agentmesh.trace.told import Teller, attempt_span, inner_of, inner_spans

MARGIN_S = 120.0
"""How far the clocks of the servers may differ that stored a record and a fact, and some more."""
LAST_S = 10.0
"""Of a process that died, the facts of its records of so many last seconds may have died with it."""
SUMMED = (
    semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS, semconv.CACHE_READ_TOKENS, semconv.CACHE_WRITE_TOKENS, semconv.COST,
)  # fmt: skip
"""What an attempt cost: the sum of what its finished steps did."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What an owner found when it took an agent."""

    agent: str
    kind: str
    """The agent's."""
    ledger: Ledger
    """As the owner before left it."""
    records: Sequence[tuple[int, Record]]
    """The journal, without the record by which this owner has taken the agent: sequences and records, the oldest first."""
    at: float
    """When it was taken (seconds since the epoch)."""
    generation: int
    boot: str
    """The owner's own."""
    died: bool
    """Whether the process before is dead."""
    root: str = "mesh"

    @property
    def by_another(self) -> bool:
        """Whether another owner had the agent before."""
        return (self.ledger.generation, self.ledger.boot) != (self.generation, self.boot)


class Unended(msgspec.Struct, frozen=True):
    """An attempt that nobody ended."""

    attempt: str
    """The id of its span."""
    spans: tuple[ToldSpan, ...]
    """That span, and those of what it had finished."""


def since(taken: Taken) -> float:
    """From when on there may be facts of attempts that nobody has told: since the last turn before the former owner took the
    agent, for that one may have died before it told what it had found."""
    former, history = (taken.ledger.generation, taken.ledger.boot), taken.ledger.history
    older = [turn for turn in history if (turn.generation, boot_of(turn) or former[1]) != former]
    if older:
        return older[-1].ended - MARGIN_S
    if len(history) >= taken.ledger.history_limit:
        return history[-1].ended - MARGIN_S
    begun = [history[0].started] if history else [record.at for _, record in taken.records[:1]]  # a life that is young
    if taken.ledger.turning is not None and taken.ledger.turning.began:
        begun.append(taken.ledger.turning.began)
    return min(begun, default=taken.at) - MARGIN_S


def last_records(taken: Taken) -> Iterator[tuple[Ledger | None, Record, int]]:
    """The last seconds' records of the owners before, of which several may have died one after the other: the ledger that each
    has changed, it, its sequence."""
    ledger: Ledger | None = None
    from_then = taken.records[-1][1].at - LAST_S if taken.records else 0.0
    for seq, record in taken.records:
        if record.at >= from_then and (record.generation, record.boot) != (taken.generation, taken.boot):
            yield ledger, record, seq
        ledger = apply(ledger, record, seq)


def nodes_in(taken: Taken, begun: Iterable[Began]) -> dict[str, str]:
    """The processes whose fate decides how attempts ended: by boot the node."""
    others = {fact.boot: fact.node for fact in begun if not fact.left}
    others |= {record.boot: record.node for _, record in taken.records if record.kind == "activated"}
    return {boot: node for boot, node in others.items() if boot not in (taken.boot, taken.ledger.boot)}


def ended_in(agent: str, ledger: Ledger, records: Iterable[tuple[int, Record]]) -> set[str]:
    """The ids of the attempts whose ends the journal of `agent` has: the ledger, and the records that it is made of."""
    found = {attempt for _, record in records for attempt in attempts_ended(agent, record)}
    of_history = (traced_of(agent, ledger.incarnation, turn) for turn in ledger.history)
    return found | {traced.span for traced in of_history if traced is not None}


def attempts_ended(agent: str, record: Record) -> Iterator[str]:
    """The ids of the attempts that a record of `agent` ends."""
    for info in (record.turn, record.attempt):
        traced = traced_of(agent, record.incarnation, info) if info is not None else None
        if traced is not None and traced.span:
            yield traced.span


def unended(taken: Taken, begun: Sequence[Began], alive: Collection[str]) -> tuple[Unended, ...]:
    """What is to be told of the attempts whose ends the journal has not, the oldest first; unless a fact tells of them.

    Args:
        taken: what the owner found.
        begun: the facts that attempts of the agent began.
        alive: the boots of processes that are alive, of those in `nodes_in`.
    """
    over = ended_in(taken.agent, taken.ledger, taken.records)
    boots = {taken.ledger.boot, *(record.boot for _, record in taken.records)} - {taken.boot}
    facts: dict[str, Began] = {}
    newest = _newest_turns(taken.ledger)
    for fact in (*begun, *_of_steps(taken)):
        if fact.turn <= newest.get((fact.generation, fact.boot), 0):
            continue  # its own owner has ended that turn, or a later one: the record of the attempt may be purged
        if fact.span not in over and _is_former(taken, fact, boots) and (fact.left or fact.span not in facts):
            facts[fact.span] = fact
    found = (_unended(taken, fact, alive) for fact in facts.values())
    return tuple(sorted(found, key=lambda one: one.spans[0].start))


def _newest_turns(ledger: Ledger) -> dict[tuple[int, str], int]:
    """The newest turn that each owner has ended, as far as the history knows."""
    found: dict[tuple[int, str], int] = {}
    for turn in ledger.history:
        owner = turn.generation, boot_of(turn) or ""
        found[owner] = max(turn.number, found.get(owner, 0))
    return found


def _is_former(taken: Taken, fact: Began, boots: Collection[str]) -> bool:
    """Whether the attempt is of an owner before this one. Those of former lives were told of when these ended. Other owners
    may have come since: their attempts are told of by themselves and their successors."""
    if fact.life != taken.ledger.incarnation or fact.generation > taken.generation:
        return False
    history = taken.ledger.history
    if len(history) >= taken.ledger.history_limit and fact.turn < history[0].number:
        return False  # how it ended is known no more: a record has told of it, or an owner before this one
    if fact.generation < taken.generation:
        return True
    # A node that was started again has its agents by the same placements.
    return fact.boot != taken.boot and (fact.boot in boots or fact.started < taken.at)


class _Left(NamedTuple):
    """The first thing that an attempt has left in the journal."""

    attempt: str
    began: float
    generation: int
    boot: str


def _of_steps(taken: Taken) -> Iterator[Began]:
    """The attempts that have taken the steps in the ledger, or have asked others, as if each had said that it began."""
    turning = taken.ledger.turning
    traced = turning.traced if turning is not None else None
    if turning is None or traced is None:
        return
    first: dict[str, _Left] = {}
    steps = (taken.ledger.steps[index] for index in sorted(taken.ledger.steps, key=int))
    left = [_Left(step.attempt, step.began, step.generation, step.boot) for step in steps]
    left += [_Left(wait.attempt, wait.since, wait.generation, wait.boot) for wait in taken.ledger.waits.values()]
    for one in sorted(left, key=lambda one: one.began):
        if one.attempt:
            first.setdefault(one.attempt, one)
    nodes = {record.boot: record.node for _, record in taken.records} | {taken.ledger.boot: taken.ledger.node}
    for attempt, one in first.items():
        yield Began(
            trace=traced.trace,
            span=attempt,
            parent=traced.parent,
            agent=taken.agent,
            service=taken.kind,
            life=taken.ledger.incarnation,
            ref=turning.key.partition(":")[2],
            input=turning.key,
            turn=turning.number,
            started=traced.began if attempt == traced.span and traced.began else one.began,
            node=nodes.get(one.boot, ""),
            generation=one.generation,
            boot=one.boot,
            links=traced.links,
            sampled=traced.sampled,
        )


def _unended(taken: Taken, fact: Began, alive: Collection[str]) -> Unended:
    end, at = _end(taken, fact, alive)
    teller = Teller(agent=taken.agent, service=fact.service, life=fact.life, epoch=taken.ledger.epoch, root=taken.root)
    calls = tuple(inner_of(fact.span, taken.ledger.steps))
    last = max((step.ended for step in taken.ledger.steps.values() if step.attempt == fact.span), default=0.0)
    span = _span(teller, fact, end, max(at, last))
    span = structs.replace(span, attributes={**span.attributes, **_cost(calls)})
    return Unended(fact.span, (span, *inner_spans(teller, span, calls)))


def _end(taken: Taken, fact: Began, alive: Collection[str]) -> tuple[AttemptEnd, float]:
    """How an attempt ended, and when: at the latest when the next owner had the agent."""
    if moved := fact.left or _handed_on(taken, fact):  # that fact may have been lost
        return "moved", moved
    by_former = fact.boot == taken.ledger.boot
    followed = (
        record.at
        for _, record in taken.records
        if record.kind == "activated"
        and (record.generation, record.boot) != (fact.generation, fact.boot)
        and record.at >= fact.started
    )
    lost = taken.died if by_former else fact.boot != taken.boot and fact.boot not in alive
    return ("lost" if lost else "fenced"), next(followed, taken.at)


def _handed_on(taken: Taken, fact: Began) -> float:
    """When the attempt's owner committed that its turn goes on elsewhere; 0 if it did not."""
    for _, record in taken.records:
        turning = record.change.turning
        if (
            turning
            and turning.moves
            and turning.key == fact.input
            and (record.generation, record.boot) == (fact.generation, fact.boot)
        ):
            return record.at
    return 0.0


def abandoned(fact: Began, *, at: float, epoch: int, root: str = "mesh") -> ToldSpan:
    """The span of an attempt that its own process has begun and not ended, since an append of it came to nothing, and whose input
    needs no other any more."""
    return _span(Teller(agent=fact.agent, service=fact.service, life=fact.life, epoch=epoch, root=root), fact, "fenced", at)


def inner_of_lost(fact: Began, inner: Iterable[Inner], *, epoch: int, root: str = "mesh") -> tuple[ToldSpan, ...]:
    """The spans of calls of an attempt that its own process has begun, and that its owner hands over before a step has them."""
    teller = Teller(agent=fact.agent, service=fact.service, life=fact.life, epoch=epoch, root=root)
    return tuple(inner_spans(teller, _span(teller, fact, "moved", fact.left), inner))


def _span(teller: Teller, fact: Began, end: AttemptEnd, ended: float) -> ToldSpan:
    """The span of an attempt that has said that it began."""
    return attempt_span(
        teller,
        trace=fact.trace,
        span=fact.span,
        parent=fact.parent,
        ref=fact.ref,
        turn=fact.turn,
        began=fact.started,
        ended=ended,
        end=end,
        node=fact.node,
        generation=fact.generation,
        boot=fact.boot,
        crashes=fact.crashes,
        retries=fact.retries,
        sender=fact.sender,
        chain=fact.chain,
        error="" if end == "moved" else end,
        links=fact.links,
        sampled=fact.sampled,
    )


def _cost(calls: Iterable[Inner]) -> Attributes:
    found: Attributes = {}
    for call in calls:
        for name in SUMMED:
            more, so_far = call.attributes.get(name), found.get(name, 0)
            if isinstance(more, int | float) and isinstance(so_far, int | float) and more:
                found[name] = so_far + more
    return found
