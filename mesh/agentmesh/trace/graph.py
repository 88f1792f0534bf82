"""The graph of who talks to whom, made of spans. Pure.

Messages are counted where they are sent: each `send` span of an agent is one, and each message that no agent has sent is one of
its user, where that is known, and else of the caller `client`. All else that an edge bears is from the agent that dealt with the
messages: its `process` spans, and the attempts below them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from agentmesh import semconv
from agentmesh.trace.spans import ToldSpan

type GraphBy = Literal["agent", "kind", "node"]

CLIENT = "client"
"""What callers are called that are no agents, and no users that a server has told of."""
MAX_TIMES = 10_000
"""Most times of an edge that its percentiles are of, the newest ones."""
UNKNOWN = "?"


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of times, in seconds; null if there were none."""

    p50: float | None = None
    p95: float | None = None


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """Who talks to whom, and how that goes."""

    source: str
    target: str
    messages: int = 0
    """Prompts and events that were sent."""
    errors: int = 0
    """Those that ended with an error."""
    answer_s: Spread = Spread()
    """From when the server had stored a prompt until the record that answered it, or gave it up."""
    wait_s: Spread = Spread()
    """From when the server had stored a message until it was begun."""
    tokens: int = 0
    """Input and output tokens of the turns that these messages asked for."""
    usd: float = 0.0
    """What these turns have cost."""
    last: float = 0.0
    """When the newest message was sent (seconds since the epoch)."""


class Vertex(msgspec.Struct, frozen=True, kw_only=True):
    """An agent, a kind of agents, or a node; or a caller from outside."""

    name: str
    kind: str = ""
    """The kind of an agent; empty for kinds and nodes."""
    outside: bool = False
    """Whether it is a caller that is no agent: a user, or `client`."""
    turns: int = 0
    """Attempts that ended with a record."""
    errors: int = 0
    """Those of them that ended with an error."""
    died: int = 0
    """Attempts that were lost, moved or fenced."""
    tokens: int = 0
    usd: float = 0.0


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Who talks to whom, over a time."""

    by: GraphBy
    nodes: tuple[Vertex, ...] = ()
    edges: tuple[Edge, ...] = ()


class _Tally:
    """An edge while it is counted."""

    __slots__ = ("answers", "errors", "last", "messages", "tokens", "usd", "waits")

    def __init__(self) -> None:
        self.messages = self.errors = self.tokens = 0
        self.usd = self.last = 0.0
        self.answers: list[float] = []
        self.waits: list[float] = []


class _Sum:
    """A vertex while it is counted."""

    __slots__ = ("died", "errors", "kind", "outside", "tokens", "turns", "usd")

    def __init__(self) -> None:
        self.kind = ""
        self.outside = False
        self.turns = self.errors = self.died = self.tokens = 0
        self.usd = 0.0


def graph_of(spans: Iterable[ToldSpan], by: GraphBy = "agent", kinds: Mapping[str, str] | None = None) -> Graph:
    """The graph that `spans` make, each of them once.

    Args:
        spans: in any order.
        by: what its nodes are.
        kinds: kinds of agents that may have told no span, by their names.
    """
    return _Builder(tuple(spans), by, dict(kinds or {})).graph()


class _Builder:
    def __init__(self, spans: tuple[ToldSpan, ...], by: GraphBy, kinds: dict[str, str]) -> None:
        self._spans = spans
        self._by: GraphBy = by
        self._kinds = {**kinds, **{span.agent: span.service for span in spans}}
        self._sends = {span.id: span for span in spans if span.op == "send"}
        self._received = {span.parent: span for span in spans if span.op == "process" and not self._is_answer(span)}
        self._processes = {span.id: span for span in spans if span.op == "process"}
        self._edges: dict[tuple[str, str], _Tally] = {}
        self._vertices: dict[str, _Sum] = {}

    def graph(self) -> Graph:
        add: dict[str, Callable[[ToldSpan], None]] = {
            "send": self._send,
            "process": self._process,
            "invoke_agent": self._attempt,
        }
        for span in self._spans:
            counted = add.get(span.op)
            if counted is not None:
                counted(span)
        nodes = tuple(_vertex(name, found) for name, found in sorted(self._vertices.items()))
        edges = tuple(_edge(pair, found) for pair, found in sorted(self._edges.items()))
        return Graph(by=self._by, nodes=nodes, edges=edges)

    # --- spans --------------------------------------------------------------------------------------------------------
    def _send(self, span: ToldSpan) -> None:
        received = self._received.get(span.id)
        target = str(span.attributes.get(semconv.TO, UNKNOWN))
        edge = self._edge(self._name(span), self._name_of(target, received))
        edge.messages += 1
        edge.last = max(edge.last, span.end)

    def _process(self, span: ToldSpan) -> None:
        pair = self._pair(span)
        if pair is None:
            return
        edge = self._edge(*pair)
        if semconv.CALLER_NAME not in span.attributes:
            edge.messages += 1
            edge.last = max(edge.last, span.start)
        edge.errors += bool(span.error)
        if str(span.attributes.get(semconv.LANE, "")).endswith("inbox"):
            edge.answers.append(max(0.0, span.end - span.start))
        wait = span.attributes.get(semconv.WAIT)
        if isinstance(wait, int | float):
            edge.waits.append(wait)

    def _attempt(self, span: ToldSpan) -> None:
        vertex = self._vertex(self._name(span), span.agent)
        end = span.attributes.get(semconv.ATTEMPT_END)
        if end in ("ok", "error", None):
            vertex.turns += 1
            vertex.errors += bool(span.error)
        else:
            vertex.died += 1
        tokens, usd = _spent(span)
        vertex.tokens += tokens
        vertex.usd += usd
        process = self._processes.get(span.parent)
        pair = self._pair(process) if process is not None else None
        if pair is not None:
            edge = self._edge(*pair)
            edge.tokens += tokens
            edge.usd += usd

    # --- names --------------------------------------------------------------------------------------------------------
    def _pair(self, process: ToldSpan) -> tuple[str, str] | None:
        """The edge that a message came by; None if it came from the agent's own timer, or is an answer."""
        if process.attributes.get(semconv.LANE) == "due" or self._is_answer(process):
            return None
        caller = process.attributes.get(semconv.CALLER_NAME)
        target = self._name(process)
        if caller is None:
            name = _client_of(process) if self._by == "agent" else CLIENT
            self._vertex(name, name).outside = True
            return name, target
        return self._name_of(str(caller), self._sends.get(process.parent)), target

    def _is_answer(self, process: ToldSpan) -> bool:
        """Whether an agent deals with an answer: it stands below the agent's own question, and draws no edge back. Without that
        one (it is older than what is looked at) an event cannot be told from an answer, and counts as one."""
        if semconv.CALLER_NAME not in process.attributes:
            return False
        sent = self._sends.get(process.parent)
        if sent is None:
            return not str(process.attributes.get(semconv.LANE, "")).endswith("inbox")
        return sent.attributes.get(semconv.TO) != process.agent

    def _name(self, span: ToldSpan) -> str:
        return self._name_of(span.agent, span)

    def _name_of(self, agent: str, span: ToldSpan | None) -> str:
        match self._by:
            case "agent":
                return agent
            case "kind":
                return self._kinds.get(agent) or UNKNOWN
            case "node":
                return (span.node if span is not None else "") or UNKNOWN

    def _edge(self, source: str, target: str) -> _Tally:
        self._vertex(source, source)
        self._vertex(target, target)
        return self._edges.setdefault((source, target), _Tally())

    def _vertex(self, name: str, agent: str) -> _Sum:
        found = self._vertices.setdefault(name, _Sum())
        if self._by == "agent":
            found.kind = self._kinds.get(agent, "")
        return found


def _client_of(process: ToldSpan) -> str:
    """Who has sent a message that no agent has: its user, as all pages and verbs name that."""
    return str(process.attributes.get(semconv.CHAIN, CLIENT))


def _spent(span: ToldSpan) -> tuple[int, float]:
    """Tokens and dollars of an attempt."""
    tokens = sum(int(span.attributes.get(name, 0)) for name in (semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS))
    return tokens, float(span.attributes.get(semconv.COST, 0.0))


def _vertex(name: str, found: _Sum) -> Vertex:
    return Vertex(
        name=name,
        kind=found.kind,
        outside=found.outside,
        turns=found.turns,
        errors=found.errors,
        died=found.died,
        tokens=found.tokens,
        usd=round(found.usd, 9),
    )


def _edge(pair: tuple[str, str], found: _Tally) -> Edge:
    return Edge(
        source=pair[0],
        target=pair[1],
        messages=found.messages,
        errors=found.errors,
        answer_s=_spread(found.answers),
        wait_s=_spread(found.waits),
        tokens=found.tokens,
        usd=round(found.usd, 9),
        last=found.last,
    )


def _spread(times: list[float]) -> Spread:
    if not times:
        return Spread()
    ordered = sorted(times[-MAX_TIMES:])
    return Spread(_percentile(ordered, 0.5), _percentile(ordered, 0.95))


def _percentile(ordered: list[float], part: float) -> float:
    """The nearest rank: a time that was really measured."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
