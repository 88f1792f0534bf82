"""Trace contexts: what is read of a sender's headers, and ids that every owner derives alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh.trace.context import (
    MAX_STATE_BYTES,
    TraceContext,
    attempt_span_id,
    context_in,
    is_sampled,
    trace_id_of,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_a_malformed_context_counts_as_none(parent: str) -> None:
    assert context_in({"traceparent": parent}) is None


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True), ("fe", False)]
)
def test_of_the_flags_only_the_lowest_bit_counts(flags: str, sampled: bool) -> None:
    context = context_in({"traceparent": f"00-{TRACE}-{SPAN}-{flags}"})
    assert context == TraceContext(TRACE, SPAN, sampled)


def test_a_context_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert context_in({"traceparent": f"01-{TRACE}-{SPAN}-01-later"}) == TraceContext(TRACE, SPAN, True)


@given(st.text(max_size=80), st.text(max_size=200), st.text(max_size=200))
def test_no_header_costs_a_turn(parent: str, state: str, baggage: str) -> None:
    for one in (parent, f"00-{TRACE}-{SPAN}-01"):
        found = context_in({"traceparent": one, "tracestate": state, "baggage": baggage})
        if found is not None:
            assert context_in(found.headers()) == found


def test_the_members_of_others_and_the_depth_go_on() -> None:
    found = context_in({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=a,mesh=7-1764540000, other=b"})
    assert found is not None
    assert (found.depth, found.began, found.state) == (7, 1764540000.0, "vendor=a,other=b")
    assert found.headers()["tracestate"] == "mesh=7-1764540000,vendor=a,other=b"


def test_ids_are_derived_from_all_that_names_them() -> None:
    names = [
        ("t", 1, "b", 0, 0),
        ("t", 2, "b", 0, 0),
        ("t", 1, "c", 0, 0),
        ("t", 1, "b", 1, 0),
        ("t", 1, "b", 0, 1),
        ("u", 1, "b", 0, 0),
    ]
    assert len({attempt_span_id(*name) for name in names}) == len(names)
    assert attempt_span_id(*names[0]) == attempt_span_id(*names[0])
    assert trace_id_of(None, "a", "1", "7", "x") != trace_id_of("b/7", "a", "1", "7", "x")


@given(st.integers(min_value=1, max_value=2**128 - 1), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_sampling_agrees_with_opentelemetrys_sampler(number: int, ratio: float) -> None:
    sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
    decided = sampling.TraceIdRatioBased(ratio).should_sample(None, number, "x").decision.is_sampled()
    assert is_sampled(f"{number:032x}", ratio) == decided


def test_of_a_tracestate_whole_members_are_handed_on_as_far_as_w3c_says_and_the_meshs_own_always() -> None:
    many = ",".join(f"k{i}={'v' * 40}" for i in range(40))
    context = context_in({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": f"{many},mesh=3-990"})
    assert context is not None and (context.depth, context.began) == (3, 990.0)
    assert 460 < len(context.state) <= MAX_STATE_BYTES and many.startswith(context.state)
    assert context.headers()["tracestate"] == f"mesh=3-990,{context.state}"
