"""Facts of traces in bytes."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.trace.spans import Began, Spans, ToldSpan, decode_began, decode_spans, encode_fact

SPAN = ToldSpan(
    trace="4bf92f3577b34da6a3ce929d0e0e4736",
    id="00f067aa0ba902b7",
    name="invoke_agent coder",
    op="invoke_agent",
    start=1.5,
    end=2.25,
    agent="coder",
    service="Coder",
    links=("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8",),
    attributes={"mesh.turn": 7, "mesh.turn.cost_usd": 0.25, "mesh.ref": "12"},
)


def test_spans_come_back_as_they_were() -> None:
    assert decode_spans(encode_fact(Spans(spans=(SPAN, SPAN)))) == (SPAN, SPAN)


def test_a_beginning_comes_back_as_it_was() -> None:
    began = Began(
        trace=SPAN.trace, span=SPAN.id, agent="coder", service="Coder", life="1", ref="12", input="inbox:12", turn=7, started=1.5,
        node="n1", generation=3, boot="b", crashes=1,
    )  # fmt: skip
    assert decode_began(encode_fact(began)) == began


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"spans":[{"trace":1}]}'])
def test_what_is_no_fact_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_spans(body)
