"""Tells what the owners before could not tell: of attempts that they did not end, and of records whose facts may have died with
them (docs/design/039-attempts-that-nobody-ended.md).

It is done beside the agent's work, for a few agents at a time, and delays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from agentmesh.edge.failures import Uncertain
from agentmesh.edge.publish import store
from agentmesh.edge.read import StoredMessage, get_last, read, read_by_leader
from agentmesh.edge.registry import decode_node
from agentmesh.edge.retry import UPKEEP_RETRY
from agentmesh.errors import BadRequest, MeshError, StreamMissing, Unavailable
from agentmesh.ledger import fold
from agentmesh.subjects import node_key
from agentmesh.trace.facts import spans_in
from agentmesh.trace.lost import MARGIN_S, Taken, Unended, abandoned, ended_in, last_records, nodes_in, since, unended
from agentmesh.trace.spans import Began, Spans, decode_began, encode_fact
from agentmesh_node.services import Services
from agentmesh_node.telemetry.trace_facts import Told, end_id, may_tell, parts

log = logging.getLogger("agentmesh.node")

TRIES = 60
"""How often the store is asked, within some two minutes. If it does not answer, what is known without it is told."""
MISSED = 5
"""How often the stream may be unknown until that is believed."""
FENCED_S = 10.0
"""How long an owner that was superseded leaves its attempts to the next one."""
LOOKED_BACK_S = 30.0
"""How long an agent may be kept from its rest until its owners before are told of."""
FEW = 32
"""So many facts are read one by one from the stream's leader."""
MOST_FACTS = 4096
"""About as many facts of one agent are read at most."""


def look_back(services: Services, taken: Taken) -> asyncio.Task[None] | None:
    """An agent was taken: tell soon what the owner before has left untold, if there was another one.

    Returns: what does that, if anything is to be done. Until it is over, but for `LOOKED_BACK_S` at most, the agent's journal
    must not say that nothing is left to do: if this process ends meanwhile, an agent that sleeps may get its next owner late.
    """
    return services.spawn(_tell(services, taken)) if services.traces.traced and taken.by_another else None


def tell_if_fenced(services: Services, agent: str, generation: int) -> None:
    """An owner of this process has ended: see to it that its attempts are told of which have said that they began, if another one
    has taken its place. That one does it, and exports them, unless they began when it had looked already."""
    if services.traces.begun_of(agent, generation):
        services.spawn(_tell_if_fenced(services, agent, generation))


async def tell_all_fenced(services: Services, within_s: float) -> None:
    """This process ends, and cannot wait as `tell_if_fenced` does: see to it now, for `within_s` seconds at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            for agent, generation in services.traces.fenced():
                await _told_if_fenced(services, agent, generation)


async def _tell_if_fenced(s: Services, agent: str, generation: int) -> None:
    for _ in range(TRIES):
        await asyncio.sleep(FENCED_S)
        if s.traces.owned(agent) == generation:
            return  # this process goes on with it, and may have begun them again
        if await _told_if_fenced(s, agent, generation):
            return
    s.traces.forgotten(agent, generation)


async def _told_if_fenced(s: Services, agent: str, generation: int) -> bool:
    """Tell of the attempts of that owner, whose place another one has taken, if nobody has. Returns False where another one has
    not, or that cannot be seen now."""
    try:
        contents = await s.journal.read(agent)
    except MeshError:
        return False
    ledger, _ = fold(contents.records)
    if ledger is not None and (ledger.generation, ledger.boot) == (generation, s.boot):
        return False
    begun = s.traces.forgotten(agent, generation)
    over = ended_in(agent, ledger, contents.records) if ledger is not None else set()
    over |= await _told(s, agent, since=min((fact.started for fact in begun), default=0.0) - MARGIN_S)
    for fact in begun:
        if fact.span not in over:
            span = abandoned(fact, at=s.now(), epoch=s.epoch, root=s.settings.root)
            await _store(s, s.subjects.trace(agent, "spans"), encode_fact(Spans(spans=(span,))), end_id(span.id))
    return True


async def _tell(s: Services, taken: Taken) -> None:
    await asyncio.sleep(0)  # the agent's own work goes first
    if _repeats(s, taken):
        _repeat(s, taken)
    async with s.looking_back:
        begun: dict[int, Began] = {}
        kept = s.traces.facts != "off"
        if kept:
            try:
                begun = await _begun(s, taken)
            except StreamMissing:
                kept = False
        alive = await _alive(s, nodes_in(taken, begun.values()))
        found = unended(taken, tuple(begun.values()), alive)
        if found:
            told = await _told_since(s, taken, found, begun) if kept else set()
            for attempt in found:
                if attempt.attempt not in told:
                    await _tell_attempt(s, taken.agent, attempt, kept=kept)


def _repeats(s: Services, taken: Taken) -> bool:
    return s.traces.facts == "all" and taken.died


# --- what is known ----------------------------------------------------------------------------------------------------
async def _begun(s: Services, taken: Taken) -> dict[int, Began]:
    """The facts that attempts of the agent began, by their sequences; none if they cannot be read.

    Raises:
        StreamMissing: there is no stream of facts.
    """
    subject = s.subjects.trace(taken.agent, "began")
    found: dict[int, Began] = {}
    for message in await _read(s, subject, since=since(taken)):
        with contextlib.suppress(msgspec.DecodeError):  # any publisher may write anything there
            found[message.seq] = decode_began(message.data)
    return found


async def _told_since(s: Services, taken: Taken, found: tuple[Unended, ...], begun: dict[int, Began]) -> set[str]:
    """The ids of the spans that the stream has of the agent since the first of these attempts began."""
    ids = {attempt.attempt for attempt in found}
    first = min((seq for seq, fact in begun.items() if fact.span in ids), default=0)
    return await _told(s, taken.agent, from_seq=first, since=None if first else found[0].spans[0].start - MARGIN_S)


async def _told(s: Services, agent: str, *, from_seq: int = 0, since: float | None) -> set[str]:
    """The ids of the spans that the stream has of the agent, from there on."""
    told: set[str] = set()
    for what in ("spans", "record"):
        for message in await _read(s, s.subjects.trace(agent, what), from_seq=from_seq, since=since):
            with contextlib.suppress(msgspec.DecodeError):
                told.update(span.id for span in spans_in(agent, what, message.data, s.settings.root))
    return told


async def _read(s: Services, subject: str, *, from_seq: int = 0, since: float | None) -> list[StoredMessage]:
    """What the stream of facts has on a subject; nothing if it cannot be read.

    Raises:
        StreamMissing: there is none.
    """
    pauses = iter(UPKEEP_RETRY)
    for number in range(TRIES):
        try:
            return await _read_all(s, subject, from_seq, since)
        except StreamMissing:
            if number > MISSED:  # a server that has just started may not know it yet
                raise
        except Unavailable:
            pass
        await asyncio.sleep(next(pauses))
    return []


async def _read_all(s: Services, subject: str, from_seq: int, since: float | None) -> list[StoredMessage]:
    """
    Raises:
        Unavailable: it cannot be read now, or a replica has not all of it yet.
    """
    stream = s.subjects.stream("trace")
    last = await get_last(s.transport, stream, subject)
    if last is None or last.seq < from_seq or (since is not None and last.time < since):
        return []  # as of most agents
    found: list[StoredMessage] = []
    page = await read(s.transport, stream, subject, from_seq=from_seq, since=since)
    while page.messages:
        found += page.messages
        reached = page.messages[-1].seq
        if reached >= last.seq or len(found) >= MOST_FACTS:
            break
        page = await read(s.transport, stream, subject, from_seq=reached + 1)
    else:
        raise Unavailable("a replica has not all facts of the agent yet; read again")
    if len(found) > FEW:
        return found
    # A listing may lack one (docs/nats.md#what-a-killed-server-forgets), if seldom the same one twice: the leader has them all.
    again = await read(s.transport, stream, subject, from_seq=from_seq, since=since, batch=1)
    first = min(message.seq for message in (*found[:1], *again.messages))
    return [message async for message in read_by_leader(s.transport, stream, subject, from_seq=first)]


async def _alive(s: Services, nodes: dict[str, str]) -> set[str]:
    """Which of these processes (their nodes, by boot) are alive, as far as their leases say."""
    found: set[str] = set()
    for node in sorted(set(nodes.values())):
        try:
            entry = await s.registry.get(node_key(node))
            if entry is not None:
                found.add(decode_node(entry).boot)
        except (BadRequest, Unavailable):
            continue
    return found


# --- what is told -----------------------------------------------------------------------------------------------------
async def _tell_attempt(s: Services, agent: str, attempt: Unended, *, kept: bool) -> None:
    """Tell of an attempt, unless another owner has told of it meanwhile. `kept`: facts are."""
    first = True
    if kept:
        for part, body in parts(attempt.spans, s.transport.max_payload):
            first = await _store(s, s.subjects.trace(agent, "spans"), body, f"{end_id(attempt.attempt)}{part}") and first
    if first:
        s.traces.export(attempt.spans)


async def _store(s: Services, subject: str, body: bytes, fact: str) -> bool:
    """Store a fact. Returns whether nobody else has, as far as that is known."""
    pauses, sent = iter(UPKEEP_RETRY), False
    for _ in range(TRIES):
        try:
            stored = await store(s.transport, subject, body, msg_id=fact)
        except Uncertain:
            sent = True
        except Unavailable:
            pass
        except MeshError as error:
            log.warning("a fact of a trace was refused: %s", error, extra={"subject": subject})
            return True
        else:
            return sent or not stored.duplicate
        await asyncio.sleep(next(pauses))
    return True


def _repeat(s: Services, taken: Taken) -> None:
    """Publish the facts of the last records before an owner died. What is there already the server drops by its id."""
    for before, record, seq in last_records(taken):
        if not may_tell(record):
            continue
        s.traces.post_record(Told(taken.agent, taken.kind, before, record, seq))
