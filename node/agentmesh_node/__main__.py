"""`python -m agentmesh_node up|setup|node|supervisor|models`: the hosting verbs without the client package."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from agentmesh.errors import MeshError
from agentmesh_node import cli
from agentmesh_node.process.signals import EXIT_USAGE, report_error

NAME = "python -m agentmesh_node"
app = App(name=NAME, help="Host agents.", help_formatter="plain", help_format="plaintext")
for _verb in (cli.up, cli.setup, cli.node, cli.supervisor, cli.models):
    app.command(_verb)
app.command(cli.worker, show=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; `arguments` default to the process's. Returns the exit code."""
    try:
        return int(app(arguments, print_error=False, exit_on_error=False, result_action="return_int_as_exit_code_else_zero"))
    except CycloptsError as error:
        print(f"mesh: {error} See `{NAME} --help`.", file=sys.stderr)
        return EXIT_USAGE
    except MeshError as error:
        return report_error(error)


if __name__ == "__main__":
    raise SystemExit(main())
