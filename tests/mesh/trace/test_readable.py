"""Told spans as the SDK's exporters take them: nothing is lost, and `service.name` is the agent's kind, or the role."""

from __future__ import annotations

import msgspec
from opentelemetry.trace import SpanKind, StatusCode

from agentmesh import semconv
from agentmesh.trace.readable import readable
from agentmesh.trace.spans import ToldSpan

SPAN = ToldSpan(
    trace="1" * 32,
    id="2" * 16,
    parent="3" * 16,
    name="invoke_agent coder",
    op="invoke_agent",
    kind="internal",
    start=1_700_000_000.25,
    end=1_700_000_001.5,
    agent="coder",
    service="Coder",
    node="n1",
    error="lost",
    links=(f"{'4' * 32}-{'5' * 16}",),
    attributes={semconv.TURN: 3},
)


def test_nothing_of_a_span_is_lost() -> None:
    span = readable(SPAN)
    context, parent = span.context, span.parent
    assert parent is not None
    assert (context.trace_id, context.span_id, parent.span_id) == (int("1" * 32, 16), int("2" * 16, 16), int("3" * 16, 16))
    assert (span.start_time, span.end_time) == (1_700_000_000_250_000_000, 1_700_000_001_500_000_000)
    assert (span.kind, span.status.status_code, span.status.description) == (SpanKind.INTERNAL, StatusCode.ERROR, "lost")
    assert [(link.context.trace_id, link.context.span_id) for link in span.links] == [(int("4" * 32, 16), int("5" * 16, 16))]
    assert dict(span.attributes or {}) == {semconv.TURN: 3}
    assert readable(msgspec.structs.replace(SPAN, parent="")).parent is None


def test_services_are_the_agents_kinds_or_the_processes_roles() -> None:
    by_kind, by_role = readable(SPAN).resource.attributes, readable(SPAN, "role").resource.attributes
    assert (by_kind[semconv.SERVICE_NAME], by_kind[semconv.SERVICE_INSTANCE_ID]) == ("Coder", "n1")
    assert by_role[semconv.SERVICE_NAME] == "mesh-node"


def test_what_users_add_does_not_replace_what_the_mesh_says() -> None:
    assert dict(readable(SPAN, attributes={semconv.TURN: 99, "team": "a"}).attributes or {}) == {semconv.TURN: 3, "team": "a"}
