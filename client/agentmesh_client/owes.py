"""Who waits for whom now, read from journals, mail and the registry; `agentmesh_client.wait_graph` makes the graph of it.

No process is asked, so the answer is the same while an agent has no owner. The newest record of an agent at rest says how many
requests it keeps open, and one read brings a thousand such records: only the agents that are not at rest are read whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from itertools import batched, islice
from typing import NamedTuple

from msgspec import structs

from agentmesh.edge.journal_reader import JournalReader, is_marked
from agentmesh.edge.manage import count_all, stream_state
from agentmesh.edge.read import MAX_MATCHES, StoredMessage, get_last, get_last_many, read_pages
from agentmesh.edge.retry import CALL_RETRY
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Transport
from agentmesh.errors import StoreLost, Unavailable, UnreadableRecord
from agentmesh.ledger import fold
from agentmesh.names import agent_name
from agentmesh.records import Ledger, is_rest, record_in
from agentmesh.subjects import LANES, StreamRole, Subjects
from agentmesh.wire import ErrorBody, Mail, decode_mail
from agentmesh_client.directory import Directory
from agentmesh_client.results import WaitGraph
from agentmesh_client.spec_cache import unknown
from agentmesh_client.wait_graph import AgentFacts, for_clients, wait_graph

IN_FLIGHT = 8
"""Agents that are read at the same time."""
TRIES = 10
"""How often a replica that is behind is asked again: some seconds."""
PROMPT_LANES = frozenset(name for name, lane in LANES.items() if lane.kind == "prompt")
ANSWER_LANES = frozenset(("peer-answer", "peer-notify"))
_HEAD = 80
"""Bytes of a record in which its kind stands."""


class _Lane(NamedTuple):
    """A lane that holds mail."""

    newest: StoredMessage
    alone: bool
    """There is no other message in it."""


type _Lanes = Mapping[str, _Lane]


class _Survey(NamedTuple):
    """What is known of all agents without reading any of them whole."""

    facts: dict[str, AgentFacts]
    lanes: dict[str, dict[str, _Lane]]
    """Of each name those that hold prompts or answers."""
    newest: dict[str, StoredMessage]
    """The newest messages of the journals."""
    time: float
    """When it was made, by the server's clock (seconds since the epoch)."""


class WaitReader:
    """Reads who waits for whom."""

    def __init__(self, transport: Transport, subjects: Subjects, directory: Directory) -> None:
        self._t = transport
        self._subjects = subjects
        self._directory = directory
        self._journal = JournalReader(transport, subjects)

    async def read(self, agent: str | None = None) -> WaitGraph:
        """See `Mesh.owes`."""
        if agent is not None:
            agent_name(agent)
        survey = await self._survey()
        busy = [name for name in survey.facts if _is_busy(survey.newest.get(name), survey.lanes.get(name, {}))]
        facts = survey.facts | await self._read(survey, busy)
        facts |= await self._untold(facts, busy, survey.time)
        graph = wait_graph(facts, agent, read=len(busy))
        if agent is not None and not graph.waits and (agent not in facts or facts[agent].spec is None):
            raise unknown(agent)
        return graph

    # --- all agents -------------------------------------------------------------------------------------------------
    async def _survey(self) -> _Survey:
        stored = await count_all(self._t, self._subjects.stream("mail"))  # first: a name that is started meanwhile is known then
        live = {node.id for node in await self._directory.nodes()}
        entries = await self._directory.agents(stopped=True)
        facts = {one.name: AgentFacts(spec=one.spec, node=one.node if one.node in live else None) for one in entries}
        lanes: dict[str, dict[str, _Lane]] = {}
        for subject, message in (await self._last("mail", self._of_requests(stored.subjects), stored.last_seq)).items():
            lane, name = self._subjects.parse_lane(subject) or ("", "")
            alone = stored.subjects[subject] == 1 and message.seq <= stored.last_seq
            lanes.setdefault(name, {})[lane] = _Lane(message, alone)
        # Mail for a name that no agent has waits for one (docs/architecture.md#mail-for-nobody).
        facts |= {name: AgentFacts() for name, found in lanes.items() if name not in facts and PROMPT_LANES & found.keys()}
        by_subject = {self._subjects.journal(name): name for name in facts}
        last = (await stream_state(self._t, self._subjects.stream("journal"))).last_seq
        fresh = {self._subjects.journal(one.name) for one in entries if not one.spec.ran}
        records = await self._last("journal", by_subject, last, perhaps=fresh)
        newest = {by_subject[subject]: message for subject, message in records.items()}
        return _Survey(facts, lanes, newest, stored.time)

    def _of_requests(self, stored: Iterable[str]) -> list[str]:
        """Of the subjects of the mail stream those that hold prompts and answers."""
        found = ((subject, self._subjects.parse_lane(subject)) for subject in stored)
        lanes = PROMPT_LANES | ANSWER_LANES
        # Anybody can store a message whose subject, as a filter, would match those of others.
        named = (subject for subject, parsed in found if parsed is not None and parsed[0] in lanes)
        return [subject for subject in named if "*" not in subject and ">" not in subject]

    async def _last(
        self, role: StreamRole, subjects: Iterable[str], up_to: int, *, perhaps: Container[str] = ()
    ) -> dict[str, StoredMessage]:
        """The newest message of each of these subjects; all is seen that is stored up to the sequence `up_to`.

        Args:
            perhaps: subjects that may well have no message: of those a replica's word is taken.

        Raises:
            Unavailable: the replica that answers is behind for a while.
        """
        stream, found = self._subjects.stream(role), dict[str, StoredMessage]()
        for some in batched(subjects, MAX_MATCHES):
            found |= await self._last_of(stream, some, up_to)
            # A reply may be lost on the way, and a listing of a replica may lack one.
            for subject in some:
                if subject not in found and subject not in perhaps and (message := await get_last(self._t, stream, subject)):
                    found[subject] = message
        return found

    async def _last_of(self, stream: str, subjects: Sequence[str], up_to: int) -> dict[str, StoredMessage]:
        for pause in islice(CALL_RETRY, TRIES):
            found, seen = await get_last_many(self._t, stream, subjects)
            if seen >= up_to or not seen:  # where it has none of them, it does not say how far it is
                return found
            await asyncio.sleep(pause)
        raise Unavailable(f"a replica of {stream} is behind its leader for a while now; try again")

    # --- those that are not at rest ---------------------------------------------------------------------------------
    async def _read(self, survey: _Survey, busy: Iterable[str]) -> dict[str, AgentFacts]:
        """What is known of these agents once their journals and their mail are read."""
        names = iter(list(busy))
        found: dict[str, AgentFacts] = {}

        async def work() -> None:
            for name in names:
                written = name in survey.newest
                found[name] = await self._agent(name, survey.facts[name], survey.lanes.get(name, {}), written=written)

        tasks = [asyncio.ensure_future(work()) for _ in range(IN_FLIGHT)]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_and_wait(*tasks)
        return found

    async def _agent(self, name: str, known: AgentFacts, lanes: _Lanes, *, written: bool) -> AgentFacts:
        """What is known of an agent; `written`: its journal is not empty."""
        # In this order: mail that is consumed and purged between the two reads would be in neither. What is consumed stays stored
        # for a while (docs/architecture.md#consumed-mail), so it is seen as it was.
        ledger: Ledger | None = None
        trouble: ErrorBody | None = None
        try:
            ledger, _ = fold((await self._journal.read(name)).records) if written else (None, 0)
        except (UnreadableRecord, StoreLost) as error:
            trouble = ErrorBody.of(error)
        prompts: list[Mail] = []
        answers: set[tuple[str, str]] = set()
        for lane, held in lanes.items():
            position = ledger.positions.get(lane, 0) if ledger is not None else 0
            async for message in self._beyond(position, self._subjects.lane(lane, name), held):
                # Without its body, which may be large.
                mail = decode_mail(LANES[lane], message.seq, b"", message.headers, root=self._subjects.root)
                if lane in PROMPT_LANES:
                    prompts.append(mail)
                elif mail.sender is not None and mail.tag is not None:
                    answers.add((mail.sender, mail.tag))
        prompts.sort(key=lambda mail: mail.seq)
        return structs.replace(known, ledger=ledger, trouble=trouble, prompts=tuple(prompts), answers=frozenset(answers))

    async def _beyond(self, position: int, subject: str, held: _Lane) -> AsyncIterator[StoredMessage]:
        """What lies in a lane beyond this position."""
        if held.newest.seq <= position:
            return
        if held.alone:
            yield held.newest
            return
        async for page in read_pages(self._t, self._subjects.stream("mail"), subject, from_seq=position + 1):
            for message in page:
                yield message

    async def _untold(self, facts: Mapping[str, AgentFacts], busy: Iterable[str], now: float) -> dict[str, AgentFacts]:
        """Those of these agents that have answered clients in their journals, while nobody has told these yet: an owner may have
        died between the two."""
        told = {
            self._subjects.result(name, effect.outcome.ref): (name, at, effect)
            for name in busy
            if (ledger := facts[name].ledger) is not None
            for at, effect in for_clients(ledger)
        }
        if not told:
            return {}
        state = await stream_state(self._t, self._subjects.stream("result"))
        kept_s = state.config.get("max_age", 0) / 1e9
        stored = await self._last("result", told, state.last_seq)
        found: dict[str, AgentFacts] = {}
        for subject, (name, at, effect) in told.items():
            # Older results are not kept, so it cannot be told whether these were.
            if subject not in stored and (not kept_s or at + kept_s > now):
                known = found.get(name, facts[name])
                found[name] = structs.replace(known, untold=(*known.untold, effect))
        return found


def _is_busy(newest: StoredMessage | None, lanes: _Lanes) -> bool:
    """Whether an agent must be read: it is not at rest, keeps a request open, or has prompts that wait."""
    if newest is None:
        return not PROMPT_LANES.isdisjoint(lanes)
    positions = _positions(newest)
    if positions is None:
        return True
    return any(lanes[lane].newest.seq > positions.get(lane, 0) for lane in PROMPT_LANES & lanes.keys())


def _positions(newest: StoredMessage) -> Mapping[str, int] | None:
    """The lane positions of an agent that keeps nothing open, as its newest record says; None if that does not say so."""
    if not is_rest(newest.data) and b'"tombstone"' not in newest.data[:_HEAD]:
        return None  # cheaper than decoding all of them
    try:
        record = record_in(newest.data, marked=is_marked(newest))
    except UnreadableRecord:
        return None
    if record is None:
        return None
    if record.kind == "rest" and record.open == 0:
        return record.positions or {}
    if record.kind == "tombstone" and record.snapshot is not None and not record.effects:
        return record.snapshot.positions
    return None
