"""Spans of a client's requests, where its process has a tracer: a call to an agent, and the message that goes to it.

Without a tracer nothing is made up: a context that is current goes on as it is, and without one the agent derives the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, Span, SpanKind, Status, StatusCode, Tracer

from agentmesh import semconv
from agentmesh.errors import MeshError
from agentmesh.headers import TRACE_HEADERS
from agentmesh.wire import Outcome

PROVIDER = "agentmesh"
"""Who provides the agents that are called, in the telemetry conventions."""


def _tracer() -> Tracer | None:
    """The tracer of this process; None if it has none."""
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider) else trace.get_tracer(semconv.SCOPE)


class AgentCall:
    """The span of a request, from the call to its outcome. Without a tracer it does nothing."""

    __slots__ = ("_span",)

    def __init__(self, agent: str) -> None:
        tracer = _tracer()
        self._span: Span | None = None
        if tracer is not None:
            self._span = tracer.start_span(
                semconv.invoke_agent(agent),
                kind=SpanKind.CLIENT,
                attributes={
                    semconv.OPERATION: semconv.OPERATION_INVOKE_AGENT,
                    semconv.AGENT_NAME: agent,
                    semconv.PROVIDER: PROVIDER,
                },
            )

    @contextmanager
    def current(self) -> Iterator[None]:
        """What is sent in this block is a part of the call."""
        if self._span is None:
            yield
            return
        with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield

    def failed(self, error: BaseException) -> None:
        """The call ends with an exception."""
        self._fail(error.code if isinstance(error, MeshError) else type(error).__name__)

    def ended(self, outcome: Outcome) -> None:
        """The call has its outcome."""
        if outcome.error is not None:
            self._fail(outcome.error.code)

    def _fail(self, code: str) -> None:
        if self._span is not None:
            _mark(self._span, code)

    def end(self) -> None:
        """The call is over."""
        if self._span is not None:
            self._span.end()


class Sending:
    """The span of a message on its way to the store. Its headers get the context that its receiver stands below."""

    __slots__ = ("_span",)

    def __init__(self, subject: str, headers: dict[str, str], root: str) -> None:
        """
        Args:
            subject: where the message goes.
            headers: the message's.
            root: the mesh's.
        """
        tracer = _tracer()
        self._span: Span | None = None
        if tracer is not None:
            lane, _, agent = subject.removeprefix(f"{root}.").partition(".")
            self._span = tracer.start_span(semconv.send(lane), kind=SpanKind.PRODUCER, attributes=_message(subject, lane, agent))
            propagate.inject(headers, trace.set_span_in_context(self._span))
        elif otel_context.get_current():  # an empty context has nothing to carry
            propagate.inject(headers)

    def drop(self, headers: dict[str, str]) -> None:
        """Nothing was sent: there is no span, and the headers are as they were."""
        if self._span is not None:
            self._span = None
            for name in TRACE_HEADERS:
                headers.pop(name, None)

    def end(self, error: BaseException | None = None) -> None:
        """The message is stored, or was not."""
        if self._span is not None:
            if error is not None:
                _mark(self._span, error.code if isinstance(error, MeshError) else type(error).__name__)
            self._span.end()


def _message(subject: str, lane: str, agent: str) -> dict[str, str]:
    return {
        semconv.MESSAGING_SYSTEM: semconv.SYSTEM_NATS,
        semconv.MESSAGING_OPERATION: semconv.OPERATION_SEND,
        semconv.MESSAGING_OPERATION_TYPE: semconv.OPERATION_SEND,
        semconv.DESTINATION: subject,
        semconv.DESTINATION_TEMPLATE: semconv.destination_template(lane),
        semconv.LANE: lane,
        semconv.TO: agent,
    }


def _mark(span: Span, code: str) -> None:
    """Mark a span as failed, with the error's code alone: its text may hold content."""
    span.set_attribute(semconv.ERROR_TYPE, code)
    span.set_status(Status(StatusCode.ERROR, code))
