"""`python -m agentmesh_node up|node|supervisor`: the hosting verbs where the client package is not wanted."""

from __future__ import annotations

from cyclopts import App

from agentmesh_node import cli

app = App(name="python -m agentmesh_node", help="Host agents.", result_action="return_int_as_exit_code_else_zero")
for _verb in (cli.up, cli.node, cli.supervisor):
    app.command(_verb)

if __name__ == "__main__":
    raise SystemExit(app())
