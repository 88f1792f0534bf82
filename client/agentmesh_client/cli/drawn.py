"""Graphs and trees as text: for a terminal, Mermaid and Graphviz."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentmesh.trace.graph import Edge, Graph, Spread
from agentmesh.trace.tree import Branch
from agentmesh_client.cli.output import aligned, dollars, one_line

GRAPH_COLUMNS = ("FROM", "TO", "MESSAGES", "ERRORS", "ANSWER P50", "P95", "WAIT P50", "P95", "TOKENS", "COST")
STRUCK, PLAIN = "\x1b[9m", "\x1b[0m"


def seconds_text(value: float | None) -> str:
    """A time in seconds for people: three digits are enough."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.2f} s"
    return f"{value / 60:.1f} min"


# --- graphs -----------------------------------------------------------------------------------------------------------
def graph_text(graph: Graph) -> str:
    """A table of edges, and one of what agents did, if there are both."""
    parts = []
    if graph.edges:
        parts.append(aligned(GRAPH_COLUMNS, [_edge_cells(edge) for edge in graph.edges]))
    busy = [one for one in graph.nodes if one.turns or one.died]
    if busy:
        # Only an agent has a kind: of the others that would be empty.
        kind = ("KIND",) if graph.by == "agent" else ()
        columns = (graph.by.upper(), *kind, "TURNS", "ERRORS", "DIED", "TOKENS", "COST")
        rows = [
            (
                one.name,
                *((one.kind or "-",) if kind else ()),
                *map(str, (one.turns, one.errors, one.died)),
                f"{one.tokens:,}",
                _money(one.usd),
            )
            for one in busy
        ]
        parts.append(aligned(columns, rows))
    return "\n\n".join(parts)


def _edge_cells(edge: Edge) -> Sequence[str]:
    times = (*_spread_cells(edge.answer_s), *_spread_cells(edge.wait_s))
    return (edge.source, edge.target, str(edge.messages), str(edge.errors), *times, f"{edge.tokens:,}", _money(edge.usd))


def _spread_cells(spread: Spread) -> tuple[str, str]:
    return seconds_text(spread.p50), seconds_text(spread.p95)


def _money(usd: float) -> str:
    return dollars(usd) if usd else "-"


def _label(edge: Edge) -> str:
    parts = [str(edge.messages)]
    if edge.errors:
        parts.append(f"{edge.errors} failed")
    if edge.answer_s.p50 is not None:
        parts.append(f"p50 {seconds_text(edge.answer_s.p50)}")
    if edge.usd:
        parts.append(dollars(edge.usd))
    return ", ".join(parts)


def graph_mermaid(graph: Graph) -> str:
    """A flow chart. Names stand in quotes, where Mermaid takes any of them."""
    ids = {one.name: f"n{number}" for number, one in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for one in graph.nodes:
        left, right = ("([", "])") if one.outside else ("[", "]")
        lines.append(f'    {ids[one.name]}{left}"{_mermaid(one.name)}"{right}')
    lines += [f'    {ids[edge.source]} -->|"{_mermaid(_label(edge))}"| {ids[edge.target]}' for edge in graph.edges]
    return "\n".join(lines)


def _mermaid(text: str) -> str:
    return text.replace("#", "#35;").replace('"', "#quot;")


def graph_dot(graph: Graph) -> str:
    """A directed graph for Graphviz."""
    lines = ["digraph mesh {", "    rankdir=LR;", "    node [shape=box];"]
    for one in graph.nodes:
        shape = " [shape=ellipse]" if one.outside else ""
        lines.append(f"    {_dot(one.name)}{shape};")
    lines += [f"    {_dot(edge.source)} -> {_dot(edge.target)} [label={_dot(_label(edge))}];" for edge in graph.edges]
    return "\n".join((*lines, "}"))


def _dot(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- trees ------------------------------------------------------------------------------------------------------------
def tree_text(branches: Iterable[Branch], *, colour: bool = False) -> str:
    """A request as a tree, one line for each span. Attempts that died are struck through: by the terminal, or between tildes."""
    lines: list[str] = []
    todo = [(0, branch) for branch in reversed(_received(branches))]
    while todo:
        depth, branch = todo.pop()
        lines.append("  " * depth + _line(branch, colour))
        todo += [(depth + 1, child) for child in reversed(_received(branch.below))]
    return "\n".join(lines)


def _received(branches: Iterable[Branch]) -> list[Branch]:
    """`branches` with messages that were received in place of the spans that sent them: those say all that these say."""
    found = (one for branch in branches for one in (branch.below if branch.op == "send" and branch.below else (branch,)))
    return sorted(found, key=lambda one: (one.start, one.id))


def _line(branch: Branch, colour: bool) -> str:
    what = _what(branch)
    if branch.died:
        what = f"{STRUCK}{what}{PLAIN}" if colour else f"~~{what}~~"
    parts = [what, _time(branch)]
    if branch.wait_s:
        parts.append(f"waited {seconds_text(branch.wait_s)}")
    if branch.op in ("invoke_agent", "chat") and branch.tokens:
        parts.append(f"{branch.tokens:,} tokens")
    if branch.usd:
        parts.append(dollars(branch.usd))
    if branch.below and branch.op == "process" and branch.all_usd > branch.usd:
        parts.append(f"in all {dollars(branch.all_usd)}")
    if branch.error and not branch.died:
        parts.append(f"error {branch.error}")
    return "  ".join(parts)


def _what(branch: Branch) -> str:
    if branch.op == "process":
        what = "timer" if branch.lane == "due" else "event" if branch.lane.endswith("notify") else branch.ref
        sender = branch.caller or (
            one_line(branch.chain) if branch.chain else ""
        )  # which is the user alone where no agent has sent it
        return " ".join((branch.agent, *filter(None, (what, f"from {sender}" if sender else ""))))
    if branch.op == "invoke_agent":
        number = f" turn {branch.turn}" if branch.turn is not None else ""
        attempt = f" attempt {branch.attempt}" if branch.attempt is not None else ""
        where = f" on {branch.node}" if branch.node else ""
        return f"{branch.agent}{number}{attempt}{where}"
    return one_line(branch.name)


def _time(branch: Branch) -> str:
    if branch.end is None:
        return "runs"
    took = seconds_text(max(0.0, branch.end - branch.start))
    return f"{branch.ended} after {took}" if branch.died else took
