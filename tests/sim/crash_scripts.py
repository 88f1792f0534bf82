"""What the client does while its node dies: scripts that together meet every kind of record and every effect."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Any

from agentmesh.errors import MeshError, NotPermitted
from agentmesh.registry_values import Restart
from agentmesh_client.admin import Operator
from agentmesh_client.client import Mesh
from sim.crashes import Notes, Script, said
from sim.server import EPOCH

START = dt.datetime.fromtimestamp(EPOCH, dt.UTC)
"""When the clock of the simulation begins."""
KEY = "0123456789abcdef"
"""Of requests that have one."""


async def turns(mesh: Mesh, notes: Notes) -> None:
    """A first life, turns, an event, a repeated prompt, one that is late and one that is refused, a halt and its end."""
    await mesh.start_agent("a", kind="Prepared")
    await notes.ask(mesh, "a", "add L1")
    await mesh.tell("a", "add L2", idempotency_key="k2")
    await mesh.tell("a", "add L2", idempotency_key="k2")
    await mesh.notify("a", {"label": "E1"})
    await mesh.tell("a", "add late", deadline=START)
    await notes.ask(mesh, "a", "skip S1")
    await notes.ask(mesh, "a", "halt L3")
    await mesh.tell("a", "add L4")
    await mesh.resume("a", timeout=100)
    await notes.ask(mesh, "a", "add L5")


async def chain(mesh: Mesh, notes: Notes) -> None:
    """Mail between agents with tags, deferred requests, answers."""
    for name, following in (("a", "b"), ("b", "a")):
        await mesh.start_agent(name, kind="Cell", options={"next": following})
    await notes.ask(mesh, "a", "call L1 3")
    await mesh.tell("a", "pass L2 3")
    await notes.ask(mesh, "b", "lost L3")


async def lives(mesh: Mesh, notes: Notes) -> None:
    """Agents that start and stop agents; an end with mail in the lanes; a second life."""
    await mesh.start_agent("a", kind="Cell")
    await notes.ask(mesh, "a", "spawn L1 m")
    await _there(mesh, "m")
    await notes.ask(mesh, "m", "add M1")
    await notes.ask(mesh, "a", "end L2 m")
    await _gone(mesh, "m")
    await notes.ask(mesh, "a", "spawn L3 m")
    await notes.ask(mesh, "a", "halt L4")
    await mesh.tell("a", "add L5")
    await mesh.stop("a", timeout=300)
    await mesh.start_agent("a", kind="Cell", timeout=300)
    await notes.ask(mesh, "a", "add L6")


async def timers(mesh: Mesh, notes: Notes) -> None:
    """Timers set, fired, replaced and cancelled."""
    await mesh.start_agent("a", kind="Cell")
    await notes.ask(mesh, "a", "timer T1 0.1")
    await notes.ask(mesh, "a", "timer T2 90")
    await notes.ask(mesh, "a", "drop L1 T2")
    await mesh.set_timer("a", "T3", {"label": "T3"}, at=START + dt.timedelta(seconds=60), timeout=30)
    await notes.ask(mesh, "a", "add L2")


async def crashes(mesh: Mesh, notes: Notes) -> None:
    """Code that crashes: a restart, a dead letter, and what stands behind it."""
    await mesh.start_agent("a", kind="Cell")
    await notes.ask(mesh, "a", "once L1")
    await mesh.tell("a", "add L2")
    await notes.ask(mesh, "a", "boom L3")
    await notes.ask(mesh, "a", "add L4")


async def steps(mesh: Mesh, notes: Notes) -> None:
    """A turn of many steps, with an event and a cancelled prompt in the middle; another of them behind it."""
    await mesh.start_agent("a", kind="Prepared")
    ref = await mesh.tell("a", "steps L1 7")
    await mesh.notify("a", {"label": "E1"})
    await notes.ask(mesh, "a", "steps L2 2")
    await mesh.poll("a", ref, timeout=200)


async def waits(mesh: Mesh, notes: Notes) -> None:
    """Waits inside turns: a chain, one on an agent that does not exist, and one that would be a circle."""
    for name in ("a", "b", "c"):
        await mesh.start_agent(name, kind="Cell")
    await notes.ask(mesh, "a", "wait L1 b c")
    await notes.ask(mesh, "b", "wait L2 nobody")
    await notes.ask(mesh, "c", "wait L3 a c")
    await notes.ask(mesh, "b", "add L4")


async def moves(mesh: Mesh, notes: Notes) -> None:
    """A node that is drained in the middle of turns, one of which waits for another agent; there is a second node."""
    for name in ("a", "b", "c"):  # the first and the last are on the first node
        await mesh.start_agent(name, kind="Cell")
    told = (("b", "slowly L1 5"), ("a", "wait L2 b"), ("c", "slowly L3 5"))
    sent = [(agent, text, await mesh.tell(agent, text)) for agent, text in told]
    await asyncio.sleep(0.3)
    with contextlib.suppress(MeshError):  # it has died meanwhile
        await Operator(mesh.transport, mesh.subjects).drain("n1")
    for agent, text, ref in sent:
        notes.answers[text] = await _ended(mesh, agent, ref)
    await notes.ask(mesh, "a", "add L4")


async def orders(mesh: Mesh, notes: Notes) -> None:
    """An agent that is ordered from the first node to the second in the middle of a turn, and back in another one; then the first
    node is drained, and a turn keeps to its code, which the third one serves."""
    for name in ("a", "b", "c"):  # the first is on the first node
        await mesh.start_agent(name, kind="Cell")
    operator = Operator(mesh.transport, mesh.subjects)
    for number, node in enumerate(("n2", "n1"), 1):
        ref = await mesh.tell("a", f"slowly L{number} 5")
        await asyncio.sleep(0.3)
        with contextlib.suppress(MeshError):  # it has died meanwhile
            await operator.move("a", node)
            await operator.arrived("a", node, 100)
        notes.answers[f"L{number}"] = await _ended(mesh, "a", ref)
    ref = await mesh.tell("a", "slowly L3 5")
    await asyncio.sleep(0.3)
    with contextlib.suppress(MeshError):
        await operator.drain("n1")
    notes.answers["L3"] = await _ended(mesh, "a", ref)
    await notes.ask(mesh, "a", "add L4")


async def ends(mesh: Mesh, notes: Notes) -> None:
    """Requests that are ended with all that was asked on their behalf: one that is kept open, one that runs, and all of an agent
    that is stopped. The last agent of the chain is halted, so that nothing of it can be answered. The first two have keys."""
    for name, following in (("a", "b"), ("b", "c"), ("c", "a")):
        await mesh.start_agent(name, kind="Cell", options={"next": following})
    await notes.ask(mesh, "c", "halt L0")
    for text in ("call L1 2", "wait L2 b c"):
        ref = await mesh.tell("a", text, key=KEY)
        await _queued(mesh, "c", 1)
        await _refused(mesh.cancel("a", ref, tree=True, key=KEY[::-1], timeout=200))
        await _refused(mesh.poll("a", ref, key=KEY[::-1], timeout=200))
        await mesh.cancel("a", ref, tree=True, timeout=200)
        await _queued(mesh, "c", 0)
        notes.answers[text] = await _ended(mesh, "a", ref)
        await _refused(mesh.poll("a", ref, key=KEY[::-1], timeout=200))
    ref = await mesh.tell("a", "wait L3 b c")
    await _queued(mesh, "c", 1)
    await mesh.stop("a", timeout=300)
    await _queued(mesh, "c", 0)
    notes.answers["L3"] = await _ended(mesh, "a", ref)
    await mesh.resume("c", timeout=100)
    await notes.ask(mesh, "c", "add L4")
    await notes.ask(mesh, "b", "add L5")


async def _refused(call: Awaitable[object]) -> None:
    try:
        await call
    except NotPermitted:
        return
    raise AssertionError("a request was shown, or ended, without its key")


async def _ended(mesh: Mesh, agent: str, ref: str) -> str:
    async with asyncio.timeout(300):
        while not (found := await mesh.poll(agent, ref, timeout=200)).done:  # noqa: ASYNC110 - a client that polls
            await asyncio.sleep(0.2)
    return "" if found.outcome is None else said(found.outcome)


async def _queued(mesh: Mesh, agent: str, count: int) -> None:
    async with asyncio.timeout(300):
        while (await mesh.status(agent, timeout=200)).queued != count:  # noqa: ASYNC110 - a client that polls
            await asyncio.sleep(0.2)


async def types(mesh: Mesh, notes: Notes) -> None:
    """Answers of a declared type: one that fits, one that fits once its model was told, and one that never does."""
    await mesh.start_agent("a", kind="Typed")
    for text in ("add L1", "odd L2", "wrong L3", "odd L4", "add L5"):
        await notes.ask(mesh, "a", text)


async def payments(mesh: Mesh, notes: Notes) -> None:
    """Payments by a `once` tool; a model that fails in the middle and is asked again; one that is asked by another agent."""
    await mesh.start_agent("p", kind="Payer")
    await notes.ask(mesh, "p", "transfer L1 3")
    await mesh.tell("p", "transfer L2 2")
    await notes.ask(mesh, "p", "add L3")


async def configuration(mesh: Mesh, notes: Notes) -> None:
    """What is set of an agent that is idle, in a turn, halted, asleep and failed; each request is one change."""
    await mesh.start_agent("a", kind="Cell")
    await _set(mesh, notes, "idle", watchdog_s=70, backend_options={"delay_s": 0.0})
    await mesh.tell("a", "steps L1 3")
    await _set(mesh, notes, "in a turn", budget={"tool_calls": 9})
    await _set(mesh, notes, "refused", backend_options={"delay_s": "soon"})
    await notes.ask(mesh, "a", "halt L2")
    await _set(mesh, notes, "halted", restart=Restart(max=0), labels={"zone": None})
    await mesh.resume("a", timeout=100)
    await notes.ask(mesh, "a", "add L3")
    await asyncio.sleep(4)  # it sleeps
    await _set(mesh, notes, "asleep", watchdog_s=80)
    await mesh.tell("a", "boom L4")
    await _failed(mesh, "a")
    await _set(mesh, notes, "failed", restart=Restart(max=5), watchdog_s=90)
    await _set(mesh, notes, "as it is", watchdog_s=90)
    await mesh.resume("a", timeout=100)
    await notes.ask(mesh, "a", "add L5")
    changes = await mesh.configuration_history("a", timeout=100)
    notes.answers["history"] = str([(change.number, change.values) for change in changes])


async def _set(mesh: Mesh, notes: Notes, what: str, **values: Any) -> None:
    try:
        notes.answers[what] = f"changed: {(await mesh.update_agent('a', timeout=200, **values)).changed}"
    except MeshError as error:
        notes.answers[what] = f"error {error.code}"


async def _failed(mesh: Mesh, name: str) -> None:
    async with asyncio.timeout(300):
        while all(e.spec.status != "failed" for e in await mesh.list_agents() if e.name == name):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def _there(mesh: Mesh, name: str) -> None:
    async with asyncio.timeout(300):
        while await mesh.whereis(name) is None:  # noqa: ASYNC110 - a client that polls
            await asyncio.sleep(0.2)


async def _gone(mesh: Mesh, name: str) -> None:
    async with asyncio.timeout(300):
        while any(entry.name == name for entry in await mesh.list_agents()):  # noqa: ASYNC110 - a client that polls
            await asyncio.sleep(0.2)


SCRIPTS: Mapping[str, Script] = MappingProxyType(
    {
        script.__name__: script
        for script in (turns, chain, lives, timers, crashes, steps, waits, moves, orders, ends, types, payments, configuration)
    }
)
