"""Spans that the mesh keeps are written to a collector once more, as they are; what does not work is said by name."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh import semconv
from agentmesh.errors import BadRequest, Unavailable
from agentmesh.trace.spans import ToldSpan
from agentmesh_client import rebuild
from agentmesh_client.rebuild import exporter_to, write_spans
from fakes.otlp import OtlpReceiver

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def told(number: int, *, sampled: bool = True) -> ToldSpan:
    return ToldSpan(
        trace=TRACE,
        id=f"{number:016x}",
        parent=f"{number - 1:016x}" if number > 1 else "",
        name="invoke_agent a",
        op="invoke_agent",
        start=1.0,
        end=2.5,
        agent="a",
        service="Kind",
        node="n1",
        error="timeout" if number == 2 else "",
        links=(f"{TRACE}-{99:016x}",) if number == 2 else (),
        attributes={semconv.AGENT_NAME: "a", semconv.TURN: number},
        sampled=sampled,
    )


@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
def test_spans_arrive_as_they_were_told(*, grpc: bool) -> None:
    with OtlpReceiver(grpc=grpc) as receiver:
        url = receiver.endpoint.replace("http", "grpc") if grpc else receiver.endpoint
        spans = [told(1), told(2), told(3, sampled=False)]
        assert asyncio.run(write_spans(spans, url)) == 2, "what is not sampled stays out"
        first, second = sorted(receiver.spans, key=lambda span: span.span_id)
    assert (first.trace_id, first.span_id, first.parent, first.service) == (TRACE, f"{1:016x}", "", "Kind")
    assert (first.start, first.end, first.status) == (1_000_000_000, 2_500_000_000, "UNSET")
    assert first.attributes[semconv.TURN] == 1
    assert (second.parent, second.status, second.linked) == (first.span_id, "ERROR", (f"{99:016x}",))


def test_more_than_fit_into_one_request_go_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "BATCH", 4)
    with OtlpReceiver() as receiver:
        assert asyncio.run(write_spans([told(number) for number in range(1, 11)], receiver.endpoint)) == 10
        assert receiver.requests == 3
        assert [span.attributes[semconv.TURN] for span in receiver.spans] == list(range(1, 11))


def test_a_collector_that_refuses_is_named() -> None:
    with OtlpReceiver() as receiver:
        receiver.refuse(400)
        with pytest.raises(Unavailable, match=receiver.endpoint):
            asyncio.run(write_spans([told(1)], receiver.endpoint))


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "http://", "ftp://127.0.0.1", ""])
def test_what_is_no_address_of_a_collector_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="--otlp"):
        exporter_to(url)
