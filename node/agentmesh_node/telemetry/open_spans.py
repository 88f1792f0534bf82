"""Spans of the mesh's own while user code runs in them: what is current then, and what user code adds.

A span is told by its record (docs/design/035-spans-are-told-by-records.md), so nothing here is exported. User code sees an open
span with the right ids: its own spans become children of it, `propagate.inject` names it, log lines bear it. What it adds goes to
the live export of the span, if there will be one. None of this needs the SDK.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote_plus

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, Status, StatusCode, TraceFlags, TraceState

from agentmesh.trace.context import TraceContext
from agentmesh.turn.values import TurnAttempt

MOST_ATTRIBUTES = 64
"""Most attributes that user code adds to one span."""
MOST_EVENTS = 64
"""Most events of one span."""
MOST_SPANS = 4096
"""Most spans that user code has added to and that have not been told yet; of more the oldest lose what was added."""
MOST_MEMBER = 4096
"""Most bytes of a member of baggage that user code sees: the API would complain of a longer one. It goes on all the same."""

# W3C's forms. The API's own parsers log a line for each member that has another, and drop more than that.
_STATE_MEMBER = re.compile(r"([a-z0-9][a-z0-9_\-*/@]{0,255})=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])")
_BAGGAGE_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class AddedEvent:
    """An event that user code has added to a span."""

    __slots__ = ("attributes", "name", "time_ns")

    def __init__(self, name: str, attributes: Mapping[str, Any], time_ns: int) -> None:
        self.name = name
        self.attributes = dict(attributes)
        self.time_ns = time_ns


class Added:
    """What user code has added to one span."""

    __slots__ = ("attributes", "events")

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.events: list[AddedEvent] = []


class Additions:
    """What user code has added to the spans of a process that have not been told yet. For all threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now`: the time of events that bear none, in seconds since the epoch."""
        self.now = now
        self._lock = threading.Lock()
        self._of: dict[str, Added] = {}

    def attribute(self, span: str, name: str, value: Any) -> None:
        """Note an attribute of the span with this id."""
        with self._lock:
            attributes = self._to(span).attributes
            if name in attributes or len(attributes) < MOST_ATTRIBUTES:
                attributes[name] = value

    def event(self, span: str, event: AddedEvent) -> None:
        """Note an event of the span with this id."""
        with self._lock:
            events = self._to(span).events
            if len(events) < MOST_EVENTS:
                events.append(event)

    def _to(self, span: str) -> Added:
        found = self._of.get(span)
        if found is None:
            found = self._of[span] = Added()
            if len(self._of) > MOST_SPANS:
                del self._of[next(iter(self._of))]
        return found

    def take(self, span: str) -> Added | None:
        """What was added to this span, which is told now."""
        if not self._of:
            return None
        with self._lock:
            return self._of.pop(span, None)


class OpenSpan(Span):
    """A span of the mesh's own that has not ended. Its end, its name and its status are the mesh's: they cannot be set."""

    __slots__ = ("_known", "_of", "additions")

    def __init__(self, of: TurnAttempt | TraceContext, additions: Additions | None) -> None:
        """
        Args:
            of: its context, or the attempt whose that is, which is asked for it when it is needed.
            additions: where what user code adds is noted; None if the span will not be exported here.
        """
        self._of = of
        self.additions = additions
        self._known: SpanContext | None = None

    @property
    def context(self) -> TraceContext:
        """Its context."""
        return context_of(self._of)

    def get_span_context(self) -> SpanContext:
        if self._known is None:
            self._known = span_context(self.context)
        return self._known

    def is_recording(self) -> bool:
        return self.additions is not None

    def set_attribute(self, key: str, value: Any) -> None:
        if self.additions is not None:
            self.additions.attribute(self.context.span_id, key, value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        if self.additions is not None:
            time_ns = timestamp if timestamp is not None else round(self.additions.now() * 1_000_000) * 1000
            self.additions.event(self.context.span_id, AddedEvent(name, attributes or {}, time_ns))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        told = {"exception.type": type(exception).__qualname__, "exception.message": str(exception), "exception.escaped": escaped}
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Links are told by the record: this one is passed over."""

    def update_name(self, name: str) -> None:
        """The name is the mesh's."""

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """The status is told by the record."""

    def end(self, end_time: int | None = None) -> None:
        """It ends with its record."""


def context_of(what: TurnAttempt | TraceContext) -> TraceContext:
    """The context of what runs."""
    return what.context if isinstance(what, TurnAttempt) else what


def span_context(context: TraceContext) -> SpanContext:
    """`context` as the API has it."""
    headers = context.headers()
    return SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=False,
        trace_flags=TraceFlags(context.sampled),
        trace_state=_trace_state(headers["tracestate"]) if "tracestate" in headers else None,
    )


def _trace_state(text: str) -> TraceState:
    """The members of a `tracestate` that can be read; the first one of each key."""
    found: dict[str, str] = {}
    for member in text.split(","):
        match = _STATE_MEMBER.fullmatch(member.strip())
        if match is not None:
            found.setdefault(match[1], match[2])
    return TraceState(list(found.items())[:32])


def with_baggage(text: str, context: Context) -> Context:
    """`context` with the baggage in `text`, as far as it can be read. Properties of a member are part of its value."""
    for member in text.split(","):
        key, equals, value = member.partition("=")
        if equals and len(member) <= MOST_MEMBER and _BAGGAGE_KEY.fullmatch(key.strip()) is not None:
            context = baggage.set_baggage(unquote_plus(key.strip()), unquote_plus(value.strip()), context)
    return context
