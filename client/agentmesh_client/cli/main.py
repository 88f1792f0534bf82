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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import EntryPoint, entry_points, version
from typing import TYPE_CHECKING

from agentmesh_client.cli import exits

if TYPE_CHECKING:
    from inspect import BoundArguments

    from cyclopts import App, CycloptsError

    from agentmesh_client.cli.common import GlobalOptions

GROUP = "agentmesh.commands"

VERBS = {
    "start": ("agents:start", "Start an agent."),
    "stop": ("agents:stop", "End an agent's life and free its name."),
    "set": ("configuration:change", "Change a running agent's configuration."),
    "ps": ("agents:ps", "List the agents."),
    "nodes": ("agents:nodes", "List the live nodes."),
    "status": ("agents:status", "Show what an agent is doing."),
    "history": ("agents:history", "Show the turns that an agent has had."),
    "owes": ("owes:owes", "Show who waits for whom now, and circles."),
    "graph": ("traces:graph", "Show who talks to whom."),
    "trace": ("traces:trace", "Show what became of a request, over all agents."),
    "dead": ("dead:app", "List, read, send again or remove mail that an agent could not deal with."),
    "ask": ("asks:ask", "Prompt an agent and print its answer."),
    "tell": ("asks:tell", "Prompt an agent without waiting; print the ref."),
    "poll": ("asks:poll", "Show what became of a request."),
    "notify": ("asks:notify", "Send an event to an agent."),
    "cancel": ("asks:cancel", "Remove a prompt that waits, or close a deferred one."),
    "reply": ("asks:reply", "Answer a request that an agent has deferred."),
    "interrupt": ("asks:interrupt", "Kill an agent's running turn."),
    "resume": ("asks:resume", "Let a halted or failed agent go on."),
    "drain": ("admin:drain", "Have a node hand its agents over and end."),
    "cordon": ("admin:cordon", "Have a node take no more agents."),
    "move": ("admin:move", "Have an agent go on at another node."),
    "rebalance": ("admin:rebalance", "Even out the load of the nodes."),
    "events": ("admin:events", "Show what happens, as it happens."),
    "doctor": ("doctor:doctor", "Examine the server and the mesh on it, and say what it guarantees."),
    "access": ("access:app", "Make the users of a mesh, and say what they may do."),
    "completion": ("completion:completion", "Print a script with which a shell completes verbs and options."),
}

DRAWN = ("mermaid", "dot")
"""Formats of output that are drawings of a graph."""
TEXT_VERBS = ("ask", "tell", "notify")
"""Verbs whose last argument is a text: it is easily given without the quotes that the shell wants."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's arguments. Returns the exit code (`exits`)."""
    try:
        from cyclopts import CycloptsError
    except ImportError:
        print("mesh: the command line needs the extra `cli`: install agentmesh[cli]", file=sys.stderr)
        return exits.FAILED
    call = Invocation(sys.argv[1:] if argv is None else argv)
    try:
        return call.run()
    except CycloptsError as error:
        print(f"mesh: {' '.join(str(error).split())} {call.advice(error)}", file=sys.stderr)
        return exits.USAGE
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except Exception as error:  # noqa: BLE001 - the top of the program
        if call.options is not None and call.options.debug:
            traceback.print_exception(error)
        print(call.complaint(error), file=sys.stderr)
        return exits.code(error)


class Invocation:
    """The command, called once."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self.options: GlobalOptions | None = None
        """Once they are parsed."""
        self.verb = ""
        """The verb and a space, once it is known to be one."""
        self._words: list[str] = []
        """The verb and what follows it, without options."""

    def parse(self) -> tuple[Callable[..., object], BoundArguments]:
        """Parse the global options, wherever they stand, then the verb and its own. Returns what is to be called, and with what.

        Raises:
            CycloptsError: wrong use.
        """
        from cyclopts import CycloptsError

        from agentmesh_client.cli.common import DEFAULTS, any_verb

        app = app_for(self._tokens)
        rest, self.options = tuple(self._tokens), DEFAULTS
        hosting = bool(rest) and not rest[0].startswith("-") and rest[0] in app and rest[0] not in VERBS
        if not hosting:  # those verbs know no global options
            app.meta.default(any_verb)
            command, bound, _ = app.meta.parse_args(rest, print_error=False, exit_on_error=False)
            if command is not any_verb:  # but the help, or the version
                return command, bound
            rest, self.options = bound.args, bound.kwargs.get("options", DEFAULTS)
        self.verb = f"{rest[0]} " if rest and rest[0] in app else ""
        self._words = [word for word in rest if not word.startswith("-")]
        command, bound, taken = app.parse_args(rest, print_error=False, exit_on_error=False)
        bound.arguments.update(dict.fromkeys(taken, self.options))
        if self.options.output in DRAWN and self.verb.strip() != "graph":
            raise CycloptsError(msg=f"-o {self.options.output} is for `mesh graph` alone.")
        for name in ("nats", "root", "domain"):  # but these, which stood before it
            if name in bound.signature.parameters and getattr(self.options, name) is not None:
                bound.arguments.setdefault(name, getattr(self.options, name))
        if "login" in bound.signature.parameters:  # and who connects
            login = bound.arguments.get("login", bound.signature.parameters["login"].default)
            named = {field.name: getattr(login, field.name) or getattr(self.options, field.name) for field in fields(login)}
            bound.arguments["login"] = replace(login, **named)
        return command, bound

    def run(self) -> int:
        """Do what is asked for. Returns the exit code. Raises as `parse`, and as the verb."""
        command, bound = self.parse()
        result = command(*bound.args, **bound.kwargs)
        if inspect.iscoroutine(result):
            import asyncio  # not needed for help

            if "TRACEPARENT" in os.environ:
                go_on_in_trace(os.environ)
            result = asyncio.run(result)
        if sys.stdout is not None:  # it is None in a process that was started with it closed
            sys.stdout.flush()  # if the reader has left, it raises here and not at exit
        return result if isinstance(result, int) and not isinstance(result, bool) else exits.OK

    def advice(self, error: CycloptsError) -> str:
        """What to do about a command that cannot be parsed."""
        from cyclopts import UnusedCliTokensError

        unused = error.unused_tokens if isinstance(error, UnusedCliTokensError) else None
        if unused and self.verb.strip() in TEXT_VERBS and unused[0] in self._words[3:]:
            words = " ".join(self._words[2:])
            return f'Put a text of several words into quotes: `mesh {self.verb}{self._words[1]} "{words}"`.'
        return f"See `mesh {self.verb}--help`."

    def complaint(self, error: Exception) -> str:
        """The text for stderr: a sentence, or the wire's error object if JSON output was asked for."""
        if self.options is None or self.options.output == "text":
            return f"mesh: {exits.sentence(error)}"
        from agentmesh.errors import MeshError
        from agentmesh.wire import VERSION, encode

        told = error if isinstance(error, MeshError) else MeshError(exits.sentence(error))
        body = {"code": told.code, "message": told.message, "details": told.details}
        return encode({"v": VERSION, "ok": False, "error": body}).decode()


def go_on_in_trace(environ: Mapping[str, str]) -> None:
    """Have what this process sends stand in the trace that the variables name which OpenTelemetry uses between processes."""
    from opentelemetry import context, propagate

    from agentmesh.headers import TRACE_HEADERS
    from agentmesh.trace.context import context_in

    found = context_in({name: environ[name.upper()] for name in TRACE_HEADERS if name.upper() in environ})
    if found is not None:
        context.attach(propagate.extract(found.headers()))


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
    if not tokens or (tokens[0] not in VERBS and tokens[0] != "--version"):
        for entry in entry_points(group=GROUP):
            if entry.name not in VERBS:
                _add_hosting_verb(app, entry)
    return app


def _add_hosting_verb(app: App, entry: EntryPoint) -> None:
    from agentmesh_client.cli.common import RestToken

    try:
        app.command(entry.load(), name=entry.name)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other verbs can be used
        reason = exits.sentence(error)

        def stand_in(*_: RestToken) -> None:
            raise RuntimeError(f"`mesh {entry.name}` ({entry.value}) cannot be loaded: {reason}")

        stand_in.__annotations__["_"] = RestToken
        app.command(stand_in, name=entry.name, help=f"(cannot be loaded: {reason})")


if __name__ == "__main__":
    sys.exit(main())
