"""A thousand open waits, while the nodes of those that are asked, of those that ask, or of both are killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from agentmesh.backend import Event, Turn
from judge.verdict import judge, lives_of
from sim.agents import Cell
from sim.checker import gather
from sim.loop import SimLoop, run_sim
from sim.run import registry_of
from sim.world import World

ASKERS, WAITS = ("q0", "q1"), 500
"""Each of them waits so many times at once: a lane takes so many messages, whatever waits in it."""
ASKED = ("h0", "h1", "h2", "h3")
NODES = {"n1": "a", "n2": "b", "n3": "a", "n4": "b"}
"""By node, the zone that it is in: those that ask are in `a`, those that are asked in `b`."""


class Asker(Cell):
    """Asks all the others in one turn, again and again, at the same time."""

    ended: ClassVar[Counter[str]] = Counter()
    """How waits ended, by the code of the error, or `ok`."""

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        label = prompt.split()[1]

        async def ask(number: int) -> None:
            wait = f"{label}-{number}"
            outcome = await turn.steps.ask(wait, ASKED[number % len(ASKED)], f"add {wait}", timeout_s=500.0)
            Asker.ended["ok" if outcome.error is None else outcome.error.code] += 1

        await asyncio.gather(*(ask(number) for number in range(WAITS)))
        yield Event.result(f"add {label}")


class Asked(Cell):
    """Answers when the gate is open."""

    gate: ClassVar[asyncio.Event]

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        await Asked.gate.wait()
        yield Event.result(prompt)


KINDS: dict[str, Any] = {"Asker": Asker, "Asked": Asked}


@pytest.mark.slow
@pytest.mark.case(586)
@pytest.mark.parametrize("dies", [("n2", "n4"), ("n1", "n3"), ("n1", "n2", "n3", "n4")], ids=["asked", "asking", "all"])
def test_a_kill_under_a_thousand_waits_ends_none_of_them(dies: tuple[str, ...]) -> None:
    """The nodes die one after the other, and come back behind the takeover."""

    async def main(loop: SimLoop) -> None:
        world = World(loop, "waits")
        Cell.dice, Cell.slowness, Asked.gate = world.dice("agents"), 0.0, asyncio.Event()
        Asker.ended.clear()
        await world.prepare()
        world.supervisor("s1")
        for name, zone in NODES.items():
            world.node(name, agents=KINDS, labels={"zone": zone})

        async def client() -> None:
            async with world.client("c1") as mesh:
                for names, kind, zone in ((ASKERS, "Asker", "a"), (ASKED, "Asked", "b")):
                    for name in names:
                        await mesh.start_agent(name, kind=kind, labels={"zone": zone}, restart="permanent")
                asks = [asyncio.create_task(mesh.ask(name, f"add {name}", timeout=400)) for name in ASKERS]
                await until(lambda: letters() == len(ASKERS) * WAITS)
                for name in dies:
                    placed = owners(name)
                    world.kill(name)
                    if placed:
                        await until(lambda gone=name: not owners(gone))
                    await asyncio.sleep(1)
                    world.restart(name)
                    await asyncio.sleep(2)
                Asked.gate.set()
                assert [answer.text for answer in await asyncio.gather(*asks)] == [f"add {name}" for name in ASKERS]

        def letters() -> int:
            mail = world.net.server.streams[world.subjects.stream("mail")]
            return sum("peer-inbox" in m.subject for m in mail.history)

        def owners(node: str) -> list[str]:
            return [key for key in registry_of(world) if key.startswith(f"placements.{node}.")]

        await world.process("c1").spawn(client())
        assert loop.defects == []
        evidence = gather(world.net.server, world.subjects, [])
        told = {name for name in Asker.ended if name != "ok"}
        assert not told and Asker.ended["ok"] >= len(ASKERS) * WAITS
        answered = Counter(o.agent for o in evidence.results if o.ok)
        assert sum(answered[name] for name in ASKED) == len(ASKERS) * WAITS, "each question has one answer"
        for name in ASKED:
            assert sum(life.count for life in lives_of(name, evidence.journals[name])) == answered[name]
        assert judge(evidence, ()) == []

    run_sim(main)


async def until(condition: Any) -> None:
    async with asyncio.timeout(200):
        while not condition():  # noqa: ASYNC110 - the world is looked at from outside
            await asyncio.sleep(0.1)
