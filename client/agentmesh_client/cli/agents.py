"""Verbs that start, stop and list agents and nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import (
    BUDGET_EXAMPLE,
    DEFAULTS,
    AgentName,
    Flag,
    Globals,
    Pairs,
    json_object,
    json_or_text,
    session,
)

if TYPE_CHECKING:
    from agentmesh.control_values import Status
    from agentmesh_client import AgentEntry, ChangeEntry, Mesh, NodeEntry, TurnEntry
    from agentmesh_client.cli.output import Printer

LOOK_S = 0.25
"""How often it is looked whether a node serves a kind."""


async def start(
    name: AgentName,
    /,
    *,
    kind: str,
    backend: str | None = None,
    backend_option: Pairs = None,
    option: Pairs = None,
    options_json: Annotated[str | None, Parameter(name="--options")] = None,
    label: Pairs = None,
    restart: Literal["permanent", "transient", "temporary"] | None = None,
    watchdog: float | None = None,
    budget: str | None = None,
    if_exists: Literal["error", "use"] = "error",
    timeout: float = 30.0,
    no_wait: Flag = False,
    options: Globals = DEFAULTS,
) -> int:
    """Start an agent, and wait until a node runs it. Nothing is registered before a live node serves its kind.

    Parameters
    ----------
    kind
        The agent's class, as nodes announce it (`mesh nodes`).
    backend
        The backend; by default the class's own.
    backend_option
        key=value for the backend, over what the class chooses, several times; the value is JSON, or else text.
    option
        key=value for `init_agent`, several times; the value is JSON, or else text.
    options_json
        All options as one JSON object.
    label
        key=value that a node must have to run the agent, several times.
    restart
        What happens when the agent's own code crashes; by default permanent.
    watchdog
        Longest turn, in seconds.
    budget
        What each turn may cost, as JSON: {"usd": 1, "tokens": 100000, "wall_s": 60, "tool_calls": 20}, or some of these.
    if_exists
        `use` takes an agent of this kind that has the name already, as it is.
    timeout
        Seconds to wait for a node.
    no_wait
        Register the agent, also for a node that comes later, and return.
    """
    from agentmesh.arguments import pairs
    from agentmesh_client.cli.output import Printer

    settings = json_object(options_json, "--options", '{"model": "large"}')
    settings |= {key: json_or_text(value) for key, value in pairs(option or (), "--option").items()}
    backend_options = {key: json_or_text(value) for key, value in pairs(backend_option or (), "--backend-option").items()}
    bounds = json_object(budget, "--budget", BUDGET_EXAMPLE) if budget is not None else None
    wanted = pairs(label or (), "--label")
    printer = Printer(options)
    async with session(options) as mesh:
        timeout = await _await_kind(mesh, printer, name, kind, timeout, no_wait=no_wait)
        agent = await mesh.start_agent(
            name,
            kind=kind,
            backend=backend,
            options=settings,
            backend_options=backend_options,
            labels=wanted,
            restart=restart,
            watchdog_s=watchdog,
            budget=bounds,
            if_exists=if_exists,
            timeout=timeout,
            wait=not no_wait,
        )
    before = ", and was there before: its options stay" if agent.existed else ""
    printer.value(agent, f"{name} is {agent.status}" + (f" on {agent.node}" if agent.node else "") + before)
    return exits.OK


async def _await_kind(mesh: Mesh, printer: Printer, name: str, kind: str, timeout: float, *, no_wait: bool) -> float:
    """Wait until a live node serves `kind`, so that a misspelt one leaves nothing behind. Returns the seconds that are left.

    Raises:
        Unavailable: none does in time, or the name is taken by then anyway.
    """
    import asyncio

    from agentmesh.errors import Unavailable
    from agentmesh.names import agent_name, token

    agent_name(name)
    token(kind, "kind")
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    kinds = await _kinds(mesh)
    if kind in kinds:
        return timeout
    there = _known(kind, kinds)
    if no_wait:
        printer.note(f"no live node serves the kind {kind!r} ({there}); it is registered, and starts when such a node comes")
        return timeout
    printer.note(f"no live node serves the kind {kind!r} ({there}); waiting up to {timeout:g} s for one")
    while kind not in kinds:
        if loop.time() + LOOK_S > end:
            raise Unavailable(
                f"no live node serves the kind {kind!r} ({_known(kind, kinds)}), so {name} was not registered; `--no-wait` "
                "registers it for a node that comes later",
                details={"agent": name, "kind": kind, "status": "unknown"},
            )
        await asyncio.sleep(LOOK_S)
        kinds = await _kinds(mesh)
    return max(end - loop.time(), 1.0)


async def _kinds(mesh: Mesh) -> set[str]:
    return {known for node in await mesh.nodes() for known in node.lease.kinds}


def _known(kind: str, kinds: set[str]) -> str:
    """The kinds that there are, the likeliest first if one looks like `kind`."""
    import difflib

    if not kinds:
        return "there is no live node"
    close = difflib.get_close_matches(kind, sorted(kinds), n=1, cutoff=0.7)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"there are: {', '.join(sorted(kinds))}{hint}"


async def stop(name: AgentName, /, *, timeout: float = 30.0, no_wait: Flag = False, options: Globals = DEFAULTS) -> int:
    """End an agent's life and free its name; its callers are answered `stopped`.

    Parameters
    ----------
    timeout
        Seconds to wait for the end.
    no_wait
        Return once the request to stop is written.
    """
    from agentmesh_client.cli.asks import show_ended
    from agentmesh_client.cli.output import Printer

    async with session(options) as mesh:
        if options.wait and not no_wait:
            return show_ended(options, "stopped", await mesh.end(name, how="stop", wait=options.wait, timeout=timeout), "")
        await mesh.stop(name, timeout=timeout, wait=not no_wait)
    status = "stopping" if no_wait else "stopped"
    Printer(options).value({"v": 1, "name": name, "status": status}, f"{name} is {status}")
    return exits.OK


async def ps(*, every: Annotated[Flag, Parameter(name="--all")] = False, options: Globals = DEFAULTS) -> int:
    """List the agents, and what those that are loaded are doing: state, requests that they have deferred, prompts that wait, age
    of the turn, cost in this life.

    Parameters
    ----------
    every
        Include those that have been stopped.
    """
    from agentmesh_client.cli.output import Printer, age, dollars

    def row(agent: AgentEntry) -> list[str]:
        spec = agent.spec
        reason = ": ".join(filter(None, (spec.reason.code, spec.reason.message))) if spec.reason else "-"
        cells = [agent.name, spec.kind, spec.backend or "-", spec.status, agent.node or "-", age(spec.since)]
        if (doing := agent.activity) is None:
            return [*cells, "-", "-", "-", "-", reason]
        state: str = "halted" if doing.halted and doing.state == "idle" else doing.state
        state += f", {doing.open} open" if doing.open else ""
        return [*cells, state, str(doing.queued), age(doing.since), dollars(doing.usd) if doing.usd else "-", reason]

    async with session(options) as mesh:
        found = await mesh.list_agents(stopped=every, activity=True)
    columns = ("NAME", "KIND", "BACKEND", "STATUS", "NODE", "SINCE", "STATE", "QUEUE", "TURN", "COST", "REASON")
    Printer(options).table(found, columns, row, nothing="there are no agents; start one: `mesh start NAME --kind KIND`")
    return exits.OK


async def nodes(*, options: Globals = DEFAULTS) -> int:
    """List the live nodes, with the kinds that they serve and the version of the code of each (`Kind@version`)."""
    from agentmesh.formats import users_labels
    from agentmesh_client.cli.output import Printer, age

    def row(node: NodeEntry) -> list[str]:
        lease = node.lease
        state = "draining" if lease.draining else "cordoned" if lease.cordoned else "ready"
        labels = ",".join(f"{key}={value}" for key, value in sorted(users_labels(lease.labels).items()))
        load = f"{lease.agents}/{lease.capacity}" if lease.capacity else str(lease.agents)
        kinds = ",".join(f"{kind}@{lease.code[kind]}" if kind in lease.code else kind for kind in lease.kinds)
        return [node.id, state, load, age(lease.started), lease.version or "-", labels or "-", kinds or "-"]

    async with session(options) as mesh:
        found = await mesh.nodes()
    columns = ("NODE", "STATE", "AGENTS", "UP", "VERSION", "LABELS", "KINDS")
    Printer(options).table(found, columns, row, nothing="no node is live; start one: `mesh node --agents MODULE`")
    return exits.OK


async def status(name: AgentName, /, *, content: Flag = False, timeout: float = 10.0, options: Globals = DEFAULTS) -> int:
    """Show what an agent is doing.

    Parameters
    ----------
    content
        Show the agent's own state too.
    timeout
        Seconds to wait for the agent's owner.
    """
    from agentmesh_client.cli.output import Printer, fields

    async with session(options) as mesh:
        found = await mesh.status(name, content, timeout=timeout)
    Printer(options).value(found, fields(_status_lines(found, content)))
    return exits.OK


async def history(name: AgentName, /, *, content: Flag = False, options: Globals = DEFAULTS) -> int:
    """Show the turns that an agent has had in this life, and the changes of its configuration, from its journal.

    Parameters
    ----------
    content
        Show prompts and answers too; of a turn without an answer what its tools did.
    """
    from agentmesh.tool_runs import shown
    from agentmesh_client import ChangeEntry
    from agentmesh_client.cli.configuration import change_text
    from agentmesh_client.cli.output import Printer, age, one_line

    def row(entry: TurnEntry | ChangeEntry) -> list[str]:
        if isinstance(entry, ChangeEntry):
            cells = ["-", "-", age(entry.at.isoformat()), "-", "-", entry.node, "-", change_text(entry)]
            return [*cells, "-", "-"] if content else cells
        turn = entry
        took = f"{(turn.ended - turn.started).total_seconds():.3f} s"
        result = "ok" if turn.error is None else turn.error.code
        if turn.deferred is not None:
            result = f"deferred{', exclusive' if turn.deferred.exclusive else ''}"
            result += f" until {turn.deferred.deadline}" if turn.deferred.deadline else ""
        answer = turn.answer
        if turn.closed is not None:
            result = f"deferred, then {'answered' if turn.closed.error is None else turn.closed.error.code}"
            answer = turn.closed.answer
        cells = [
            str(turn.turn),
            turn.ref,
            age(turn.started.isoformat()),
            took,
            turn.chain or turn.sender or "-",
            f"{turn.node} (code {' -> '.join(turn.code)})" if turn.code else turn.node,
            str(turn.takeovers),
            f"{result} ({shown(turn.tools)})" if turn.tools else result,
        ]
        return [*cells, one_line(turn.prompt), one_line(answer if turn.note is None else turn.note)] if content else cells

    async with session(options) as mesh:
        turns = await mesh.history(name, content)
        changes = await mesh.configuration_history(name)
    columns = (
        "TURN",
        "REF",
        "STARTED",
        "TOOK",
        "FROM",
        "NODE",
        "TAKEOVERS",
        "RESULT",
        *(("PROMPT", "ANSWER") if content else ()),
    )
    both: list[TurnEntry | ChangeEntry] = [*turns, *changes]
    both.sort(key=lambda entry: (entry.after_turn, 1, entry.number) if isinstance(entry, ChangeEntry) else (entry.turn, 0, 0))
    printer = Printer(options)
    printer.table(both, columns, row, nothing=f"{name} has had no turn that is still in its journal")
    if turns and turns[0].turn > 1 and not printer.as_json:
        kept = "its node's setting MESH_HISTORY says how many are kept at least"
        printer.note(f"turns before {turns[0].turn} are not kept any more; {kept}")
    return exits.OK


def _status_lines(found: Status, content: bool) -> list[tuple[str, str]]:
    from agentmesh_client.cli.configuration import configuration_lines
    from agentmesh_client.cli.output import age, json_text, open_text, usage_text

    lines = [
        ("name", found.name),
        ("kind", found.kind),
        ("backend", found.backend),
        ("state", found.state + (", halted" if found.halted else "")),
        ("queued", str(found.queued)),
        ("request", found.current_request or "-"),
        ("since", age(found.since)),
        ("for", (found.sender or "outside") if found.current_request else "-"),
        ("tool", found.tool or "-"),
        *([("callback", found.callback)] if found.callback is not None else []),
        ("turn", str(found.turn)),
        ("node", found.node),
        ("incarnation", found.incarnation),
        ("generation", str(found.generation)),
        ("usage", usage_text(found.usage)),
    ]
    lines += [("open", open_text(request)) for request in found.open]
    if found.open_more:
        lines.append(("open", f"and {found.open_more} more"))
    if found.configuration is not None:
        lines += configuration_lines(found.configuration)
    if found.failed is not None:
        lines.append(("failed", f"{found.failed.code}: {found.failed.message}"))
    if found.waiting is not None:
        lines.append(("waiting", f"{found.waiting.code}: {found.waiting.message}"))
    if content:
        lines.append(("agent state", json_text(found.agent_state)))
    return lines
