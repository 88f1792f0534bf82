"""The turns that an agent has had, from its journal (case 246)."""

from __future__ import annotations

import datetime as dt

import msgspec

from agentmesh.control_values import OpenRequest
from agentmesh.edge.journal_reader import JournalReader
from agentmesh.edge.transport import Transport
from agentmesh.errors import StoreLost
from agentmesh.identity import told
from agentmesh.ledger import fold, open_requests
from agentmesh.names import agent_name
from agentmesh.records import Record, Resolve, SetInfo, TurnInfo
from agentmesh.subjects import Subjects
from agentmesh.wire import Outcome, parse_time
from agentmesh_client.results import ChangeEntry, ClosedRequest, TurnEntry
from agentmesh_client.spec_cache import SpecCache, unknown

MOST_SHOWN = 1000
"""Characters of an answer in a history."""


class Historian:
    """Reads journals. Needs no owner: the history of an agent that nobody runs can be read too."""

    def __init__(self, transport: Transport, subjects: Subjects, specs: SpecCache) -> None:
        self._journal = JournalReader(transport, subjects)
        self._specs = specs

    async def history(self, agent: str, *, content: bool) -> list[TurnEntry]:
        """See `Mesh.history`."""
        found = await self._records(agent)
        ledger, _ = fold(found)
        opened = {request.ref: request for request in open_requests(ledger)} if ledger is not None else {}
        records = [record for _, record in found]
        closed = closings(records)
        return [_entry(turn, content, opened.get(turn.ref), closed.get(turn.number)) for turn in turns(records)]

    async def changes(self, agent: str) -> list[ChangeEntry]:
        """See `Mesh.configuration_history`."""
        return [_change(info) for info in changes([record for _, record in await self._records(agent)])]

    async def _records(self, agent: str) -> list[tuple[int, Record]]:
        found = await self._journal.read(agent_name(agent))
        if found.wiped:
            raise StoreLost(f"the journal of {agent!r} was rolled up by a message that is not the mesh's: its records are gone")
        if not found.records and await self._specs.read(agent) is None:
            raise unknown(agent)
        return found.records


def turns(records: list[Record]) -> list[TurnInfo]:
    """The turns in `records` (oldest first), with the number of takeovers that each has been through.

    A snapshot replaces the records before it and remembers the newest of their turns; a tombstone does so until it expires, or
    until the next life of the name begins. An `activated` record counts as a takeover of the turn that follows it, unless the
    agent had just begun its life, or the same process has woken it. One behind a `rest` counts if the turn's prompt is older than
    that owner's placement: it ran, or waited, where the agent was before.
    """
    known: dict[int, TurnInfo] = {}
    takeovers = 0
    moves: list[float] = []
    """When the agent was placed elsewhere while its newest record showed it at rest."""
    before: Record | None = None
    for record in records:
        if record.snapshot is not None:
            known.update((turn.number, known.get(turn.number, turn)) for turn in record.snapshot.history)
        if record.kind == "activated" and before is not None and _is_takeover(before, record):
            if before.kind != "rest":
                takeovers += 1
            elif record.placed is not None:
                moves.append(record.placed)
        if record.kind == "rest":
            takeovers, moves = 0, []
        if record.turn is not None:
            takeovers += sum(_is_older(record, record.turn.ref, placed) for placed in moves)
            known[record.turn.number] = msgspec.structs.replace(record.turn, takeovers=takeovers)
            takeovers, moves = 0, []
        before = record
    return [known[number] for number in sorted(known)]


def closings(records: list[Record]) -> dict[int, Outcome]:
    """The outcomes of requests that an agent had deferred, by the number of the turn that did: another record than that turn's
    (and no later turn's for the same request) ends them."""
    deferred: dict[str, int] = {}
    found: dict[int, Outcome] = {}
    for record in records:
        outcomes = {effect.outcome.ref: effect.outcome for effect in record.effects if isinstance(effect, Resolve)}
        turn = record.turn
        if turn is not None:
            deferred.pop(turn.ref, None)
        found.update((deferred.pop(ref), outcome) for ref, outcome in outcomes.items() if ref in deferred)
        if turn is not None and turn.error is None and turn.ref not in outcomes:
            deferred[turn.ref] = turn.number
    return found


def _is_older(record: Record, ref: str, moment: float) -> bool:
    """Whether the prompt that this record answers was stored before `moment`, as far as its outcome tells."""
    told = [effect.outcome.stored for effect in record.effects if isinstance(effect, Resolve) and effect.outcome.ref == ref]
    return any(stored is not None and parse_time(stored) < moment for stored in told)


def _is_takeover(before: Record, record: Record) -> bool:
    """Whether another process has taken up the life that `before` belongs to."""
    same_owner = (before.boot, before.generation) == (record.boot, record.generation)
    return before.incarnation == record.incarnation and not same_owner


def changes(records: list[Record]) -> list[SetInfo]:
    """The changes of the configuration in `records` (oldest first), of the newest life there."""
    known: dict[int, SetInfo] = {}
    life = ""
    for record in records:
        if record.incarnation != life:
            known, life = {}, record.incarnation
        told = record.snapshot.sets if record.snapshot is not None else ()
        told = told if record.change.sets is msgspec.UNSET else record.change.sets
        known.update((info.number, info) for info in told)
    return [known[number] for number in sorted(known)]


def _change(info: SetInfo) -> ChangeEntry:
    return ChangeEntry(number=info.number, at=_moment(info.at), after_turn=info.turn, node=info.node, values=info.values)


def _entry(turn: TurnInfo, content: bool, opened: OpenRequest | None, closed: Outcome | None) -> TurnEntry:
    answer = closed.text[:MOST_SHOWN] if closed is not None and closed.ok and content and closed.text is not None else None
    return TurnEntry(
        turn=turn.number,
        ref=turn.ref,
        started=_moment(turn.started),
        ended=_moment(turn.ended),
        node=turn.node,
        generation=turn.generation,
        takeovers=turn.takeovers,
        sender=turn.sender,
        chain=told(turn.chain),
        label=turn.label,
        error=turn.error,
        usage=turn.usage,
        deferred=opened,
        closed=None if closed is None else ClosedRequest(error=closed.error, answer=answer),
        prompt=turn.prompt if content else None,
        answer=turn.answer if content else None,
        tools=turn.tools,
        note=turn.note if content else None,
        code=turn.code,
    )


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
