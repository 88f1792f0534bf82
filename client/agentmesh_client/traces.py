"""Who talked to whom, and what became of a request: read from the facts on the mesh's stream, and from journals
(docs/design/035-spans-are-told-by-records.md)."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing

import msgspec

from agentmesh import semconv
from agentmesh.edge.journal_reader import JournalReader
from agentmesh.edge.read import get_last_many, get_next, read
from agentmesh.edge.registry import Registry
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest, NotFound, NotPermitted, StreamMissing, UnreadableRecord
from agentmesh.ledger import fold
from agentmesh.names import agent_name
from agentmesh.subjects import EPOCH_KEY, Subjects
from agentmesh.trace.facts import spans_in
from agentmesh.trace.graph import Graph, GraphBy, graph_of
from agentmesh.trace.history import journal_spans
from agentmesh.trace.spans import Began, ToldSpan, decode_began
from agentmesh.trace.tree import Branch, merged, tree_of, walk
from agentmesh_client.directory import Directory
from agentmesh_client.retry import or_absent, patiently
from agentmesh_client.validation import seconds

log = logging.getLogger("agentmesh.client")

PAGE = 1024
"""Facts in one read."""
MOST_AGENTS = 10_000
"""Most journals that one report reads."""
MARGIN_S = 60.0
"""How long before the first span that is known of a trace its facts are looked for, in seconds."""
REPORT_S = 30.0
"""How long a report may take, in seconds."""
LOOK_S = 1.0
"""How often what happens meanwhile is read, in seconds."""
type TimeSpan = dt.timedelta | float
QUARTER, DAY, WEEK = dt.timedelta(minutes=15), dt.timedelta(days=1), dt.timedelta(days=7)
_TRACE_ID = re.compile(r"[0-9a-f]{32}")


class ReportSource(msgspec.Struct, frozen=True, kw_only=True):
    """What a report is made from."""

    facts: dict[str, int] = {}
    """Live nodes by their setting of facts (`off`, `attempts`, `all`)."""
    stream: bool = True
    """Whether the mesh keeps facts."""
    journals: int = 0
    """Journals that were read beside them, because not all nodes publish all facts."""
    refused: bool = False
    """They would have been read, and this user may not: what nodes do not publish is not shown."""

    def __str__(self) -> str:
        nodes = ", ".join(f"{number} with {setting}" for setting, number in sorted(self.facts.items())) or "none"
        parts = [f"facts of live nodes: {nodes}"]
        if not self.stream:
            parts.append("the mesh keeps none (run `mesh setup`)")
        if self.journals:
            parts.append(f"journals read: {self.journals}")
        if self.refused:
            parts.append("this user may not read journals, so only facts are shown (nodes publish all with --trace-facts all)")
        return "; ".join(parts)


class GraphReport(msgspec.Struct, frozen=True, kw_only=True):
    """Who talked to whom."""

    graph: Graph
    since: float
    """From when on (seconds since the epoch)."""
    source: ReportSource


class TraceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request."""

    trace: str
    """The trace's id: 32 hexadecimal digits."""
    branches: tuple[Branch, ...]
    source: ReportSource

    @property
    def over(self) -> bool:
        """Whether nothing of it runs or waits any more, as far as has been told."""
        found = [branch for _, branch in walk(self.branches)]
        return bool(found) and all(one.end is not None and (one.op != "send" or bool(one.below)) for one in found)


class FactStream:
    """Reads facts, and reads on from where it was."""

    def __init__(
        self, transport: Transport, subjects: Subjects, *, since: float, agent: str | None = None, only: str = ""
    ) -> None:
        """
        Args:
            since: from when on (seconds since the epoch).
            agent: only this agent's facts.
            only: the id of a trace: all else is passed over.
        """
        self._t = transport
        self._subjects = subjects
        self._filter = subjects.trace(agent_name(agent)) if agent is not None else subjects.trace_all()
        self._since = since
        self._only = only
        self._next = 0
        self.spans: dict[str, ToldSpan] = {}
        self.began: dict[str, Began] = {}
        self.journals: dict[str, int] = {}
        """Journals that were read beside them, by their agents: the newest sequence of each."""
        self.missing = False
        """Whether the mesh has no stream for them."""

    async def read(self) -> bool:
        """Read what has come since. Returns whether there was anything.

        Raises:
            Unavailable: it cannot be read now.
        """
        stream, before = self._subjects.stream("trace"), self._next
        if not before:
            try:
                await get_next(self._t, stream, self._filter, 1)
            except StreamMissing:
                self.missing = True
                return False
        while True:
            since = self._since if not self._next else None
            page = await read(self._t, stream, self._filter, from_seq=self._next, since=since, batch=PAGE)
            for message in page.messages:
                self._take(message.subject, message.data)
                self._next = message.seq + 1
            if not page.pending:
                return self._next != before

    def _take(self, subject: str, body: bytes) -> None:
        """Add the facts of a message. What any other publisher may have put there is passed over."""
        if self._only and self._only.encode() not in body:
            return
        agent, what = self._subjects.parse_trace(subject)
        try:
            if what == "began":
                began = decode_began(body)
                if began.agent == agent:
                    self.began[began.span] = began
            else:
                self.add(spans_in(agent, what, body, self._subjects.root))
        except msgspec.DecodeError:
            log.debug("a message on %s is no fact of a trace", subject)

    def add(self, spans: Iterable[ToldSpan]) -> None:
        """Add spans, each once."""
        for span in spans:
            if self._only in ("", span.trace):
                known = self.spans.get(span.id)
                self.spans[span.id] = span if known is None else merged((known, span))[span.id]

    def forget(self, before: float) -> None:
        """Forget what has ended before that time."""
        self.spans = {one: span for one, span in self.spans.items() if span.end >= before}


class Traces:
    """Makes reports of what facts and journals tell."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        directory: Directory,
        registry: Registry,
        *,
        now: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._directory = directory
        self._registry = registry
        self._journal = JournalReader(transport, subjects)
        self._now = now
        self._pause = pause

    async def graph(self, *, since: TimeSpan = QUARTER, by: GraphBy = "agent") -> GraphReport:
        """Who talked to whom.

        Args:
            since: how far back, a time or seconds.
            by: what the nodes of the graph are.

        Raises:
            BadRequest: `since` is no time span.
            Unavailable: it cannot be read now.
        """
        return await self._read(lambda: _first(self.watch_graph(since=since, by=by)))

    async def watch_graph(self, *, since: TimeSpan = QUARTER, by: GraphBy = "agent") -> AsyncGenerator[GraphReport]:
        """As `graph`, now and each time that something has come. It does not end by itself."""
        since_s = span_s(since)
        facts = FactStream(self._t, self._subjects, since=self._now() - since_s)
        first = True
        while True:
            moment = self._now()
            came = await facts.read()
            agents = await self._kinds()
            read = dict(facts.journals)
            source = await self._completed(facts, agents, moment - since_s)
            facts.forget(moment - since_s)
            if came or first or facts.journals != read:
                graph = graph_of(facts.spans.values(), by, agents)
                yield GraphReport(graph=graph, since=moment - since_s, source=source)
            first = False
            await self._pause(LOOK_S)

    async def trace(self, ref: str, *, since: TimeSpan = DAY) -> TraceReport:
        """What became of a request, over all agents.

        Args:
            ref: `AGENT/REF`, a ref, or the id of a trace.
            since: how far back it may have begun, a time or seconds.

        Raises:
            BadRequest: `ref` is none of these, or `since` is no time span.
            NotFound: nothing has told of it in that time.
            Unavailable: it cannot be read now.
        """
        return await self._read(lambda: _first(self.follow(ref, since=since)))

    async def follow(self, ref: str, *, since: TimeSpan = DAY) -> AsyncGenerator[TraceReport]:
        """As `trace`, now and each time that it has changed, until nothing of it runs any more."""
        since_s = span_s(since)
        trace, began = await self._find(ref, since_s)
        facts = FactStream(self._t, self._subjects, since=began - MARGIN_S, only=trace)
        before: tuple[Branch, ...] | None = None
        while True:
            await facts.read()
            source = await self._completed(facts, await self._kinds(), began - MARGIN_S)
            running = [one for one in facts.began.values() if one.trace == trace and await self._runs(one, facts)]
            branches = tree_of(facts.spans.values(), running)
            if branches != before:
                before = branches
                report = TraceReport(trace=trace, branches=branches, source=source)
                yield report
                if report.over:
                    return
            await self._pause(LOOK_S)

    async def spans(self, *, since: TimeSpan = WEEK) -> tuple[ToldSpan, ...]:
        """The spans that the mesh's stream keeps of that time, each once, the oldest first.

        Raises:
            BadRequest: `since` is no time span.
            StreamMissing: the mesh keeps none.
            Unavailable: they cannot be read now.
        """
        await self._read(lambda: self._registry.get(EPOCH_KEY))  # raises if there is no such mesh
        facts = FactStream(self._t, self._subjects, since=self._now() - span_s(since))
        await self._read(facts.read)
        if facts.missing:
            stream = self._subjects.stream("trace")
            raise StreamMissing(f"this mesh keeps no facts of traces: it has no stream {stream}; run `mesh setup`")
        return tuple(sorted(facts.spans.values(), key=lambda span: (span.start, span.id)))

    async def _read[T](self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a read that any replica answers."""
        return await patiently(lambda: or_absent(call, self._registry), REPORT_S)

    # --- what is looked for -------------------------------------------------------------------------------------------
    async def _find(self, ref: str, since_s: float) -> tuple[str, float]:
        """The id of the trace that `ref` means, and when its first span began.

        Raises:
            BadRequest: it is neither a ref nor the id of a trace.
            NotFound: nothing has told of it in that time.
        """
        agent, _, number = ref.rpartition("/")
        since = self._now() - since_s
        is_trace = _TRACE_ID.fullmatch(ref) is not None
        if not number:
            raise BadRequest(f"{ref!r} names no request: give AGENT/REF, a ref, or the id of a trace (32 hexadecimal digits)")
        facts = FactStream(self._t, self._subjects, since=since, agent=agent or None, only=ref if is_trace else "")
        await facts.read()
        kinds = await self._kinds()
        await self._completed(facts, {agent: kinds.get(agent, "")} if agent else kinds, since)
        mine = [one for one in facts.spans.values() if is_trace or one.attributes.get(semconv.REF) == number]
        begun = [one for one in facts.began.values() if (is_trace and one.trace == ref) or (not is_trace and one.ref == number)]
        times = [(span.start, span.trace) for span in mine] + [(one.started, one.trace) for one in begun]
        if not times:
            where = f"agent {agent!r}" if agent else "any agent"
            raise NotFound(
                f"nothing of {ref} has been told by {where} in the last {since_s / 60:g} min: it has not begun, is older "
                "(--since), or its node publishes no facts (--trace-facts)"
            )
        _, trace = max(times)  # a number may be that of several agents' own prompts: the newest counts
        return trace, min(time for time, one in times if one == trace)

    async def _runs(self, began: Began, facts: FactStream) -> bool:
        """Whether an attempt that began has not ended yet, as far as its agent's journal says."""
        if began.span in facts.spans:
            return False
        try:
            newest = await self._journal.read(began.agent)
        except (UnreadableRecord, StreamMissing):
            return False
        except NotPermitted:
            return True  # as far as facts say
        ledger, _ = fold(newest.records)
        return ledger is not None and ledger.incarnation == began.life and ledger.turn < began.turn

    # --- where it is from ---------------------------------------------------------------------------------------------
    async def _kinds(self) -> dict[str, str]:
        """The kinds of all agents, by their names."""
        return {agent.name: agent.spec.kind for agent in await self._directory.agents(stopped=True)}

    async def _completed(self, facts: FactStream, agents: Mapping[str, str], since: float) -> ReportSource:
        """Add to `facts` what journals tell of these agents since then, where the stream does not tell all: some node does not
        publish all of them, or nobody keeps them. Returns what the report is made from."""
        settings = Counter(node.lease.facts or "off" for node in await self._directory.nodes())
        refused = False
        if facts.missing or any(setting != "all" for setting in settings):
            try:
                await self._add_journals(facts, agents, since)
            except NotPermitted:  # an observer, who sees no content; facts have none
                refused = True
        return ReportSource(facts=dict(settings), stream=not facts.missing, journals=len(facts.journals), refused=refused)

    async def _add_journals(self, facts: FactStream, agents: Mapping[str, str], since: float) -> None:
        """Read the journals of these agents that have grown since then, and since they were read last."""
        subjects = {self._subjects.journal(name): name for name in sorted(agents)[:MOST_AGENTS]}
        newest, _ = await get_last_many(self._t, self._subjects.stream("journal"), list(subjects))
        for subject, message in newest.items():
            name = subjects[subject]
            if message.time < since or facts.journals.get(name) == message.seq:
                continue
            try:
                contents = await self._journal.read(name)
            except UnreadableRecord as error:
                log.warning("the journal of %s cannot be read: %s", name, error)
                continue
            told = journal_spans(name, agents[name], contents.records, root=self._subjects.root)
            facts.add(span for span in told if span.end >= since)
            facts.journals[name] = message.seq


async def _first[T](reports: AsyncGenerator[T]) -> T:
    """The first of them."""
    async with aclosing(reports):
        return await anext(reports)


def span_s(since: TimeSpan) -> float:
    """A time span in seconds.

    Raises:
        BadRequest: it is not above 0.
    """
    return seconds(since.total_seconds() if isinstance(since, dt.timedelta) else since, "since")
