"""The verbs `mesh graph` and `mesh trace`: their forms of output, and what is not theirs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentmesh.trace.graph import Edge, Graph, Vertex
from agentmesh.trace.tree import Branch
from agentmesh_client import GraphReport, TraceReport
from agentmesh_client.cli import exits
from agentmesh_client.cli.common import GlobalOptions
from agentmesh_client.cli.main import main
from agentmesh_client.cli.traces import _graph_text, _trace_text
from agentmesh_client.traces import ReportSource

SOURCE = ReportSource(facts={"all": 2, "attempts": 1}, journals=7)
GRAPH = GraphReport(
    graph=Graph(by="agent", nodes=(Vertex(name="a"), Vertex(name="b")), edges=(Edge(source="a", target="b", messages=2),)),
    since=1.0,
    source=SOURCE,
)
BELOW = Branch(
    id="2", parent="1", op="invoke_agent", name="invoke_agent a", agent="a", kind="A", start=1.0, end=2.0, ended="lost",
    turn=1, attempt=1,
)  # fmt: skip
TOP = Branch(id="1", op="process", name="process", agent="a", kind="A", start=0.0, end=2.0, ref="7", below=(BELOW,))
FORMS: tuple[Any, ...] = ("text", "json", "jsonl", "mermaid", "dot")
TRACE = TraceReport(trace="4" * 32, branches=(TOP,), source=SOURCE)


def test_a_graph_has_five_forms() -> None:
    forms = {form: _graph_text(GRAPH, GlobalOptions(output=form)) for form in FORMS}
    assert forms["text"].splitlines()[1].split()[:3] == ["a", "b", "2"]
    assert json.loads(forms["json"])["graph"]["edges"][0]["messages"] == 2
    assert json.loads(forms["json"])["source"] == {
        "facts": {"all": 2, "attempts": 1},
        "stream": True,
        "journals": 7,
        "refused": False,
    }
    assert json.loads(forms["jsonl"])["source"] == "a"
    assert forms["mermaid"].startswith("flowchart")
    assert forms["dot"].startswith("digraph")


def test_a_tree_is_flat_as_json_each_span_with_its_parent() -> None:
    found = json.loads(_trace_text(TRACE, GlobalOptions(output="json")))
    assert [(one["id"], one.get("parent", "")) for one in found["spans"]] == [("1", ""), ("2", "1")]
    assert [json.loads(line)["id"] for line in _trace_text(TRACE, GlobalOptions(output="jsonl")).splitlines()] == ["1", "2"]
    assert "~~a turn 1 attempt 1~~  lost after 1.00 s" in _trace_text(TRACE, GlobalOptions())


def test_a_report_says_what_it_is_made_from() -> None:
    assert str(SOURCE) == "facts of live nodes: 2 with all, 1 with attempts; journals read: 7"
    assert "mesh setup" in str(ReportSource(stream=False))


@pytest.mark.parametrize("form", ["mermaid", "dot"])
def test_drawings_are_for_graphs_alone(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "-o", form]) == exits.USAGE
    assert f"-o {form} is for `mesh graph` alone" in capsys.readouterr().err
