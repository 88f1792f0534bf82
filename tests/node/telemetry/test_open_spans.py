"""What is current while user code runs: the mesh's own ids, without an SDK too; and bad contexts of senders cost nothing."""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context

import pytest
from opentelemetry import baggage, propagate, trace

from agentmesh.headers import bounded_baggage
from agentmesh.trace.context import TraceContext
from agentmesh_node.telemetry.open_spans import MOST_ATTRIBUTES, MOST_EVENTS, MOST_SPANS, Additions, OpenSpan
from agentmesh_node.telemetry.tracing import W3C, Here, Tracing, here

CONTEXT = TraceContext(
    "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", depth=3, began=1_700_000_000.0, state="v=1", baggage="tenant=a;p=1"
)
ODD = {
    "traceparent": [
        "", "00", "00-0-0-0", "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-more", "\x00\xff",
    ],
    "tracestate": [
        "", "=", ",,,", "a" * 9000, "mesh=x", "mesh=1-2,mesh=3-4", ",".join(f"k{i}=v" for i in range(200)), "A=b", "k=\x01",
    ],
    "baggage": ["", "=", ";;;", "%", "key", "k=%ff%fe", "k=v;p=q," * 200, "k=" + "v" * 20_000, "\xe9=1", "a=1,b"],
}  # fmt: skip


def test_the_mesh_s_own_span_is_current_without_an_sdk() -> None:
    tracing = Tracing()
    entered = tracing.enter(CONTEXT, {}, Here("coder", "Coder"))
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    assert carrier["traceparent"] == f"00-{CONTEXT.trace_id}-{CONTEXT.span_id}-01"
    assert carrier["tracestate"] == "mesh=3-1700000000,v=1"
    assert tracing.headers() == CONTEXT.headers(), "baggage goes on as it came"
    assert not trace.get_current_span().is_recording()
    with trace.get_tracer("mine").start_as_current_span("of the user") as span:
        assert span.get_span_context().trace_id == int(CONTEXT.trace_id, 16)
    found: list[object] = []
    ran = copy_context()
    thread = threading.Thread(target=lambda: ran.run(lambda: found.extend((here(), tracing.headers()))))
    thread.start()
    thread.join(10)
    assert found == [Here("coder", "Coder"), CONTEXT.headers()], "in a thread, too"
    tracing.leave(entered)
    assert not trace.get_current_span().get_span_context().is_valid
    assert here() is None


def test_baggage_that_user_code_changes_goes_on_changed() -> None:
    tracing = Tracing()
    entered = tracing.enter(CONTEXT, {})
    from opentelemetry import context as otel_context

    token = otel_context.attach(baggage.set_baggage("more", "b"))
    assert "more=b" in tracing.headers()["baggage"]
    otel_context.detach(token)
    tracing.leave(entered)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ODD.items() for value in values])
def test_a_sender_s_odd_context_costs_neither_the_turn_nor_a_line_in_the_log(
    name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"traceparent": f"00-{CONTEXT.trace_id}-{CONTEXT.span_id}-01"}
    tracing = Tracing()
    with caplog.at_level(logging.DEBUG):
        for headers in ({name: value}, {**good, name: value}):
            entered = tracing.enter(None, headers)
            handed_on = tracing.headers()
            tracing.leave(entered)
            known = {**headers, "baggage": bounded_baggage(headers["baggage"])} if "baggage" in headers else headers
            entered = tracing.enter(TraceContext(CONTEXT.trace_id, CONTEXT.span_id, state=known.get("tracestate", "")), {})
            W3C.inject(handed_on)
            tracing.leave(entered)
    assert caplog.records == []


def test_what_user_code_adds_is_bounded_and_kept_for_the_export() -> None:
    additions = Additions(lambda: 12.5)
    span = OpenSpan(CONTEXT, additions)
    assert span.is_recording()
    span.set_attributes({"team": "a", "size": 3})
    for number in range(MOST_ATTRIBUTES + 10):
        span.set_attribute(f"a{number}", number)
    span.set_attribute("team", "b")
    for number in range(MOST_EVENTS + 10):
        span.add_event("seen", {"number": number})
    span.record_exception(ValueError("no"))
    span.update_name("mine")
    span.set_status(trace.StatusCode.ERROR)
    span.end()
    added = additions.take(CONTEXT.span_id)
    assert added is not None
    assert (len(added.attributes), added.attributes["team"], len(added.events)) == (MOST_ATTRIBUTES, "b", MOST_EVENTS)
    assert added.events[0].time_ns == 12_500_000_000
    assert additions.take(CONTEXT.span_id) is None
    for number in range(MOST_SPANS + 5):
        additions.attribute(str(number), "a", 1)
    assert [additions.take(str(number)) is None for number in (0, 4, 5)] == [True, True, False]


def test_the_span_of_an_attempt_that_is_not_exported_records_nothing() -> None:
    span = OpenSpan(CONTEXT, None)
    assert not span.is_recording()
    span.set_attribute("a", 1)
    span.add_event("b")
