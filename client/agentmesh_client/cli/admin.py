"""Verbs for operators of a mesh: drain and cordon nodes, move agents, even out load, watch decisions."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from agentmesh_client.cli import exits
from agentmesh_client.cli.common import DEFAULTS, AgentName, Flag, Globals, session

if TYPE_CHECKING:
    from agentmesh.control_values import Activity
    from agentmesh.edge.transport import Message

NodeId = Annotated[str, Parameter(help="The node's id, as `mesh nodes` shows it.")]


async def drain(node: NodeId, /, *, timeout: float = 60.0, no_wait: Flag = False, options: Globals = DEFAULTS) -> int:
    """Have a node finish its turns, hand its agents over, and end.

    Parameters
    ----------
    timeout
        Seconds to wait for the node's end.
    no_wait
        Return once the node has accepted the request.
    """
    from agentmesh.edge.address import UP_ID
    from agentmesh_client.admin import Operator
    from agentmesh_client.cli.output import Printer

    printer = Printer(options)
    async with session(options) as mesh:
        operator = Operator(mesh.transport, mesh.subjects)
        await operator.drain(node)
        if node == UP_ID:
            logging.getLogger("agentmesh.edge").setLevel(logging.ERROR)  # its server ends with it: no news, then
        if not no_wait:
            await operator.gone(node, timeout, lambda one: printer.note(_waits_for(one)))
    state = "draining" if no_wait else "gone"
    printer.value({"v": 1, "node": node, "state": state}, f"{node} is {state}")
    return exits.OK


def _waits_for(one: Activity) -> str:
    """For what a node's end waits, in a line."""
    from agentmesh_client.cli.output import age

    tool = "" if one.tool is None else f", in the tool {one.tool}"
    since = "" if one.since is None else f", begun {age(one.since)} ago"
    return f"waiting for a turn of {one.name}{since}: {one.steps} steps taken{tool}"


async def cordon(node: NodeId, /, *, off: Flag = False, options: Globals = DEFAULTS) -> int:
    """Have a node keep its agents and take no more.

    Parameters
    ----------
    off
        Let it take agents again.
    """
    from agentmesh_client.admin import Operator
    from agentmesh_client.cli.output import Printer

    async with session(options) as mesh:
        await Operator(mesh.transport, mesh.subjects).cordon(node, on=not off)
    state = "ready" if off else "cordoned"
    Printer(options).value({"v": 1, "node": node, "state": state}, f"{node} is {state}")
    return exits.OK


async def move(
    agent: AgentName, node: NodeId, /, *, wait: Flag = False, timeout: float = 60.0, options: Globals = DEFAULTS
) -> int:
    """Have an agent go on at another node. Its turn goes on there between two calls, or ends first.

    Parameters
    ----------
    wait
        Return once it is there, and say meanwhile which turn it still is in.
    timeout
        Seconds to wait; the order stands longer.
    """
    from agentmesh_client.admin import Operator
    from agentmesh_client.cli.output import Printer

    printer = Printer(options)
    async with session(options) as mesh:
        operator = Operator(mesh.transport, mesh.subjects)
        moving = await operator.move(agent, node)
        if moving and wait:
            await operator.arrived(agent, node, timeout, lambda one: printer.note(_waits_for(one)))
    state = "moving" if moving and not wait else "there"
    text = f"{agent} moves to {node}" if state == "moving" else f"{agent} is on {node}"
    printer.value({"v": 1, "name": agent, "node": node, "state": state}, text)
    return exits.OK


async def rebalance(*, options: Globals = DEFAULTS) -> int:
    """Move agents from full nodes to emptier ones, as few as possible; a turn goes on elsewhere, or its agent stays."""
    from agentmesh_client.admin import Operator
    from agentmesh_client.cli.output import Printer

    async with session(options) as mesh:
        moving = await Operator(mesh.transport, mesh.subjects).rebalance()
    text = "1 agent is asked to move" if moving == 1 else f"{moving} agents are asked to move"
    Printer(options).value({"v": 1, "moving": moving}, text)
    return exits.OK


async def events(
    agent: str | None = None, /, *, every: Annotated[Flag, Parameter(name="--all")] = False, options: Globals = DEFAULTS
) -> int:
    """Show what happens, as it happens, until interrupted: the supervisors' decisions with their reasons.

    Parameters
    ----------
    agent
        Show what happens to this agent instead.
    every
        Show both, for all agents.
    """
    from agentmesh.edge.registry import Registry
    from agentmesh.errors import NotPermitted
    from agentmesh.names import agent_name
    from agentmesh.subjects import EPOCH_KEY
    from agentmesh_client.cli.output import Printer

    printer = Printer(options)
    async with session(options) as mesh:
        subjects = mesh.subjects
        if every:
            wanted = [subjects.event_all()]
        elif agent is not None:
            wanted = [subjects.event(agent_name(agent), "*")]
        else:
            wanted = [subjects.event("_supervisor", "*")]

        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(error: Exception) -> None:
            if not ended.done():
                ended.set_exception(error)
                ended.exception()  # if the verb ends by something else, nobody awaits it

        def show(message: Message) -> None:
            try:
                _show(printer, message.data)
            except OSError as error:  # the reader of the output has left, or the disk is full: this verb has no other end
                end(error)

        mesh.transport.on_refused(end)  # also later: its permissions may be changed
        for subject in wanted:
            await mesh.transport.subscribe(subject, show)
        await mesh.transport.flush()
        if ended.done():
            ended.result()
        with suppress(NotPermitted):  # who may see events need not be one who may read the registry
            await Registry(mesh.transport, subjects).get(EPOCH_KEY)  # raises if there is no such mesh
        if agent is not None and not every and await mesh.whereis(agent) is None:
            printer.note(f"no node runs an agent {agent!r} now; see `mesh ps` for the names in use")
        printer.note("waiting for events; Ctrl-C ends")
        await ended
    return exits.OK


def _show(printer: Any, body: bytes) -> None:
    import sys

    import msgspec

    try:
        event: dict[str, Any] = msgspec.json.decode(body, type=dict)
    except msgspec.DecodeError:
        return
    printer.value(event, _line(event))
    sys.stdout.flush()


def _behalf(chain: object) -> str:
    """On whose behalf it is, as all pages and verbs say it."""
    import msgspec

    from agentmesh.identity import Party, told
    from agentmesh_client.cli.output import json_text, one_line

    try:
        return one_line(told(msgspec.convert(chain, tuple[Party, ...])))
    except msgspec.ValidationError:  # another build's, or no mesh's
        return json_text(chain)


def _line(event: dict[str, Any]) -> str:
    """One event in one line: time, kind, subject, reason."""
    from agentmesh_client.cli.output import json_text

    hidden = ("v", "time", "kind", "reason", "agent", "chain")
    facts = [f"{k}={v if isinstance(v, str | int | float) else json_text(v)}" for k, v in event.items() if k not in hidden]
    if event.get("chain"):
        facts.append(f"for {_behalf(event['chain'])}")
    reason = event.get("reason")
    time, kind, agent = (str(event.get(key, "")) for key in ("time", "kind", "agent"))
    return "  ".join(filter(None, (time[11:23], kind.ljust(12), agent, " ".join(facts), f"({reason})" if reason else "")))
