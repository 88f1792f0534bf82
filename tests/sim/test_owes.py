"""What `Mesh.owes` says while nodes die and replicas lag, compared with what the server has stored."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

import pytest

from agentmesh.errors import MeshError
from agentmesh.wire import FROM, ORIGIN, TAG
from agentmesh_client import WaitGraph
from sim.agents import Cell
from sim.faults import Storm
from sim.loop import SimLoop, process_name, run_sim
from sim.run import PATIENCE_S, halted, ledger_of, settled
from sim.workload import ENDS, IMMORTAL, Workload
from sim.world import World

FAULTS = ("kill_node", "freeze_node", "cut_node", "kill_supervisor", "stale", "lost_copies")
LOSSES = ("lost_replies", "slow")
"""With these few of the readings come to an end."""
STORM_S = 30.0
PAUSE_S = 0.5


type Request = tuple[str, str]


class Open(NamedTuple):
    """What is open at a moment, by the streams alone."""

    clients: set[Request]
    """Prompts without an outcome, by agent and ref."""
    agents: set[Request]
    """The same of agents that wait for the outcome, as the journal says: by sender and origin."""
    ended: set[Request]
    """What has an outcome, by agent and ref."""


def look(world: World) -> Open:
    """What is open now."""
    streams, subjects = world.net.server.streams, world.subjects
    head = len(subjects.result("", ""))
    results = (message.subject[head - 1 :] for message in streams[subjects.stream("result")].history)
    ended = {(agent, ref) for agent, _, ref in (text.rpartition(".") for text in results)}
    found = Open(set(), set(), ended)
    for message in streams[subjects.stream("mail")].history:
        lane, agent = subjects.parse_lane(message.subject) or ("", "")
        request = agent, str(message.seq)
        if request in ended:
            continue
        if lane == "inbox":
            found.clients.add(request)
        elif lane == "peer-inbox" and TAG in message.headers:
            ledger = ledger_of(world, message.headers[FROM])
            origin = message.headers[ORIGIN]
            waits = () if ledger is None else (*ledger.awaiting, *(w.origin for w in ledger.waits.values() if w.outcome is None))
            if origin in waits:
                found.agents.add((message.headers[FROM], origin))
    return found


def compare(before: Open, graph: WaitGraph, after: Open) -> list[str]:
    """What is wrong with a graph that was read between two moments."""
    shown = Counter((one.agent, one.ref) for one in graph.waits if one.ref is not None)
    asked = Counter((one.waiter, one.origin) for one in graph.waits if one.kind in ("turn", "tag"))
    wrong = [f"{one} stood all the time, and is not shown" for one in (before.clients & after.clients) - shown.keys()]
    wrong += [f"{one} was waited for all the time, and is not shown" for one in (before.agents & after.agents) - asked.keys()]
    wrong += [f"{one} had ended before, and is shown" for one in shown.keys() & before.ended]
    return wrong + [f"{one} is shown {count} times" for one, count in (*shown.items(), *asked.items()) if count > 1]


@pytest.mark.slow
@pytest.mark.case(500)
@pytest.mark.case(502)
@pytest.mark.parametrize("seed", range(1, 9))
def test_what_stands_is_shown_and_what_has_ended_is_not(seed: int) -> None:
    async def main(loop: SimLoop) -> None:
        world = World(loop, f"owes {seed}")
        Cell.dice, Cell.crashed, Cell.bulk, Cell.where = world.dice("agents"), set(), 0, process_name
        Cell.called.clear()
        Cell.calls.clear()
        Cell.slowness, Cell.max_takeovers = 2.0, 1000
        await world.prepare()
        for name in ("s1", "s2"):
            world.supervisor(name)
        for name in ("n1", "n2", "n3"):
            world.node(name, passivate_s=3.0, snapshot_records=16)
        work = Workload(world, weights=ENDS, threads=4)
        await work.prepare()
        storm = Storm(world, FAULTS if seed % 3 else (*FAULTS, *LOSSES))
        wrong, read = list[str](), Counter[str]()

        async def observe() -> None:
            async with world.client("c-owes") as mesh:
                while loop.time() < end:
                    before = look(world)
                    try:
                        graph = await mesh.owes(timeout=10.0)
                    except MeshError:
                        read["refused"] += 1
                        continue
                    wrong.extend(f"at {loop.time():.3f}: {line}" for line in compare(before, graph, look(world)))
                    read.update(one.stage for one in graph.waits)
                    read["graphs"] += 1
                    await asyncio.sleep(PAUSE_S)

        end = loop.time() + STORM_S
        watching = world.spawn("c-owes", observe())
        load = loop.create_task(work.run(STORM_S))
        await storm.blow(STORM_S)
        await load
        await watching
        assert wrong == []
        assert read["graphs"] > 10 or not seed % 3, read
        assert await work.revive(lambda: settled(world, IMMORTAL), lambda: halted(world), PATIENCE_S)
        async with world.client("c-owes") as mesh:
            last = await mesh.owes()
        assert last.waits == (), "nobody waits once all is done"
        assert (read["queued"] and read["running"]) or not seed % 3, read

    run_sim(main)
