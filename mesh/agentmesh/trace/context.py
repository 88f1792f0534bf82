"""Trace contexts: which trace a turn belongs to, and the ids of its spans. Pure.

No id is drawn: each is a digest of what every owner of an agent knows, so that all of them write the same span
(docs/design/035-spans-are-told-by-records.md). What a sender wrote is read by W3C's rules and never costs a turn: a context that
is malformed counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from agentmesh.headers import STATE_KEY, bounded_baggage, fitting

MAX_DEPTH = 100
"""Most turns that one trace has one behind the other."""
MAX_AGE_S = 3600.0
"""How long a trace goes on, in seconds from its first turn."""
MAX_STATE_MEMBERS = 32
MAX_STATE_BYTES = 512
"""What W3C asks to be handed on."""

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_OWN = re.compile(r"([0-9]{1,9})-([0-9]{1,12})", re.ASCII)
_ONLY_OWN = re.compile(rf"{STATE_KEY}=([0-9]{{1,9}})-([0-9]{{1,12}})", re.ASCII)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_LEAST_TRACE, _LEAST_SPAN = "1" + "0" * 31, "1" + "0" * 15
"""In place of those that are all zero, which are no ids."""
_UPPER = 1 << 64


class TraceContext(msgspec.Struct, frozen=True):
    """Where in which trace something happens."""

    trace_id: str
    """32 lower-case hexadecimal digits."""
    span_id: str
    """16 of them; empty where nothing in the trace is above."""
    sampled: bool = True
    depth: int = 0
    """Turns in this trace up to here, one behind the other."""
    began: float = 0.0
    """When its first turn began (whole seconds since the epoch); 0 if there was none."""
    state: str = ""
    """The members of `tracestate` that are not the mesh's."""
    baggage: str = ""

    @property
    def link(self) -> str:
        """It in the form that links have: `<trace>-<span>`."""
        return f"{self.trace_id}-{self.span_id}"

    def headers(self) -> dict[str, str]:
        """It as message headers."""
        found = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"}
        state = f"{STATE_KEY}={self.depth}-{int(self.began)}" if self.depth else ""
        if self.state:
            state = f"{state},{self.state}" if state else self.state
        if state:
            found["tracestate"] = state
        if self.baggage:
            found["baggage"] = self.baggage
        return found


def context_in(headers: Mapping[str, str]) -> TraceContext | None:
    """The context that a message bears; None if it bears none, or one that is malformed."""
    parent = headers.get("traceparent")
    match = _PARENT.fullmatch(parent) if parent is not None else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (version == "00" and more):
        return None
    # Of the flags only the lowest bit is known; those of the future are nobody's business.
    sampled = flags == "01" or bool(int(flags, 16) & 1)
    depth, began, state, baggage = 0, 0.0, "", ""
    if "tracestate" in headers:
        depth, began, state = _state_in(headers["tracestate"])
    if "baggage" in headers:
        baggage = bounded_baggage(headers["baggage"])
    return TraceContext(trace_id, span_id, sampled, depth, began, state, baggage)


def _state_in(text: str) -> tuple[int, float, str]:
    """Depth, start and the members of others in a `tracestate`."""
    if (own := _ONLY_OWN.fullmatch(text)) is not None:  # as in most mail
        return int(own[1]), float(own[2]), ""
    depth, began, others = 0, 0.0, []
    for member in text.split(","):
        key, _, value = member.strip().partition("=")
        if key == STATE_KEY:
            match = _OWN.fullmatch(value)
            if match is not None:
                depth, began = int(match[1]), float(match[2])
        elif value:
            others.append(member.strip())
    return depth, began, ",".join(fitting(others[: MAX_STATE_MEMBERS - 1], MAX_STATE_BYTES))


# --- ids --------------------------------------------------------------------------------------------------------------
# Three of them are made for each plain ask, and each call between here and the digest would count there.
def trace_id_of(root: str | None, agent: str, life: str, ref: str, stored: str | None) -> str:
    """The id of the trace of a message that bears no context.

    Args:
        root: the request of a client that it is for (`Mesh-Root`), if it says so.
        agent: the agent that it is for.
        life: that one's incarnation.
        ref: the message's ref.
        stored: when the server stored it, in its own words.
    """
    text = f"trace\0{root or ''}\0{agent}\0{life}\0{ref}\0{stored or ''}"
    found = blake2b(text.encode(), digest_size=16).hexdigest()
    return found if found != _NO_TRACE else _LEAST_TRACE


def next_trace_id(before: TraceContext) -> str:
    """The id of the trace that goes on behind `before`, which is as long as traces may be."""
    found = blake2b(f"next\0{before.trace_id}\0{before.span_id}".encode(), digest_size=16).hexdigest()
    return found if found != _NO_TRACE else _LEAST_TRACE


def process_span_id(agent: str, life: str, lane: str, ref: str) -> str:
    """The id of the span in which an agent deals with a message."""
    found = blake2b(f"process\0{agent}\0{life}\0{lane}\0{ref}".encode(), digest_size=8).hexdigest()
    return found if found != _NO_SPAN else _LEAST_SPAN


def attempt_span_id(turn: str, generation: int, boot: str, crashes: int, retries: int) -> str:
    """The id of the span of an attempt, by what its owner knows when it begins.

    Args:
        turn: the turn's name (`agentmesh.turn.kept.name_of`).
        generation: the owner's.
        boot: the owner's process.
        crashes: of the agent's own code, that the journal has charged to the input.
        retries: how often the prompt was tried in place of one that failed.
    """
    text = f"attempt\0{turn}\0{generation}\0{boot}\0{crashes}\0{retries}"
    found = blake2b(text.encode(), digest_size=8).hexdigest()
    return found if found != _NO_SPAN else _LEAST_SPAN


def send_span_id(agent: str, origin: str) -> str:
    """The id of the span in which an agent sends the mail of this origin."""
    return _span_id(f"send\0{agent}\0{origin}")


def sent_context(agent: str, life: str, origin: str, headers: Mapping[str, str], ratio: float) -> tuple[TraceContext, str]:
    """The context of mail: that of the span in which it is sent, which its receiver stands below. And the id of the span above
    that one; empty if there is none, as for mail of a callback that neither turn nor event has called: its trace begins with it.

    Args:
        agent: the sender.
        life: its incarnation.
        origin: the mail's.
        headers: the context that the mail was made in.
        ratio: the share of traces that are sampled where nobody has decided.
    """
    above, span_id = context_in(headers), send_span_id(agent, origin)
    if above is not None:
        return msgspec.structs.replace(above, span_id=span_id), above.span_id
    trace_id = trace_id_of(None, agent, life, origin, None)
    baggage = bounded_baggage(headers.get("baggage", ""))
    return TraceContext(trace_id, span_id, is_sampled(trace_id, ratio), baggage=baggage), ""


def inner_span_id(attempt: str, what: str, which: str) -> str:
    """The id of a span inside an attempt: `which` of its model calls or tool runs."""
    return _span_id(f"{what}\0{attempt}\0{which}")


def _span_id(text: str) -> str:
    found = blake2b(text.encode(), digest_size=8).hexdigest()
    return found if found != _NO_SPAN else _LEAST_SPAN


def is_sampled(trace_id: str, ratio: float) -> bool:
    """Whether a trace that nobody has decided about is sampled: by its id alone, as OpenTelemetry's ratio-based sampler does."""
    return ratio >= 1.0 or int(trace_id[16:], 16) < round(ratio * _UPPER)
