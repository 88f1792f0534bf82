"""Verbs that show who talks to whom, and what became of a request: `graph` and `trace`."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import DEFAULTS, Flag, GlobalOptions, Globals, session

if TYPE_CHECKING:
    from agentmesh_client import GraphReport, TraceReport

Since = Annotated[dt.timedelta, Parameter(help="How far back: 90s, 15m, 2h, 1d.")]

trace = App(name="trace", help="Show what became of a request, over all agents; or write all spans once more to a collector.")


async def graph(
    *,
    since: Since = dt.timedelta(minutes=15),
    by: Literal["agent", "kind", "node"] = "agent",
    live: Flag = False,
    options: Globals = DEFAULTS,
) -> int:
    """Show who talks to whom: messages, errors, times to the answer, waiting times, tokens and money.

    Parameters
    ----------
    by
        What the nodes of the graph are.
    live
        Go on, and show it again when it has changed, until interrupted.
    """
    from agentmesh_client.cli.output import Printer

    printer = Printer(options)
    async with session(options) as mesh:
        if not live:
            report = await mesh.traces.graph(since=since, by=by)
            printer.note(str(report.source))
            if not report.graph.edges:
                printer.note("nobody has talked to anybody in that time")
            _print(_graph_text(report, options))
            return exits.OK
        printer.note("the graph is shown again when it has changed; Ctrl-C ends")
        async for report in mesh.traces.watch_graph(since=since, by=by):
            _show(_graph_text(report, options), options)
    return exits.OK


def _graph_text(report: GraphReport, options: GlobalOptions) -> str:
    from agentmesh_client.cli import drawn
    from agentmesh_client.cli.output import json_text

    match options.output:
        case "text":
            return drawn.graph_text(report.graph)
        case "mermaid":
            return drawn.graph_mermaid(report.graph)
        case "dot":
            return drawn.graph_dot(report.graph)
        case "jsonl":
            return "\n".join(json_text(edge) for edge in report.graph.edges)
        case _:
            return json_text(report)


@trace.default
async def show(
    ref: Annotated[str, Parameter(help="AGENT/REF, a ref, or the id of a trace.")],
    /,
    *,
    since: Since = dt.timedelta(days=1),
    follow: Flag = False,
    options: Globals = DEFAULTS,
) -> int:
    """Show a request as a tree over agents, nodes and attempts, with times, tokens, money; attempts that died are struck through.

    Parameters
    ----------
    follow
        Go on until nothing of it runs any more, and show it again when it has changed.
    """
    from agentmesh_client.cli.output import Printer

    printer = Printer(options)
    async with session(options) as mesh:
        if not follow:
            report = await mesh.traces.trace(ref, since=since)
            printer.note(f"trace {report.trace}; {report.source}")
            _print(_trace_text(report, options))
            return exits.OK
        async for report in mesh.traces.follow(ref, since=since):
            _show(_trace_text(report, options), options)
    return exits.OK


def _trace_text(report: TraceReport, options: GlobalOptions) -> str:
    import msgspec

    from agentmesh.trace.tree import walk
    from agentmesh_client.cli import drawn
    from agentmesh_client.cli.output import colour_wanted, json_text

    if options.output == "text":
        return drawn.tree_text(report.branches, colour=colour_wanted())
    # Flat, each with its parent: a tree may be deeper than readers of JSON take.
    spans = [msgspec.structs.replace(branch, below=()) for _, branch in walk(report.branches)]
    if options.output == "jsonl":
        return "\n".join(json_text(span) for span in spans)
    return json_text({"v": 1, "trace": report.trace, "spans": spans, "source": report.source})


@trace.command
async def rebuild(
    *,
    otlp: Annotated[str, Parameter(help="The collector: http://HOST:4318, or grpc://HOST:4317.")],
    since: Since = dt.timedelta(days=7),
    options: Globals = DEFAULTS,
) -> int:
    """Write the spans that the mesh keeps once more to a collector: the same ids, parents, names and attributes."""
    from agentmesh_client.cli.output import Printer
    from agentmesh_client.rebuild import write_spans

    printer = Printer(options)
    async with session(options) as mesh:
        spans = await mesh.traces.spans(since=since)
        written = await write_spans(spans, otlp)
    printer.value({"v": 1, "spans": written}, f"{written} spans written to {otlp}")
    return exits.OK


def _print(text: str) -> None:
    if text:
        print(text)


def _show(text: str, options: GlobalOptions) -> None:
    """Print what replaces what was shown before: on a terminal in its place."""
    if options.output == "text" and sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")
    _print(text)
    sys.stdout.flush()
