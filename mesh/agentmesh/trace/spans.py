"""Spans as the mesh tells them: in facts on a stream, to a collector, and once more when they are rebuilt. Pure values.

A span is told by a record that was committed, or by the next owner (docs/design/035-spans-are-told-by-records.md). Times are
seconds since the epoch, by the servers' time. Attributes have the names of `agentmesh.semconv` and never hold content.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agentmesh.identity import Chain

type SpanKind = Literal["internal", "client", "producer", "consumer"]
type AttemptEnd = Literal["ok", "error", "lost", "fenced", "moved"]
"""How an attempt ended: with an answer; with an error; with its process; because another owner had taken its place; by an orderly
hand-over."""
type TraceFacts = Literal["off", "attempts", "all"]
"""Which facts of traces a node publishes: none; of attempts that last, and of those that their owner did not end; all spans."""
type Attributes = dict[str, str | int | float | bool]


class ToldSpan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One span."""

    trace: str
    """32 hexadecimal digits."""
    id: str
    """16 hexadecimal digits."""
    parent: str = ""
    """The id of the span above it in the same trace; empty for the topmost one."""
    name: str
    op: Literal["invoke_agent", "chat", "execute_tool", "send", "process"]
    kind: SpanKind = "internal"
    start: float
    end: float
    agent: str
    """The agent that it is a part of."""
    service: str
    """The kind of that agent."""
    node: str = ""
    error: str = ""
    """The code of the error that it ended with; empty if with none."""
    links: tuple[str, ...] = ()
    """What caused it besides its parent: `<trace>-<span>` each."""
    attributes: Attributes = {}
    sampled: bool = True


class Began(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fact that an attempt began. Published when it has run for a moment; superseded by its span."""

    trace: str
    span: str
    parent: str = ""
    agent: str
    service: str
    life: str
    ref: str
    input: str
    """The key of its input in the ledger's counters (`Active.key`)."""
    turn: int
    started: float
    node: str
    generation: int
    boot: str
    crashes: int = 0
    retries: int = 0
    sender: str | None = None
    chain: Chain = ()
    """On whose behalf its request is, as it came (agentmesh.identity)."""
    links: tuple[str, ...] = ()
    sampled: bool = True
    left: float = 0.0
    """When its owner handed the agent over in order, in mid-attempt (seconds since the epoch); 0: it did not."""
    v: int = 1


class Spans(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fact that these spans have ended, all of one agent."""

    spans: tuple[ToldSpan, ...]
    v: int = 1


_encode = msgspec.json.Encoder().encode
_spans = msgspec.json.Decoder(Spans)
_began = msgspec.json.Decoder(Began)


def encode_fact(fact: Began | Spans) -> bytes:
    """A fact as it is published."""
    return _encode(fact)


def decode_spans(body: bytes) -> tuple[ToldSpan, ...]:
    """The spans in a fact.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _spans.decode(body).spans


def decode_began(body: bytes) -> Began:
    """The beginning of an attempt in a fact.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _began.decode(body)
