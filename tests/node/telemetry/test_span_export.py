"""The one queue of a process's spans: told ones and users' own, each with the service of its agent."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentmesh import semconv
from agentmesh.trace.context import TraceContext
from agentmesh.trace.readable import ServiceNames
from agentmesh.trace.spans import ToldSpan
from agentmesh_node.telemetry import tracing
from agentmesh_node.telemetry.otel import trace_ratio
from agentmesh_node.telemetry.span_export import SpanQueue
from agentmesh_node.telemetry.tracing import Here, Tracing

CONTEXT = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
TOLD = ToldSpan(
    trace=CONTEXT.trace_id,
    id=CONTEXT.span_id,
    name="invoke_agent coder",
    op="invoke_agent",
    start=1.0,
    end=2.0,
    agent="coder",
    service="Coder",
    node="n1",
    attributes={semconv.TURN: 1},
)


class Exported:
    """A queue, and what has left it."""

    def __init__(self, services: ServiceNames) -> None:
        self.exporter = InMemorySpanExporter()
        self.queue = SpanQueue(self.exporter, services, "n1", every_ms=60_000)

    def spans(self) -> dict[str, ReadableSpan]:
        self.queue.force_flush()
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def by_kind() -> Iterator[Exported]:
    exported = Exported("kind")
    yield exported
    exported.queue.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def by_role() -> Iterator[Exported]:
    exported = Exported("role")
    yield exported
    exported.queue.shutdown()  # type: ignore[no-untyped-call]


def test_sampled_spans_leave_and_others_do_not(by_kind: Exported) -> None:
    by_kind.queue.tell((TOLD, msgspec.structs.replace(TOLD, name="not sampled", sampled=False)))
    assert list(by_kind.spans()) == ["invoke_agent coder"]


def test_what_user_code_adds_leaves_with_the_span_and_what_is_no_attribute_is_left_out(by_kind: Exported) -> None:
    entered = Tracing(by_kind.queue).enter(CONTEXT, {}, Here("coder", "Coder"))
    span = trace.get_current_span()
    assert span.is_recording()
    span.set_attribute("team", "a")
    span.set_attribute(semconv.TURN, 99)
    span.set_attribute("odd", object())  # type: ignore[arg-type]
    span.add_event("seen", {"what": "it"}, timestamp=5)
    Tracing().leave(entered)
    by_kind.queue.tell((TOLD,))
    found = by_kind.spans()["invoke_agent coder"]
    assert found.attributes is not None
    assert (found.attributes["team"], found.attributes[semconv.TURN]) == ("a", 1)
    events = [(event.name, dict(event.attributes or {}), event.timestamp) for event in found.events]
    assert events == [("seen", {"what": "it"}, 5)]


def test_the_span_of_an_attempt_that_is_not_sampled_does_not_record(by_kind: Exported) -> None:
    entered = Tracing(by_kind.queue).enter(msgspec.structs.replace(CONTEXT, sampled=False), {}, Here("coder", "Coder"))
    assert not trace.get_current_span().is_recording()
    Tracing().leave(entered)


def users_span(exported: Exported) -> ReadableSpan:
    """A span of user code inside an attempt."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(exported.queue)
    entered = Tracing(exported.queue).enter(CONTEXT, {}, Here("coder", "Coder"))
    with provider.get_tracer("mine").start_as_current_span("outer"), provider.get_tracer("mine").start_as_current_span("inner"):
        pass
    Tracing().leave(entered)
    with provider.get_tracer("mine").start_as_current_span("elsewhere", otel_context.Context()):
        pass
    spans = exported.spans()
    assert spans["elsewhere"].resource.attributes[semconv.SERVICE_NAME] not in ("Coder", "mesh-node")
    assert spans["inner"].parent == spans["outer"].context
    parent = spans["outer"].parent
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (int(CONTEXT.trace_id, 16), int(CONTEXT.span_id, 16))
    return spans["inner"]


def test_a_span_of_user_code_is_a_child_of_the_attempt_and_a_part_of_its_agent(by_kind: Exported) -> None:
    span = users_span(by_kind)
    assert span.resource.attributes[semconv.SERVICE_NAME] == "Coder"
    assert (span.attributes or {})[semconv.AGENT_NAME] == "coder"


def test_by_role_it_keeps_the_service_of_its_provider(by_role: Exported) -> None:
    assert users_span(by_role).resource.attributes[semconv.SERVICE_NAME] != "Coder"


def test_nodes_that_are_made_later_export_by_what_is_set(by_kind: Exported) -> None:
    tracing.set_span_export(by_kind.queue)
    assert tracing.span_export() is by_kind.queue
    tracing.set_span_export(None)
    assert tracing.span_export() is None


@pytest.mark.parametrize(
    ("sampler", "arg", "ratio"),
    [
        ("", "", 1.0),
        ("always_off", "", 0.0),
        ("parentbased_always_off", "", 0.0),
        ("traceidratio", "0.1", 0.1),
        ("parentbased_traceidratio", "0.25", 0.25),
        ("traceidratio", "7", 1.0),
        ("traceidratio", "x", 1.0),
        ("always_on", "0.1", 1.0),
    ],
)
def test_the_share_of_traces_is_as_the_sdk_s_variables_say(sampler: str, arg: str, ratio: float) -> None:
    assert trace_ratio({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": arg}) == ratio
