"""Tells the spans of an agent's records once these are committed: to the stream of facts, and to what exports spans.

Nobody waits for it (docs/design/035-spans-are-told-by-records.md): facts are gathered for a moment and sent as core messages, and
one that cannot be sent is dropped and counted. A mesh without that stream works as before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agentmesh.edge.transport import Transport
from agentmesh.records import Inner, Ledger, Record, SendMail
from agentmesh.subjects import Subjects
from agentmesh.trace.facts import record_fact
from agentmesh.trace.lost import abandoned, attempts_ended, inner_of_lost
from agentmesh.trace.spans import Began, Spans, ToldSpan, TraceFacts, encode_fact
from agentmesh.trace.told import spans_told
from agentmesh.wire import MSG_ID

log = logging.getLogger("agentmesh.node")

type Export = Callable[[tuple[ToldSpan, ...]], None]
"""Hands spans to what exports them. It must be quick, and must not raise."""

_ALL_DONE = frozenset(("rest", "stopped", "tombstone"))
"""Kinds of records behind which no input is tried again."""
_HEADERS = 256
"""Bytes of a fact's headers, at most."""


class Told(NamedTuple):
    """A record that was committed."""

    agent: str
    kind: str
    before: Ledger | None
    record: Record
    seq: int


class SpanTeller:
    """Tells spans, for the owners of one node."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        facts: TraceFacts,
        *,
        later: Callable[[Callable[[], None]], object] = lambda action: action(),
        export: Export | None = None,
        ratio: float = 1.0,
    ) -> None:
        """
        Args:
            facts: which facts it publishes.
            later: calls what it is given in a moment: so long are records gathered.
            export: takes spans to be exported; None if none are.
            ratio: the share of the traces begun here that is sampled.
        """
        self._t = transport
        self._subjects = subjects
        self._later = later
        self._export = export
        self.ratio = ratio
        """The share of the traces begun here that is sampled."""
        self._gathered: list[Told] = []
        self.begun: dict[str, dict[str, Began]] = {}
        """By agent: the attempts that have said that they began, and that no record of this process has ended."""
        self._owned: dict[str, int] = {}
        """By agent: the generation of this process's owner."""
        self.facts: TraceFacts = facts
        """Which facts it publishes."""
        self.traced = facts != "off" or export is not None
        """Whether records tell their spans, and attempts are watched."""
        self.telling = facts == "all" or export is not None
        """Whether it tells of records that end no attempt outside of the history."""

    def committed(self, agent: str, kind: str, before: Ledger | None, record: Record, seq: int) -> None:
        """Tell the spans of a record that was committed, soon.

        Args:
            agent: whose record it is.
            kind: that agent's kind.
            before: the ledger that the record changed.
            record: it.
            seq: its sequence in the journal.
        """
        if self.begun and (self.begun.get(agent) is not None):
            self._end_open(agent, record)
        if not (self.telling or (record.attempt is not None and self.traced)) or not may_tell(record):
            return
        if self.facts != "all" and record.attempt is None and _is_unsampled(record):
            return
        self._gathered.append(Told(agent, kind, before, record, seq))
        if len(self._gathered) == 1:
            self._later(self.publish)

    def publish(self) -> None:
        """Tell what was gathered."""
        gathered, self._gathered = self._gathered, []
        for told in gathered:
            # Without its fact nobody would find the end of an attempt that is not in the history and has said that it began.
            if self.facts == "all" or (self.facts == "attempts" and told.record.attempt is not None):
                self.post_record(told)
            if self._export is not None:
                self.export(self.spans_of(told))

    def post_record(self, told: Told) -> None:
        """Publish what a record has to say of spans. One that is too large for a message is published as its spans are."""
        try:
            body = record_fact(told.kind, told.before, told.record, told.seq, self.ratio)
        except Exception:
            log.exception("the fact of a record cannot be made", extra={"agent": told.agent, "seq": told.seq})
            return
        if body is None:
            return
        if len(body) <= self._t.max_payload - _HEADERS:
            self._post(self._subjects.trace(told.agent, "record"), body, fact_id(told.agent, told.record, told.seq))
        elif spans := self.spans_of(told):
            self.post(told.agent, fact_id(told.agent, told.record, told.seq), spans)

    def spans_of(self, told: Told) -> tuple[ToldSpan, ...]:
        """The spans that a record tells. A defect in that costs the spans alone."""
        try:
            return spans_told(
                told.agent, told.kind, told.before, told.record, told.seq, root=self._subjects.root, ratio=self.ratio
            )
        except Exception:
            log.exception("the spans of a record cannot be told", extra={"agent": told.agent, "seq": told.seq})
            return ()

    def export(self, spans: tuple[ToldSpan, ...]) -> None:
        """Export those that are sampled."""
        if self._export is not None and (sampled := tuple(span for span in spans if span.sampled)):
            self._export(sampled)

    def began(self, fact: Began, name: str = "began") -> None:
        """Publish that an attempt began. `name` tells one fact about an attempt from another."""
        if fact.left:
            self.begun.pop(fact.agent, None)  # the next owner tells
        else:
            self.begun.setdefault(fact.agent, {})[fact.span] = fact
        self._post(self._subjects.trace(fact.agent, "began"), encode_fact(fact), f"{fact.span}-{name}")

    def left(self, fact: Began, open: tuple[Inner, ...], epoch: int) -> None:
        """Publish that an attempt was handed over: the next owner tells of it. `open`: its calls that no step has, which only
        this owner knows."""
        self.began(fact, "left")
        if open:
            spans = inner_of_lost(fact, open, epoch=epoch, root=self._subjects.root)
            self.post(fact.agent, f"{fact.span}-open", spans)
            self.export(spans)

    def owns(self, agent: str, generation: int, *, owned: bool) -> None:
        """This process acts for the agent now, or no more."""
        if owned:
            self._owned[agent] = generation
        elif self._owned.get(agent) == generation:
            del self._owned[agent]

    def begun_of(self, agent: str, generation: int) -> list[Began]:
        """The attempts of this generation that have said that they began, and that no record of this process has ended."""
        return [fact for fact in self.begun.get(agent, {}).values() if fact.generation == generation]

    def owned(self, agent: str) -> int | None:
        """The generation by which this process acts for the agent; None if it does not."""
        return self._owned.get(agent)

    def forgotten(self, agent: str, generation: int) -> list[Began]:
        """The same, which are forgotten here: another owner has taken the agent."""
        begun = self.begun_of(agent, generation)
        for fact in begun:
            del self.begun[agent][fact.span]
        if not self.begun.get(agent, True):
            del self.begun[agent]
        return begun

    def fenced(self) -> list[tuple[str, int]]:
        """Agents, and generations of theirs for which this process acts no more, whose attempts have said that they began."""
        found = {(agent, fact.generation) for agent, begun in self.begun.items() for fact in begun.values()}
        return sorted(one for one in found if self._owned.get(one[0]) != one[1])

    def _end_open(self, agent: str, record: Record) -> None:
        """A record of this process is committed: it may have ended an attempt that has said that it began."""
        begun = self.begun[agent]
        for attempt in attempts_ended(agent, record):
            begun.pop(attempt, None)
        if record.kind in _ALL_DONE:
            for fact in begun.values():
                if (fact.generation, fact.boot) == (record.generation, record.boot):
                    span = abandoned(fact, at=record.at, epoch=record.epoch, root=self._subjects.root)
                    self.post(agent, end_id(fact.span), (span,))
                    self.export((span,))
            begun.clear()
        if not begun:
            del self.begun[agent]

    def post(self, agent: str, fact: str, spans: tuple[ToldSpan, ...]) -> None:
        """Publish spans of one agent, under this id of the fact."""
        subject = self._subjects.trace(agent, "spans")
        for part, body in parts(spans, self._t.max_payload - _HEADERS):
            self._post(subject, body, f"{fact}{part}")

    def _post(self, subject: str, body: bytes, fact: str) -> None:
        self._t.post(subject, body, headers={MSG_ID: fact})


def may_tell(record: Record) -> bool:
    """Whether a record can tell a span at all: most that do not are known by this."""
    return bool(record.turn is not None or record.effects or record.handled or record.attempt is not None)


def _is_unsampled(record: Record) -> bool:
    """Whether it is known without a look at its spans that none of a record is sampled, which has ended no attempt outside of the
    history: it has those of a turn, and sends no mail."""
    turn = record.turn
    if turn is None or turn.trace is None or turn.trace.sampled:
        return False
    return not any(handled.sampled for handled in record.handled) and not any(type(e) is SendMail for e in record.effects)


def fact_id(agent: str, record: Record, seq: int) -> str:
    """The message id of the fact that has the spans of a record: a repetition has the same."""
    return f"{agent}.{record.epoch}.{seq}"


def end_id(attempt: str) -> str:
    """The message id of the fact that ends the attempt with this span, where no record of its owner does."""
    return f"{attempt}-end"


def parts(spans: tuple[ToldSpan, ...], limit: int) -> Iterable[tuple[str, bytes]]:
    """Spans as the bodies of one or more facts of at most `limit` bytes, each with what its id has behind that of the whole. A
    span that is larger itself is left as it is."""
    body = encode_fact(Spans(spans=spans))
    if len(body) <= limit or len(spans) == 1:
        return [("", body)]
    half = len(spans) // 2
    first, second = parts(spans[:half], limit), parts(spans[half:], limit)
    return [*((f"-0{part}", body) for part, body in first), *((f"-1{part}", body) for part, body in second)]
