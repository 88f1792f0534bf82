"""The `mesh` command: finds the verb, runs it, turns its end into an exit code.

Verbs are loaded when they are used, so that `mesh --help` costs little more than the parser. The hosting verbs (`up`, `node`,
`supervisor`) are those installed under the entry-point group `agentmesh.commands`: the client knows nothing of the node, and a
verb that cannot be loaded breaks no other.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from itertools import pairwise
from typing import TYPE_CHECKING

from agentmesh_client.cli import exits

if TYPE_CHECKING:
    from cyclopts import App

GROUP = "agentmesh.commands"

VERBS = {
    "start": ("agents:start", "Start an agent."),
    "stop": ("agents:stop", "End an agent's life and free its name."),
    "ps": ("agents:ps", "List the agents."),
    "nodes": ("agents:nodes", "List the live nodes."),
    "status": ("agents:status", "Show what an agent is doing."),
    "history": ("agents:history", "Show the turns that an agent has had."),
    "dead": ("dead:app", "List, read, send again or remove mail that an agent could not deal with."),
    "ask": ("asks:ask", "Prompt an agent and print its answer."),
    "tell": ("asks:tell", "Prompt an agent without waiting; print the ref."),
    "poll": ("asks:poll", "Show what became of a request."),
    "notify": ("asks:notify", "Send an event to an agent."),
    "cancel": ("asks:cancel", "Remove a prompt that waits."),
    "interrupt": ("asks:interrupt", "Kill an agent's running turn."),
    "resume": ("asks:resume", "Let a halted or failed agent go on."),
    "drain": ("admin:drain", "Have a node hand its agents over and end."),
    "cordon": ("admin:cordon", "Have a node take no more agents."),
    "rebalance": ("admin:rebalance", "Even out the load of the nodes."),
    "events": ("admin:events", "Show what happens, as it happens."),
    "doctor": ("doctor:doctor", "Examine the server and the mesh on it, and say what it guarantees."),
}
_GLOBAL_WITH_VALUE = ("--nats", "--root", "--output", "-o")
_GLOBAL_FLAGS = ("--quiet", "--debug")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's arguments. Returns the exit code (`exits`)."""
    tokens = verb_first(list(sys.argv[1:] if argv is None else argv))
    try:
        return _run(tokens)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except Exception as error:  # noqa: BLE001 - the top of the program
        if "--debug" in tokens:
            traceback.print_exception(error)
        print(_complaint(error, tokens), file=sys.stderr)
        return exits.code(error)


def _complaint(error: Exception, tokens: Sequence[str]) -> str:
    """The text for stderr: a sentence, or the wire's error object if JSON output was asked for."""
    if not _wants_json(tokens):
        return f"mesh: {exits.sentence(error)}"
    from agentmesh.errors import MeshError
    from agentmesh.wire import VERSION, encode

    told = error if isinstance(error, MeshError) else MeshError(exits.sentence(error))
    body = {"code": told.code, "message": told.message, "details": told.details}
    return encode({"v": VERSION, "ok": False, "error": body}).decode()


def _wants_json(tokens: Sequence[str]) -> bool:
    """Whether `-o json` or `-o jsonl`, in any spelling, is among the arguments."""
    said = [second for first, second in pairwise(tokens) if first in ("-o", "--output")]
    said += [token.partition("=")[2] for token in tokens if token.startswith(("-o=", "--output="))]
    return bool(said) and said[-1].startswith("json")


def verb_first(tokens: list[str]) -> list[str]:
    """`tokens` with the global options that stand before the verb moved behind it, where each verb takes them."""
    moved = 0
    while moved < len(tokens):
        if tokens[moved] in _GLOBAL_WITH_VALUE:
            moved += 2
        elif tokens[moved] in _GLOBAL_FLAGS or tokens[moved].startswith(("--nats=", "--root=", "--output=")):
            moved += 1
        else:
            break
    return [*tokens[moved : moved + 1], *tokens[:moved], *tokens[moved + 1 :]]


def _run(tokens: list[str]) -> int:
    try:
        from cyclopts import CycloptsError
    except ImportError:
        print("mesh: the command line needs the extra `cli`: install agentmesh[cli]", file=sys.stderr)
        return exits.FAILED
    app = app_for(tokens)
    try:
        command, bound, _ = app.parse_args(tokens, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        verb = f"{tokens[0]} " if tokens and tokens[0] in app else ""
        print(f"mesh: {' '.join(str(error).split())} See `mesh {verb}--help`.", file=sys.stderr)
        return exits.USAGE
    result: object = command(*bound.args, **bound.kwargs)
    if inspect.iscoroutine(result):
        import asyncio  # not needed for help

        result = asyncio.run(result)
    if sys.stdout is not None:  # it is None in a process that was started with it closed
        sys.stdout.flush()  # if the reader has left, it raises here and not at exit
    return result if isinstance(result, int) and not isinstance(result, bool) else exits.OK


def app_for(tokens: Sequence[str]) -> App:
    """The parser, with as much loaded as `tokens` need."""
    from cyclopts import App

    app = App(
        name="mesh",
        help="Agents as a mesh on NATS: start them, talk to them, host them.",
        version=lambda: version("agentmesh"),
        help_formatter="plain",
        help_format="plaintext",  # the default, markdown, costs a quarter of the time of `mesh --help`
        help_epilogue=exits.HELP,
    )
    for name, (target, summary) in VERBS.items():
        app.command(f"agentmesh_client.cli.{target}", name=name, help=summary)
    first = tokens[0] if tokens else "--help"
    if first not in VERBS and first != "--version":
        for entry in entry_points(group=GROUP):
            if entry.name not in VERBS:
                _add_hosting_verb(app, entry, wanted=entry.name == first)
    return app


def _add_hosting_verb(app: App, entry: EntryPoint, *, wanted: bool) -> None:
    try:
        app.command(entry.load(), name=entry.name)
    except Exception as error:
        if wanted:
            raise RuntimeError(f"`mesh {entry.name}` ({entry.value}) cannot be loaded: {exits.sentence(error)}") from error
        app.command(_nothing, name=entry.name, help=f"(cannot be loaded: {exits.sentence(error)})")


def _nothing() -> int:
    """Stands in the help for a verb that cannot be loaded. A call of such a verb has raised before this."""
    return exits.FAILED


if __name__ == "__main__":
    sys.exit(main())
