"""The graph of who talks to whom, made of spans."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmesh import semconv
from agentmesh.trace.graph import CLIENT, Edge, Graph, Spread, graph_of
from agentmesh.trace.spans import ToldSpan

KINDS = {"desk": "Desk", "billing.1": "Specialist", "billing.2": "Specialist", "log": "Log"}
NODES = {"desk": "n1", "billing.1": "n1", "billing.2": "n2", "log": "n3"}


def span(op: str, agent: str, number: int, parent: str = "", *, start: float = 0.0, end: float = 0.0, **more: object) -> ToldSpan:
    attributes = {getattr(semconv, name.upper()): value for name, value in more.items() if name != "error"}
    return ToldSpan(
        trace="0" * 31 + "1", id=f"{op[:1]}{number:015x}", parent=parent, name=op, op=op, start=start, end=end, agent=agent,  # type: ignore[arg-type]
        service=KINDS[agent], node=NODES[agent], error=str(more.get("error", "")), attributes=attributes,  # type: ignore[arg-type]
    )  # fmt: skip


def message(
    number: int, source: str | None, target: str, *, error: str = "", lane: str = "inbox", usd: float = 0.0
) -> list[ToldSpan]:
    """The spans of a message that was sent, dealt with, and, if it is a prompt, answered by one attempt."""
    if source is None:
        dealt = span("process", target, number, start=1, end=4, lane=lane, wait=1.0, error=error)
        spans = [dealt]
    else:
        sent = span("send", source, number, start=1, end=1, to=target, lane=f"peer-{lane}")
        dealt = span(
            "process", target, number, sent.id, start=1, end=4, caller_name=source, lane=f"peer-{lane}", wait=1.0, error=error
        )
        spans = [sent, dealt]
    if lane == "inbox":
        end = "error" if error else "ok"
        spans.append(
            span(
                "invoke_agent", target, number, dealt.id, start=2, end=4, attempt_end=end, error=error, cost=usd, output_tokens=7
            )
        )
    return spans


def edges(graph: Graph) -> dict[tuple[str, str], Edge]:
    return {(edge.source, edge.target): edge for edge in graph.edges}


def test_an_edge_bears_what_the_receiver_told_of_it() -> None:
    spans = [
        *message(1, None, "desk"),
        *message(2, "desk", "billing.1", usd=0.25),
        *message(3, "desk", "billing.1", error="timeout"),
    ]
    graph = graph_of(spans)
    assert edges(graph)[CLIENT, "desk"].messages == 1
    asked = edges(graph)["desk", "billing.1"]
    times = {"answer_s": Spread(3, 3), "wait_s": Spread(1, 1)}
    wanted = Edge(source="desk", target="billing.1", messages=2, errors=1, tokens=14, usd=0.25, last=1, **times)
    assert asked == wanted
    [billing] = [vertex for vertex in graph.nodes if vertex.name == "billing.1"]
    assert (billing.kind, billing.turns, billing.errors, billing.died, billing.usd) == ("Specialist", 2, 1, 0, 0.25)


def test_an_attempt_that_died_counts_for_its_agent_and_its_money_for_the_edge() -> None:
    spans = message(1, "desk", "billing.1", usd=0.5)
    spans.append(span("invoke_agent", "billing.1", 9, spans[1].id, start=1, end=2, attempt_end="lost", cost=0.25))
    graph = graph_of(spans)
    [billing] = [vertex for vertex in graph.nodes if vertex.name == "billing.1"]
    assert (billing.turns, billing.died) == (1, 1)
    assert edges(graph)["desk", "billing.1"].usd == 0.75


def test_events_count_as_messages_and_ticks_do_not() -> None:
    tick = span("process", "log", 5, lane="due")
    graph = graph_of([*message(1, "desk", "log", lane="notify"), *message(2, None, "log", lane="notify"), tick])
    assert {pair: edge.messages for pair, edge in edges(graph).items()} == {("desk", "log"): 1, (CLIENT, "log"): 1}
    assert edges(graph)["desk", "log"].answer_s == Spread()


@pytest.mark.parametrize("by", ["agent", "kind", "node"])
def test_an_answer_draws_no_edge_back(by: str) -> None:
    asked = message(1, "desk", "billing.2")
    answer = span("process", "desk", 2, asked[0].id, start=4, end=5, caller_name="billing.2", lane="peer-notify", wait=1.0)
    went_on = span("invoke_agent", "desk", 3, answer.id, start=5, end=6, attempt_end="ok", output_tokens=7)
    expected = edges(graph_of(asked, by))  # type: ignore[arg-type]
    assert edges(graph_of([*asked, answer, went_on], by)) == expected  # type: ignore[arg-type]
    assert edges(graph_of([answer, went_on], by)) == {}, "the question is older"  # type: ignore[arg-type]


def test_what_nobody_has_dealt_with_yet_is_an_edge_all_the_same() -> None:
    sent = message(1, "desk", "billing.1")[0]
    assert edges(graph_of([sent]))["desk", "billing.1"].messages == 1
    assert edges(graph_of([sent], "kind"))["Desk", "?"].messages == 1
    assert edges(graph_of([sent], "kind", {"billing.1": "Specialist"}))["Desk", "Specialist"].messages == 1


@pytest.mark.case(680)
def test_who_is_no_agent_is_a_user_where_that_is_known() -> None:
    known = span("process", "desk", 1, start=1, end=4, lane="peer-inbox", chain="user shop of CALLERS", user="shop")
    spans = [known, *message(2, None, "desk"), *message(3, "desk", "log")]
    graph = graph_of(spans)
    assert set(edges(graph)) == {("user shop of CALLERS", "desk"), (CLIENT, "desk"), ("desk", "log")}
    assert {one.name for one in graph.nodes if one.outside} == {"user shop of CALLERS", CLIENT}
    assert {pair: edge.messages for pair, edge in edges(graph_of(spans, "kind")).items()}[CLIENT, "Desk"] == 2, (
        "kinds are the mesh's"
    )


MESSAGES = st.lists(
    st.tuples(st.sampled_from([None, *KINDS]), st.sampled_from(list(KINDS)), st.sampled_from(["inbox", "notify"]))
)


@pytest.mark.parametrize("by", ["agent", "kind", "node"])
@given(sent=MESSAGES, seed=st.integers(0, 100))
def test_the_graph_is_what_was_sent_in_whatever_order_it_is_told(
    by: str, sent: list[tuple[str | None, str, str]], seed: int
) -> None:
    spans = [one for number, (a, b, lane) in enumerate(sent) for one in message(number, a, b, lane=lane)]
    random.Random(seed).shuffle(spans)

    def name(agent: str | None) -> str:
        return CLIENT if agent is None else {"agent": agent, "kind": KINDS[agent], "node": NODES[agent]}[by]

    graph = graph_of(spans, by)  # type: ignore[arg-type]
    assert {pair: edge.messages for pair, edge in edges(graph).items()} == Counter((name(a), name(b)) for a, b, _ in sent)
    assert sum(edge.tokens for edge in graph.edges) == 7 * sum(lane == "inbox" for _, _, lane in sent)
