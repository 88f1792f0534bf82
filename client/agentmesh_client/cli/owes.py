"""The verb that shows who waits for whom."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import DEFAULTS, Globals, session

if TYPE_CHECKING:
    from agentmesh_client import WaitCircle, WaitEntry, WaitGraph

CLIENT = "client"
"""What the world outside is called, which has no name."""


async def owes(
    agent: Annotated[str | None, Parameter(help="The agent's name.")] = None,
    /,
    *,
    timeout: float = 30.0,
    options: Globals = DEFAULTS,
) -> int:
    """Show who waits for whom now: clients and agents, since when, until when, and circles. With AGENT only what waits for it,
    directly or by way of others, and what it waits for itself.

    It is read from journals, mail and the registry: no process is asked, and a kill changes nothing of it.

    Parameters
    ----------
    timeout
        Seconds to wait for the server.
    """
    from agentmesh_client.cli.output import Printer

    async with session(options) as mesh:
        found = await mesh.owes(agent, timeout=timeout)
    printer = Printer(options)
    if found.waits or printer.as_json:
        printer.value(found, text_of(found))
    else:
        about = "nobody waits for anybody" if agent is None else f"nobody waits for {agent}, and it waits for nobody"
        printer.note(about)
    if found.unread:
        names = ", ".join(found.unread)
        printer.note(f"the journals of these cannot be read, so for whom they wait is not known: {names}")
    return exits.OK


def text_of(found: WaitGraph, now: dt.datetime | None = None) -> str:
    """The waits as a table, and a line for each circle."""
    from agentmesh_client.cli.output import aligned

    columns = ("WAITS", "FOR", "KIND", "STAGE", "SINCE", "ENDS", "REF", "BEHALF", "STATE", "REASON")
    table = aligned(columns, [_row(entry, now) for entry in found.waits])
    return "\n".join([table, *([""] if found.circles else []), *(_circle(circle, now) for circle in found.circles)])


def _row(entry: WaitEntry, now: dt.datetime | None) -> tuple[str, ...]:
    from agentmesh_client.cli.output import age, one_line, until

    trouble = entry.reason is not None and entry.state not in ("running", "idle", "halted")
    return (
        entry.waiter or CLIENT,
        entry.agent,
        entry.kind,
        f"{entry.stage}, exclusive" if entry.exclusive else entry.stage,
        age(None if entry.since is None else entry.since.isoformat(), now),
        until(entry.deadline, now),
        entry.ref or "-",
        entry.request or "-",
        entry.state.replace("_", " ") + (f" on {entry.node}" if entry.node else ""),
        one_line(f"{entry.reason.code}: {entry.reason.message}" if entry.reason is not None and trouble else None),
    )


def _circle(circle: WaitCircle, now: dt.datetime | None) -> str:
    from agentmesh_client.cli.output import until

    text = f"circle: {' -> '.join((*circle.agents, circle.agents[0]))}"
    text += "; none of them can go on" if circle.blocked else "; they can still answer"
    if circle.deadline is not None:
        text += f"; the first of these waits ends {until(circle.deadline, now)}"
    return text + (f"; in circles with them: {', '.join(circle.others)}" if circle.others else "")
