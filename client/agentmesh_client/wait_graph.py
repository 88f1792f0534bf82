"""Who waits for whom: a wait-for graph, made of what journals, mail and the registry say of agents. Pure.

A request has two ends. The agent that made it knows that it waits, since when and until when; the agent that was asked knows what
has become of it: it lies in the mail, its turn runs, it was deferred. Both are matched by the request's origin. What a client has
asked is known by the second end alone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from agentmesh.ledger import is_taken, is_witnessed
from agentmesh.records import Caller, Ledger, Resolve, SendMail
from agentmesh.registry_values import Spec
from agentmesh.wire import ErrorBody, Mail, parse_time
from agentmesh_client.results import OwingState, WaitEntry, WaitGraph, WaitKind, WaitStage
from agentmesh_client.wait_circles import circles

STUCK = frozenset(("store_lost", "unreadable_record"))
"""Reasons in a spec of an agent that its node cannot run (docs/architecture.md#a-store-that-has-lost-data)."""


class AgentFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a name."""

    spec: Spec | None = None
    """None: no agent has the name."""
    node: str | None = None
    """The live node that it is placed on."""
    ledger: Ledger | None = None
    """None: nothing of it is open, or it has written nothing."""
    prompts: tuple[Mail, ...] = ()
    """Stored prompts in stream order, those that were consumed perhaps among them."""
    answers: frozenset[tuple[str, str]] = frozenset()
    """Senders and tags of answers that lie in its lanes, not consumed."""
    untold: tuple[Resolve, ...] = ()
    """Outcomes for clients that its journal has and that are not stored yet."""
    trouble: ErrorBody | None = None
    """Why its journal cannot be read."""


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    """A request that an agent has, and has not answered."""

    caller: Caller
    stage: WaitStage
    since: float | None = None
    until: float | None = None
    """When it ends, of one that is deferred."""
    exclusive: bool = False


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request that an agent has made, and of which it knows no end."""

    agent: str
    kind: WaitKind
    tag: str
    since: float | None = None
    deadline: float | None = None
    ends: float | None = None
    request: str | None = None


# --- the graph --------------------------------------------------------------------------------------------------------
def wait_graph(facts: Mapping[str, AgentFacts], agent: str | None = None, *, read: int = 0) -> WaitGraph:
    """The graph of these agents, by name; with `agent` only what waits for it, directly or by way of others, and what it waits
    for."""
    found = sorted(waits(facts), key=_order)
    if agent is not None:
        found = concerning(found, agent)
    return WaitGraph(
        waits=tuple(found),
        circles=circles(found),
        agents=len(facts),
        read=read,
        unread=tuple(sorted(name for name, one in facts.items() if one.trouble is not None)),
    )


def _order(entry: WaitEntry) -> tuple[float, str, str, str]:
    since = 0.0 if entry.since is None else entry.since.timestamp()
    return since, entry.waiter or "", entry.agent, entry.ref or ""


def waits(facts: Mapping[str, AgentFacts]) -> Iterator[WaitEntry]:
    """All that is open between these agents, and between them and their clients."""
    asked = {(name, origin): one for name, known in facts.items() for origin, one in _asked_by(known)}
    matched: set[tuple[str, str]] = set()
    for name, known in facts.items():
        state = state_of(known)
        for held in _held_by(known, state):
            key = _key(held.caller, name, facts)
            mine = asked.get(key) if key is not None else None
            if mine is not None and key is not None and mine.agent == name:
                matched.add(key)
            else:
                mine = None
            if mine is None and not _is_owed(held.caller, facts):
                continue
            origin = key[1] if key is not None else None
            yield _entry(name, known, state, origin=origin, held=held, asked=mine)
        for told in known.untold:
            yield _untold(name, known, state, told)
    for (waiter, origin), mine in asked.items():
        if (waiter, origin) not in matched and mine.kind != "tell":
            owing = facts.get(mine.agent, AgentFacts())
            stage = _stage(waiter, origin, mine, facts)
            yield _entry(mine.agent, owing, state_of(owing), waiter=waiter, origin=origin, asked=mine, stage=stage)


def _key(caller: Caller, name: str, facts: Mapping[str, AgentFacts]) -> tuple[str, str] | None:
    """By whom a request was made that `name` has, and with which origin; None if no agent did, or that cannot be told."""
    sender = caller.sender
    if sender is None:
        return None
    origin = caller.origin or (caller.tag if caller.path else None)
    if origin is None and caller.tag is not None:  # an older build has written the entry
        ledger = facts[sender].ledger if sender in facts else None
        awaiting = ledger.awaiting.items() if ledger is not None else ()
        origin = next((o for o, one in awaiting if (one.agent, one.tag) == (name, caller.tag)), None)
    return None if origin is None else (sender, origin)


def _is_owed(caller: Caller, facts: Mapping[str, AgentFacts]) -> bool:
    """Whether a request counts that no agent is known to wait for: one from outside or told, but not a question whose asker has
    ended or withdrawn it."""
    if caller.sender is None or caller.tag is None:
        return True
    return caller.sender in facts and facts[caller.sender].trouble is not None


def _stage(waiter: str, origin: str, mine: _Asked, facts: Mapping[str, AgentFacts]) -> WaitStage:
    """What has become of a request that the agent which was asked does not have."""
    asking, owing = facts[waiter], facts.get(mine.agent)
    if (mine.agent, mine.tag) in asking.answers:
        return "answered"
    came = owing is not None and owing.ledger is not None and is_witnessed(owing.ledger, waiter, "peer-inbox", origin)
    return "sent" if not came and asking.ledger is not None and origin in asking.ledger.effects else "answered"


def _entry(
    name: str,
    known: AgentFacts,
    state: OwingState,
    *,
    waiter: str | None = None,
    origin: str | None,
    held: _Held | None = None,
    asked: _Asked | None = None,
    stage: WaitStage = "sent",
) -> WaitEntry:
    caller = held.caller if held is not None else None
    stage = held.stage if held is not None else stage
    kind = asked.kind if asked is not None else _kind(caller)
    since = asked.since if asked is not None and asked.since is not None else held.since if held is not None else None
    return WaitEntry(
        waiter=caller.sender if caller is not None else waiter,
        agent=name,
        kind=kind,
        stage=stage,
        state=state,
        ref=caller.ref if caller is not None else None,
        request=asked.request if asked is not None else None,
        origin=origin,
        since=_moment(since),
        deadline=_moment(_ends(stage, held, asked)),
        exclusive=held is not None and held.exclusive,
        node=known.node,
        reason=known.trouble or (known.spec.reason if known.spec is not None else None),
    )


def _kind(caller: Caller | None) -> WaitKind:
    if caller is None:
        return "tell"
    if caller.sender is None:
        return "ask" if caller.reply_to is not None else "tell"
    return "tell" if caller.tag is None else "turn" if caller.path else "tag"


def _ends(stage: WaitStage, held: _Held | None, asked: _Asked | None) -> float | None:
    """When a request ends by itself: a deadline counts until its turn begins, an end of the request or of the wait always."""
    if stage == "answered":
        return None
    bounds = [asked.ends if asked is not None else None, held.caller.end_by if held is not None else None]
    if held is None:
        bounds.append(asked.deadline if asked is not None else None)
    elif stage == "deferred":
        bounds.append(held.until)
    elif stage == "queued":
        bounds.append(held.caller.deadline)
    return min((bound for bound in bounds if bound is not None), default=None)


def _untold(name: str, known: AgentFacts, state: OwingState, told: Resolve) -> WaitEntry:
    stored = told.outcome.stored
    return WaitEntry(
        waiter=None,
        agent=name,
        kind="tell" if told.reply_to is None else "ask",
        stage="answered",
        state=state,
        ref=told.outcome.ref,
        since=_moment(None if stored is None else parse_time(stored)),
        node=known.node,
        reason=known.trouble or (known.spec.reason if known.spec is not None else None),
    )


def _moment(seconds: float | None) -> dt.datetime | None:
    return None if not seconds else dt.datetime.fromtimestamp(seconds, dt.UTC)


# --- one agent --------------------------------------------------------------------------------------------------------
def state_of(known: AgentFacts) -> OwingState:
    """What an agent is doing, as far as journal and registry tell."""
    spec, ledger = known.spec, known.ledger
    if spec is None:
        return "no_agent"
    if spec.status in {"stopped", "stopping"}:
        return spec.status
    if known.trouble is not None or (spec.reason is not None and spec.reason.code in STUCK):
        return "stuck"
    if spec.status == "failed" or (ledger is not None and ledger.failed is not None and ledger.phase not in ("stopped", "over")):
        return "failed"
    if known.node is None:
        return "not_placed"
    if ledger is not None and ledger.turning is not None:
        return "running"
    if ledger is not None and ledger.halted:
        return "halted"
    return "running" if _next(known) is not None else "idle"


def _next(known: AgentFacts) -> str | None:
    """The ref of the prompt whose turn runs if one runs, and begins next if none does (agentmesh.turn.next_input)."""
    ledger = known.ledger
    mail = next((item for item in known.prompts if ledger is None or _waits(ledger, item)), None)
    if ledger is None:
        return None if mail is None else mail.ref
    if ledger.turning is not None:
        return ledger.turning.key.rpartition(":")[2]
    if ledger.next is not None:
        return ledger.next.ref
    if any(entry.exclusive for entry in ledger.deferred.values()):
        mail = None
    if ledger.queue and (mail is None or ledger.queue[0].place < mail.seq):
        return ledger.queue[0].ref
    return None if mail is None else mail.ref


def _waits(ledger: Ledger, mail: Mail) -> bool:
    """Whether a stored prompt is still to be dealt with, and repeats no other."""
    if is_taken(ledger, mail.lane, mail.seq):
        return False
    return mail.sender is None or mail.origin is None or not is_witnessed(ledger, mail.sender, mail.lane, mail.origin)


def _held_by(known: AgentFacts, state: OwingState) -> Iterator[_Held]:
    """The requests that an agent has and has not answered."""
    ledger = known.ledger
    begun = ledger is not None and ledger.turning is not None
    running = _next(known) if begun or state == "running" else None
    for mail in known.prompts:
        if ledger is None or _waits(ledger, mail):
            caller = _caller(mail)
            yield _Held(caller=caller, stage="running" if mail.ref == running else "queued", since=_stored(caller))
    if ledger is None:
        return
    for item in (ledger.next, *ledger.queue):
        if item is not None and item.caller is not None:
            stage: WaitStage = "running" if item.ref == running else "queued"
            yield _Held(caller=item.caller, stage=stage, since=_stored(item.caller))
    for entry in ledger.deferred.values():
        caller = entry.caller
        since = _stored(caller) or entry.since
        yield _Held(caller=caller, stage="deferred", since=since, until=entry.until or caller.deadline, exclusive=entry.exclusive)


def _caller(mail: Mail) -> Caller:
    return Caller(
        ref=mail.ref,
        reply_to=mail.reply_to,
        sender=mail.sender,
        tag=mail.tag,
        path=mail.path,
        deadline=mail.deadline,
        stored=mail.stored,
        origin=mail.origin,
        end_by=mail.end_by,
    )


def _stored(caller: Caller) -> float | None:
    return None if caller.stored is None else parse_time(caller.stored)


def _asked_by(known: AgentFacts) -> Iterator[tuple[str, _Asked]]:
    """The requests that an agent has made, by origin."""
    ledger = known.ledger
    if ledger is None:
        return
    if ledger.turning is not None:
        request = ledger.turning.key.rpartition(":")[2]
        for wait in ledger.waits.values():
            if wait.outcome is None and wait.origin:
                yield (
                    wait.origin,
                    _Asked(agent=wait.agent, kind="turn", tag=wait.origin, since=wait.since, ends=wait.deadline, request=request),
                )
    for origin, one in ledger.awaiting.items():
        behalf = ledger.delegated.get(origin)
        yield (
            origin,
            _Asked(
                agent=one.agent,
                kind="tag",
                tag=one.tag,
                since=one.since or None,
                deadline=one.deadline,
                request=None if behalf is None else behalf.request,
            ),
        )
    for origin, other in ledger.delegated.items():
        if origin not in ledger.awaiting and not other.withdrawn:
            yield origin, _Asked(agent=other.agent, kind="tell", tag="", request=other.request)


def for_clients(ledger: Ledger) -> list[tuple[float, Resolve]]:
    """The outcomes for clients that a ledger has among its open effects, with the times of their records (seconds since the
    epoch). Those for agents go by mail, too."""
    opened = ledger.effects.values()
    mailed = {one.effect.outcome.ref for one in opened if isinstance(one.effect, SendMail) and one.effect.outcome is not None}
    return [(one.at, one.effect) for one in opened if isinstance(one.effect, Resolve) and one.effect.outcome.ref not in mailed]


# --- what concerns one agent ------------------------------------------------------------------------------------------
def concerning(found: Iterable[WaitEntry], agent: str) -> list[WaitEntry]:
    """Of `found` what waits for `agent`, directly or by way of others, and what it waits for itself, in the same order."""
    found = list(found)
    up = _reached(agent, [(entry.agent, entry.waiter) for entry in found if entry.waiter is not None])
    down = _reached(agent, [(entry.waiter, entry.agent) for entry in found if entry.waiter is not None])
    return [entry for entry in found if entry.agent in up or entry.waiter in down]


def _reached(start: str, edges: Iterable[tuple[str, str]]) -> set[str]:
    """`start`, and what can be reached from it."""
    ahead: dict[str, set[str]] = {}
    for source, target in edges:
        ahead.setdefault(source, set()).add(target)
    reached, todo = {start}, [start]
    while todo:
        new = ahead.get(todo.pop(), set()) - reached
        reached |= new
        todo += new
    return reached
