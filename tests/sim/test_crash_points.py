"""A node may die at any of its calls to the outside: what is stored and answered in the end is the same
(docs/architecture.md#the-promise).

Each script is run once undisturbed, and then once for each call of the node and each side of it, with the node dying there.
"""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from agentmesh_client.client import Mesh
from sim.crashes import Final, Notes, Script, play
from sim.server import EPOCH

START = dt.datetime.fromtimestamp(EPOCH, dt.UTC)
"""When the clock of the simulation begins."""


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


async def _there(mesh: Mesh, name: str) -> None:
    async with asyncio.timeout(300):
        while await mesh.whereis(name) is None:  # noqa: ASYNC110 - a client that polls
            await asyncio.sleep(0.2)


async def _gone(mesh: Mesh, name: str) -> None:
    async with asyncio.timeout(300):
        while any(entry.name == name for entry in await mesh.list_agents()):  # noqa: ASYNC110 - a client that polls
            await asyncio.sleep(0.2)


PARTS = 4
"""Tests for each script: they share its calls, so that none takes long and all cores have something to do."""
SCRIPTS: tuple[Script, ...] = (turns, chain, lives, timers, crashes, steps, waits)
RECORDS = {
    "activated", "init", "ready", "turn", "event", "control", "refused", "step", "crashed", "gave_up", "rest", "stopped", "swept",
    "tombstone", "snapshot",
}  # fmt: skip
EFFECTS = {"Resolve", "SendMail", "StartAgent", "StopAgent", "SetTimer", "CancelTimer", "Bury"}


def _same(final: Final, wanted: Final, where: str) -> None:
    assert final.wrong == [], where
    assert final.answers == wanted.answers, where
    assert final.agents == wanted.agents, where
    assert final.outcomes == wanted.outcomes, where
    assert final.mail == wanted.mail, where
    assert final.dead == wanted.dead, where


@pytest.mark.case(203)
@pytest.mark.case(202)
@pytest.mark.case(205)
@pytest.mark.parametrize("part", range(1, PARTS + 1))
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_node_that_dies_at_any_call_changes_nothing(script: Script, part: int) -> None:
    wanted = play(script)
    assert wanted.wrong == []
    for number in range(part, wanted.calls + 1, PARTS):
        for moment in ("before", "after"):
            _same(play(script, kill_at=number, moment=moment), wanted, f"killed {moment} call {number} of {wanted.calls}")


def test_the_scripts_meet_every_record_and_every_effect() -> None:
    seen = set().union(*(play(script).seen for script in SCRIPTS))
    assert seen >= RECORDS | EFFECTS
