"""Spans of a node. One trace follows a conversation from agent to agent: a message is parent and link of its turn's span.

Without an SDK the API's no-ops cost next to nothing, and a caller's `traceparent` is passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from agentmesh import semconv
from agentmesh.callback_context import Request

type Span = trace.Span


class Tracing:
    """Makes the spans of one node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._tracer = trace.get_tracer(semconv.SCOPE)
        self.on = not isinstance(trace.get_tracer_provider(), (trace.ProxyTracerProvider, trace.NoOpTracerProvider))
        """Whether spans are recorded in this process. Set `telemetry.setup` up before the node."""

    def turn(self, agent: str, request: Request, number: int, headers: Mapping[str, str]) -> Span | None:
        """The span of a turn, a child of the message that asked for it; None if nothing is recorded."""
        if not self.on:
            return None
        parent = propagate.extract(headers)
        cause = trace.get_current_span(parent).get_span_context()
        return self._tracer.start_span(
            semconv.invoke_agent(agent),
            context=parent,
            kind=SpanKind.CONSUMER,
            links=[Link(cause)] if cause.is_valid else None,
            attributes={
                semconv.OPERATION: semconv.OPERATION_INVOKE_AGENT,
                semconv.AGENT_NAME: agent,
                semconv.MESSAGING_SYSTEM: semconv.SYSTEM_NATS,
                semconv.MESSAGING_OPERATION: semconv.OPERATION_PROCESS,
                semconv.REF: request.ref,
                semconv.TURN: number,
                semconv.NODE: self._node,
                **({semconv.CALLER_NAME: request.sender} if request.sender else {}),
            },
        )

    def end(self, span: Span, error: str | None) -> None:
        if error is not None:
            span.set_attribute(semconv.ERROR_TYPE, error)
            span.set_status(Status(StatusCode.ERROR, error))
        span.end()

    def enter(self, span: Span | None, headers: Mapping[str, str]) -> Token[Context] | None:
        """Make `span` current, or without one the sender's context in `headers`. Pass the returned token to `leave`."""
        if span is not None:
            return otel_context.attach(trace.set_span_in_context(span))
        return otel_context.attach(propagate.extract(headers)) if headers else None

    def leave(self, entered: Token[Context] | None) -> None:
        """Restore the context that was current before `enter`."""
        if entered is not None:
            otel_context.detach(entered)

    def headers(self) -> dict[str, str]:
        """The current context as message headers."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier


# --- spans of a backend's loop ------------------------------------------------------------------------------------------
def chat(provider: str, model: str, *, agent: str, conversation: str) -> Span:
    """The span of a call to a model, a child of the turn. The caller ends it. It is not made current: a streamed answer is read
    between other work."""
    return trace.get_tracer(semconv.SCOPE).start_span(
        semconv.chat(model),
        kind=SpanKind.CLIENT,
        attributes={
            semconv.OPERATION: semconv.OPERATION_CHAT,
            semconv.PROVIDER: provider,
            semconv.REQUEST_MODEL: model,
            **_about(agent, conversation),
        },
    )


def tokens(span: Span, model: str, usage: Mapping[str, int]) -> None:
    """Set the tokens that a model call used. The conventions count cached tokens among the input."""
    read, written = usage.get("cache_read_input_tokens", 0), usage.get("cache_write_input_tokens", 0)
    span.set_attributes(
        {
            semconv.RESPONSE_MODEL: model,
            semconv.INPUT_TOKENS: usage.get("input_tokens", 0) + read + written,
            semconv.OUTPUT_TOKENS: usage.get("output_tokens", 0),
            semconv.CACHE_READ_TOKENS: read,
            semconv.CACHE_WRITE_TOKENS: written,
        }
    )


@contextmanager
def execute_tool(tool: str, call: str, *, target: str | None, agent: str, conversation: str) -> Iterator[Span]:
    """The span of a tool run, current while it lasts."""
    with trace.get_tracer(semconv.SCOPE).start_as_current_span(
        semconv.execute_tool(tool),
        kind=SpanKind.INTERNAL,
        record_exception=False,  # its text may hold content
        set_status_on_exception=False,
        attributes={
            semconv.OPERATION: semconv.OPERATION_EXECUTE_TOOL,
            semconv.TOOL_NAME: tool,
            semconv.TOOL_CALL_ID: call,
            **({semconv.TRANSFER_TARGET: target} if target else {}),
            **_about(agent, conversation),
        },
    ) as span:
        yield span


def failed(span: Span, error: str) -> None:
    """Mark a span as failed, with the error's code only."""
    span.set_attribute(semconv.ERROR_TYPE, error)
    span.set_status(Status(StatusCode.ERROR, error))


def _about(agent: str, conversation: str) -> dict[str, str]:
    return {semconv.AGENT_NAME: agent, **({semconv.CONVERSATION_ID: conversation} if conversation else {})}
