"""What is current while user code runs: the span of the attempt, tool run or event that it belongs to.

Spans are told by records (docs/design/035-spans-are-told-by-records.md): nothing is exported from here. With or without an SDK
`propagate.inject`, log lines and users' own spans have the right ids. Where turns are not traced a sender's context is passed on
unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token
from typing import Protocol

import msgspec
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import NonRecordingSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentmesh.headers import bounded_baggage
from agentmesh.trace.context import TraceContext, context_in
from agentmesh.trace.spans import ToldSpan
from agentmesh.turn.values import TurnAttempt
from agentmesh_node.telemetry.inner_calls import CUT, InnerCall, InnerCalls
from agentmesh_node.telemetry.open_spans import Additions, OpenSpan, context_of, span_context, with_baggage

W3C = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
"""What messages bear, whatever the process's own propagators are."""

_HERE = otel_context.create_key("agentmesh-here")
_BAGGAGE = otel_context.create_key("agentmesh-baggage")
_token = otel_context.attach(Context())
_CURRENT = _token.var
"""The API's own variable: it is set and read twice in each turn, and the API's functions cost more than that."""
otel_context.detach(_token)
(_SPAN,) = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""The key of the current span: a context of a turn is made at once, and not value by value."""


class SpanExport(Protocol):
    """Exports told spans (`agentmesh_node.telemetry.span_export`)."""

    additions: Additions

    def tell(self, spans: tuple[ToldSpan, ...]) -> None:
        """Export those of them that are sampled, some time soon."""


_exports: list[SpanExport] = []


def span_export() -> SpanExport | None:
    """What exports this process's spans; None if nothing does. Set `telemetry.setup` up before the node."""
    return _exports[-1] if _exports else None


def set_span_export(export: SpanExport | None) -> None:
    """Have the nodes that are made from now on in this process export their spans by `export`."""
    _exports[:] = [export] if export is not None else []


class Here(msgspec.Struct):
    """Whose code runs."""

    agent: str
    kind: str
    made: InnerCalls | None = None
    """The calls of the attempt, in its prompt task, if there have been any."""
    attempt: TurnAttempt | None = None
    """The attempt, while its prompt task runs."""
    make: Callable[[TurnAttempt], InnerCalls] | None = None
    """Begins to note them."""

    @property
    def calls(self) -> InnerCalls | None:
        """What notes the calls of the attempt; None outside of a prompt task that is traced."""
        if self.made is None and self.attempt is not None and self.make is not None:
            self.made = self.make(self.attempt)
        return self.made


class Tracing:
    """The current contexts of one node."""

    show = staticmethod(_CURRENT.set)
    """Makes a context current. Pass the returned token to `leave` or to `restore`."""
    restore = staticmethod(_CURRENT.reset)
    """`leave`, where something was entered: most turns go through these two, which cost no call of Python's."""

    def __init__(self, export: SpanExport | None = None) -> None:
        self.export = export
        """What exports this node's spans."""

    def enter(
        self, of: TurnAttempt | TraceContext | None, headers: Mapping[str, str], here: Here | None = None
    ) -> Token[Context] | None:
        """Make a context current. Pass the returned token to `leave`.

        Args:
            of: what runs: an attempt, or the context of an event that is handled; None if nothing is traced.
            headers: the sender's. They count where nothing is traced; else they are what the context of an attempt has come with.
            here: whose code runs.
        """
        if of is None:
            return otel_context.attach(_foreign(headers)) if headers else None
        return _CURRENT.set(self.context(of, headers, here))

    def context(self, of: TurnAttempt | TraceContext, headers: Mapping[str, str], here: Here | None) -> Context:
        """The context that `enter` makes current."""
        additions = self._additions(of) if self.export is not None else None
        made = Context({**_CURRENT.get(), _SPAN: OpenSpan(of, additions), _HERE: here})
        if (headers or type(of) is TraceContext) and (given := context_of(of).baggage):
            made = _with_baggage(given, made)
        return made

    def calls(self, now: Callable[[], float]) -> Callable[[TurnAttempt], InnerCalls]:
        """What begins to note the calls of an attempt. `now` as of `InnerCalls`."""
        return lambda attempt: InnerCalls(attempt.context, now, self._additions(attempt), began=attempt.began)

    def _additions(self, of: TurnAttempt | TraceContext) -> Additions | None:
        """Where what user code adds to the span is noted; None if it will not be exported here."""
        return self.export.additions if self.export is not None and context_of(of).sampled else None

    def leave(self, entered: Token[Context] | None) -> None:
        """Restore the context that was current before `enter`."""
        if entered is not None:
            _CURRENT.reset(entered)

    def headers(self) -> dict[str, str]:
        """The current context as message headers."""
        carrier: dict[str, str] = {}
        W3C.inject(carrier)
        given = otel_context.get_value(_BAGGAGE)
        if isinstance(given, tuple) and given[1] == baggage.get_all():
            carrier["baggage"] = given[0]  # as it came, and not as it was read
        return carrier


def here(context: Context | None = None) -> Here | None:
    """Whose code runs in this context, the current one by default; None outside of agents' code."""
    found = otel_context.get_value(_HERE, context)
    return found if isinstance(found, Here) else None


def environment() -> dict[str, str]:
    """The current context as variables of a child process, as OpenTelemetry has them."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier)
    return {name.upper(): value for name, value in carrier.items() if name in ("traceparent", "tracestate")}


def _foreign(headers: Mapping[str, str]) -> Context:
    """The context in a sender's headers, as far as they can be read."""
    context, found = otel_context.get_current(), context_in(headers)
    if found is not None:
        context = trace.set_span_in_context(NonRecordingSpan(span_context(found)), context)
    given = found.baggage if found is not None else bounded_baggage(headers.get("baggage", ""))
    return _with_baggage(given, context) if given else context


def _with_baggage(text: str, context: Context) -> Context:
    context = with_baggage(text, context)
    return otel_context.set_value(_BAGGAGE, (text, dict(baggage.get_all(context))), context)


# --- calls inside an attempt ----------------------------------------------------------------------------------------------
def chat(provider: str, model: str) -> InnerCall:
    """A call to a model begins, in the attempt that is current. It is not made current: a streamed answer is read between other
    work."""
    found = here()
    calls = found.calls if found is not None else None
    return calls.chat(provider, model) if calls is not None else InnerCall(None, "chat", "", model, {})


def answered(provider: str, model: str, usage: Mapping[str, int]) -> None:
    """A call to a model is over that its backend did not make itself (see `InnerCalls.answered`)."""
    found = here()
    if found is not None and found.calls is not None:
        found.calls.answered(provider, model, usage)


def ended_call() -> InnerCall | None:
    """A call of the current attempt that has ended and that no step has, for the step that is taken now."""
    found = here()
    return found.calls.ended() if found is not None and found.calls is not None else None


@contextmanager
def execute_tool(tool: str, call: str, *, target: str | None) -> Iterator[InnerCall]:
    """A run of a tool, current while it lasts. `target`: the agent that it asks."""
    found = here()
    calls = found.calls if found is not None else None
    if calls is None:
        yield InnerCall(None, "execute_tool", "", tool, {})
        return
    run = calls.tool(tool, call, target)
    assert run.context is not None
    token = otel_context.attach(trace.set_span_in_context(OpenSpan(run.context, calls.additions)))
    try:
        yield run
    except BaseException:
        run.failed(CUT)
        raise
    finally:
        run.end()
        otel_context.detach(token)
