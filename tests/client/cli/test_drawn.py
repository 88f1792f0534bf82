"""Graphs and trees as text."""

from __future__ import annotations

import pytest

from agentmesh.trace.graph import Edge, Graph, Spread, Vertex
from agentmesh.trace.tree import Branch
from agentmesh_client.cli.drawn import PLAIN, STRUCK, graph_dot, graph_mermaid, graph_text, tree_text

GRAPH = Graph(
    by="agent",
    nodes=(
        Vertex(name="client", outside=True),
        Vertex(name='de"sk', kind="Desk", turns=3, errors=1, died=1, tokens=1200, usd=0.5),
        Vertex(name="log.1", kind="Log"),
    ),
    edges=(
        Edge(
            source="client", target='de"sk', messages=3, errors=1, answer_s=Spread(0.25, 90.5), wait_s=Spread(0.001, 0.002),
            tokens=1200, usd=0.5,
        ),
        Edge(source='de"sk', target="log.1", messages=2),
    ),
)  # fmt: skip


def test_a_graph_is_two_tables() -> None:
    edges, vertices = graph_text(GRAPH).split("\n\n")
    rows = [line.split() for line in edges.splitlines()]
    assert rows[1] == ["client", 'de"sk', "3", "1", "250", "ms", "90.50", "s", "1", "ms", "2", "ms", "1,200", "$0.5000"]
    assert rows[2][:4] == ['de"sk', "log.1", "2", "0"]
    assert vertices.splitlines()[1].split() == ['de"sk', "Desk", "3", "1", "1", "1,200", "$0.5000"]
    assert graph_text(Graph(by="agent")) == ""


def test_a_graph_is_a_mermaid_chart() -> None:
    assert graph_mermaid(GRAPH).splitlines() == [
        "flowchart LR",
        '    n0(["client"])',
        '    n1["de#quot;sk"]',
        '    n2["log.1"]',
        '    n0 -->|"3, 1 failed, p50 250 ms, $0.5000"| n1',
        '    n1 -->|"2"| n2',
    ]


def test_a_graph_is_a_dot_file() -> None:
    lines = graph_dot(GRAPH).splitlines()
    assert lines[0] == "digraph mesh {"
    assert '    "client" -> "de\\"sk" [label="3, 1 failed, p50 250 ms, $0.5000"];' in lines
    assert lines[-1] == "}"


def branch(op: str, number: int, *below: Branch, **fields: object) -> Branch:
    made = {"agent": "desk", "kind": "Desk", "node": "n1", "start": float(number), "end": number + 1.5, **fields}
    return Branch(id=str(number), op=op, name=f"{op} x", below=below, **made)  # type: ignore[arg-type]


TREE = branch(
    "process",
    1,
    branch("invoke_agent", 2, ended="lost", error="lost", turn=4, attempt=1, usd=0.25, tokens=10),
    branch(
        "invoke_agent",
        3,
        branch("send", 4, branch("process", 5, agent="log", ref="9", caller="desk", error="timeout")),
        branch("send", 6),
        ended="ok",
        turn=4,
        attempt=2,
        node="n2",
    ),
    ref="7",
    wait_s=0.5,
    all_usd=0.25,
)


def test_a_request_is_a_tree_with_its_dead_attempts_struck_through() -> None:
    assert tree_text([TREE]).splitlines() == [
        "desk 7  1.50 s  waited 500 ms  in all $0.2500",
        "  ~~desk turn 4 attempt 1 on n1~~  lost after 1.50 s  10 tokens  $0.2500",
        "  desk turn 4 attempt 2 on n2  1.50 s",
        "    log 9 from desk  1.50 s  error timeout",
        "    send x  1.50 s",
    ]
    assert f"{STRUCK}desk turn 4 attempt 1 on n1{PLAIN}" in tree_text([TREE], colour=True)


def test_events_and_timers_say_what_they_are() -> None:
    heard = branch("process", 1, lane="peer-notify", caller="log", end=1.001)
    fired = branch("process", 2, lane="due", end=2.0)
    assert tree_text([heard, fired]).splitlines() == ["desk event from log  1 ms", "desk timer  0 ms"]


def test_what_runs_says_so() -> None:
    assert tree_text([branch("invoke_agent", 1, end=None, turn=1, attempt=1)]) == "desk turn 1 attempt 1 on n1  runs"


@pytest.mark.case(680)
def test_a_request_of_a_user_says_so_and_what_a_stranger_told_stays_on_its_line() -> None:
    shown = tree_text([branch("process", 1, branch("process", 2, caller="desk", chain="user shop of A -> agent desk"), ref="7",
                              chain="user sh\nop of A")])  # fmt: skip
    assert [line.split("  ")[0] for line in shown.splitlines()] == ["desk 7 from user sh op of A", ""]
    assert "desk  from desk" in shown or "desk from desk" in shown
    user = Graph(by="agent", nodes=(Vertex(name="user shop of A", outside=True), Vertex(name="desk")))
    assert 'n0(["user shop of A"])' in graph_mermaid(user) and '"user shop of A" [shape=ellipse];' in graph_dot(user)
