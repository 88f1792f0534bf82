"""A store that has lost data: an owner that knows more than the store stops, reports it, and writes nothing
(docs/architecture.md#is-the-newest-record-mine).

Agents work; at some time some or all streams are put back to what they were some seconds before. Of an owner that had committed a
record that is gone now, nothing may follow in that journal, and its node must have raised the alarm by the time when there was
something to write. Where no mail is lost, all others go on. Whatever is lost, nobody gets the answer to another question.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from agentmesh.errors import AskTimeout, MeshError
from agentmesh.records import decode_record
from agentmesh.subjects import Subjects
from agentmesh_node.host.placed_agent import PlacedAgent
from judge.evidence import Operation
from sim.agents import Cell
from sim.loop import SimLoop, run_sim
from sim.run import Verdict
from sim.store import Stored
from sim.workload import IMMORTAL, WEIGHTS, Workload
from sim.world import World

AFTER_S = 5.0
"""How long the agents work on the restored store."""
ASK_S = 20.0


LOST: dict[str, Callable[[Subjects, str], bool]] = {
    "journals": lambda subjects, stream: stream == subjects.stream("journal"),
    "mail": lambda subjects, stream: stream == subjects.stream("mail"),
    "all streams but results": lambda subjects, stream: stream != subjects.stream("result"),
    "all streams": lambda subjects, stream: True,
}
"""What is put back: whether a stream belongs to it."""


class Owned(NamedTuple):
    """An agent that was loaded when the store lost data. `lost`: a record that its owner had committed."""

    node: str
    resident: PlacedAgent
    life: str
    lost: bool


def run_loss(seed: int, *, collect: bool = True, **_ignored: Any) -> Verdict:
    """Run one seed to its verdict."""
    began = time.monotonic()

    async def main(loop: SimLoop) -> Verdict:
        return await _run(loop, seed)

    verdict = run_sim(main, collect=collect)
    verdict.real_s = time.monotonic() - began
    return verdict


async def _run(loop: SimLoop, seed: int) -> Verdict:
    world = World(loop, seed)
    dice = world.dice("loss")
    Cell.dice, Cell.crashed, Cell.bulk, Cell.slowness = world.dice("agents"), set(), 0, dice.choice((0.0, 0.2))
    await world.prepare()
    world.supervisor("s1")
    for name in ("n1", "n2"):
        world.node(name, snapshot_records=dice.choice((4, 256)))
    # Nothing that fails by itself or waits for another: who does not answer in the end has stopped.
    weights = {kind: weight for kind, weight in WEIGHTS.items() if kind not in ("boom", "flaky", "halt", "wait", "plain")}
    work = Workload(world, ask_s=5.0, weights=weights)
    await work.prepare()
    before, between = dice.uniform(0.5, 4.0), dice.uniform(0.2, 4.0)
    load = loop.create_task(work.run(before + between + AFTER_S))
    await asyncio.sleep(before)
    what = dice.choice(tuple(LOST))
    chosen = [name for name in world.net.server.streams if LOST[what](world.subjects, name)]
    backups = {name: world.net.server.streams[name].backup() for name in chosen}
    await asyncio.sleep(between)
    world.net.stop_server()
    owned = _owned(world, backups.get(world.subjects.stream("journal")))
    for name, backup in backups.items():
        world.net.server.streams[name].restore(backup)
    restored_at = loop.time()
    await asyncio.sleep(dice.uniform(0.1, 1.0))
    world.net.start_server()
    await load
    # Where mail was put back too, an agent that has lost no record takes new mail for old while sequences are given again.
    whole = world.subjects.stream("mail") not in chosen
    wrong = [*await _alarms(world, owned, strict=whole), *_silence(world, owned, restored_at), *_strange(work.history)]
    wrong += [f"defect: {line}" for line in loop.defects]
    lost = sum(one.lost for one in owned.values())
    records = len(world.net.server.streams[world.subjects.stream("journal")].history)
    digest = hashlib.sha256(repr(sorted((name, one.node, one.lost) for name, one in owned.items())).encode()).hexdigest()[:16]
    kinds = (f"loss of {what}", f"{lost} of {len(owned)} owners knew more")
    return Verdict(seed, wrong, [], kinds, len(work.history), records, loop.time(), 0.0, digest)


def _owned(world: World, journal: tuple[int, list[Stored]] | None) -> dict[str, Owned]:
    """Who is loaded, and who of them will know more than the store, if its journals become these."""
    stream = world.net.server.streams[world.subjects.stream("journal")]
    newest = {message.subject: message.seq for message in (stream.live() if journal is None else journal[1])}
    found = {}
    for name, node in sorted(world.nodes.items()):
        for agent, resident in sorted(node.catalog.agents.items()):
            if resident.owner is not None and resident.owner.core is not None:
                lost = resident.owner.committed > newest.get(world.subjects.journal(agent), 0)
                found[agent] = Owned(name, resident, resident.incarnation, lost)
    return found


async def _alarms(world: World, owned: dict[str, Owned], *, strict: bool) -> list[str]:
    """Give every agent something to write: who has lost a record must have raised the alarm; with `strict`, the others answer."""
    wrong: list[str] = []

    async def ask() -> None:
        async with world.client("c-last") as mesh:
            for agent in IMMORTAL:
                lost = agent in owned and owned[agent].lost
                with contextlib.suppress(MeshError):
                    await mesh.resume(agent, timeout=2.0)
                try:
                    outcome = await mesh.ask_outcome(agent, f"add {agent}-last", timeout=2.0 if lost else ASK_S)
                except (AskTimeout, MeshError) as error:
                    if strict and not lost:
                        wrong.append(f"{agent} has lost nothing and does not answer: {error}")
                else:
                    if lost and outcome.ok:
                        wrong.append(f"{agent} answers, although its owner knows more than the store")
                if lost and not owned[agent].resident.broken:
                    wrong.append(f"the owner of {agent} on {owned[agent].node} has raised no alarm")

    await world.spawn("c-last", ask())
    return wrong


def _silence(world: World, owned: dict[str, Owned], since: float) -> list[str]:
    """Nothing was written by a process that had committed what is lost, for as long as it held that placement."""
    wrong = []
    head = len(world.subjects.journal(""))
    for message in world.net.server.streams[world.subjects.stream("journal")].history:
        agent = message.subject[head:]
        one = owned.get(agent)
        if message.at > since and one is not None and one.lost:
            record = decode_record(message.data)
            if record.node == one.node and record.incarnation == one.life and not one.resident.gone:
                wrong.append(f"{one.node} wrote a {record.kind} record of {agent}, though it knew of a record that is lost")
    return wrong


def _strange(history: list[Operation]) -> list[str]:
    """Nobody got the answer to another question: of simple ones the label is part of the answer."""
    return [
        f"{op.agent} was asked {op.label}, and the answer is {op.outcome.text!r}"
        for op in history
        if op.kind == "ask add" and op.outcome is not None and op.outcome.ok and op.label not in (op.outcome.text or "").split()
    ]
