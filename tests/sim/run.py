"""One seed: its world, its storm, its verdict."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import hashlib
import logging
import random
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from agentmesh.edge.registry import Entry, readable_spec
from agentmesh.ledger import apply, is_taken
from agentmesh.records import Ledger, Record
from agentmesh.subjects import LANES, spec_key
from agentmesh.wire import FOR
from judge.attempts import orphans, untold
from judge.behalf import let_in, misattributed, of_users
from judge.moves import hand_overs, moved_wrongly, repeated
from judge.verdict import ends_on_purpose, judge
from sim.agents import Cell
from sim.checker import gather, is_record, record_of
from sim.faults import ORDERLY, Storm, climate
from sim.forgetting import forgotten
from sim.loop import SimLoop, process_name, run_sim
from sim.payments import Bank
from sim.server_clocks import wrong_clocks
from sim.store import Stored
from sim.workload import ENDS, IMMORTAL, MORTAL, MOVES, PAYERS, WEIGHTS, Workload
from sim.world import World

PATIENCE_S = 420.0
"""By when everything must be done once nothing goes wrong any more: some time beyond the duplicate window."""
TOLD_S = 90
"""By when all attempts must have been told of once everything is done."""
USERS_SHARE = 0.5
"""In so many of the runs some clients are users of another account."""
ENDS_SHARE = 0.4
"""In so many of the runs clients end much of what they ask before its time."""
MOVES_SHARE = 0.4
"""In so many of the others most turns have many steps, and nodes are drained and loads evened out in the middle of them."""


@dataclasses.dataclass
class Verdict:
    """How a run ended."""

    seed: int
    wrong: list[str]
    faults: list[str]
    kinds: tuple[str, ...]
    operations: int
    records: int
    virtual_s: float
    real_s: float
    digest: str
    """Of everything that was stored: the same for the same seed."""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """What else of it can be counted, and summed over runs."""

    def line(self) -> str:
        """All of it but what is wrong, in one line."""
        result = "FAILED" if self.wrong else "ok"
        return (
            f"seed {self.seed}: {result}; {self.operations} operations, {self.records} records, {self.virtual_s:.0f} virtual s "
            f"in {self.real_s:.2f} s, {self.digest}; {', '.join(self.kinds) or 'no faults'}"
        ) + "".join(f"; {count} {what}" for what, count in self.counts.items())


def run_seed(
    seed: int,
    *,
    kinds: tuple[str, ...] | None = None,
    seconds: float | None = None,
    trace: Callable[[str], None] | None = None,
    collect: bool = True,
) -> Verdict:
    """Run one seed to its verdict. `kinds` of faults, and for how long there are such, are the seed's choice unless they are
    given; `trace` gets a line for each message and each fault; `collect` as `run_sim` has it."""
    began = time.monotonic()

    async def main(loop: SimLoop) -> Verdict:
        return await _run(loop, seed, kinds, seconds, trace)

    verdict = run_sim(main, collect=collect)
    verdict.real_s = time.monotonic() - began
    return verdict


def attempt(run: Callable[..., Verdict], seed: int, **options: Any) -> Verdict:
    """What `run` says of a seed; a run that comes to no end of its own has failed too."""
    try:
        return run(seed, **options)
    except Exception:  # noqa: BLE001 - whatever it is, it is the verdict
        return Verdict(seed, [traceback.format_exc()], [], (), 0, 0, 0.0, 0.0, "")


async def _run(
    loop: SimLoop, seed: int, kinds: tuple[str, ...] | None, seconds: float | None, trace: Callable[[str], None] | None
) -> Verdict:
    sky = climate(random.Random(f"{seed}/climate"), kinds, seconds)
    if kinds is None:
        further = (*forgotten(random.Random(f"{seed}/forgetting")), *wrong_clocks(random.Random(f"{seed}/server clocks")))
        sky = sky._replace(kinds=(*sky.kinds, *further))
    world = World(loop, seed, mailbox_limit=sky.mailbox_limit, max_payload=sky.max_payload, skew_s=sky.skew_s)
    if trace is not None:
        world.net.trace_to(trace)
    Cell.dice, Cell.crashed, Cell.bulk = world.dice("agents"), set(), sky.bulk
    Cell.called.clear()
    Cell.calls.clear()
    Cell.made.clear()
    Cell.decided.clear()
    Cell.ending.clear()
    Bank.clear()
    Cell.where = process_name
    Cell.slowness = world.dice("slowness").choice((0.0, 0.2, 2.0))
    Cell.max_takeovers = world.dice("takeovers").choice((5, 1000))
    await world.prepare()
    _start(world)

    def end_by(client: str, label: str, seconds: float) -> dt.datetime:
        Cell.ending.add(label)
        return dt.datetime.fromtimestamp(world.ambient(client).now() + seconds, dt.UTC)

    weights = _weights(world, kinds)
    if weights is MOVES:
        sky = sky._replace(kinds=tuple(dict.fromkeys((*sky.kinds, *ORDERLY))))
    if weights is not WEIGHTS:
        Cell.slowness = world.dice("slowness").choice((0.2, 2.0))
    users = world.dice("users").random() < USERS_SHARE
    threads = 2 if weights is WEIGHTS else 4
    work = Workload(world, weights=weights, threads=threads, pays=True, users=users, ends=end_by)
    await work.prepare()
    storm = Storm(world, sky.kinds, deaths=Cell.max_takeovers, movable=(*IMMORTAL, *PAYERS, *MORTAL))
    load = loop.create_task(work.run(sky.seconds))
    await storm.blow(sky.seconds)
    calmed = loop.time()
    await load
    wanted = (*IMMORTAL, *PAYERS)
    calm = await work.revive(lambda: settled(world, wanted), lambda: halted(world), PATIENCE_S)
    wrong = [] if calm else [f"not done {PATIENCE_S:g} s after the last fault: {line}" for line in unsettled(world, wanted)]
    for _ in range(TOLD_S):
        seen: dict[str, Any] = {"calls": Cell.calls, "decided": Cell.decided, "payments": Bank.paid, "turn_calls": Cell.made}
        evidence = gather(world.net.server, world.subjects, work.history, **seen, calm=calmed)
        if next(untold(evidence), None) is None:
            break
        await asyncio.sleep(1.0)
    wrong += judge(evidence, wanted)
    wrong += orphans(evidence, lossless=set(sky.kinds) <= set(ORDERLY))
    wrong += moved_wrongly(evidence)
    if set(sky.kinds) <= set(ORDERLY):
        wrong += repeated(evidence.turn_calls)
    wrong += misattributed(evidence)
    wrong += let_in(evidence)
    wrong += [f"defect: {line}" for line in loop.defects]
    digest = hashlib.sha256()
    for name, stream in sorted(world.net.server.streams.items()):
        for message in stream.history:
            digest.update(f"{name} {message.seq} {message.subject} {message.at}".encode() + message.data)
    records = sum(len(records) for records in evidence.journals.values())
    counts = {**ends_on_purpose(evidence), "payments": len(evidence.payments)}
    counts |= {"calls of turns": len(Cell.made), "hand-overs": len(hand_overs(evidence))}
    counts |= of_users(evidence)
    return Verdict(
        seed, wrong, storm.log, storm.kinds, len(work.history), records, loop.time(), 0.0, digest.hexdigest()[:16], counts
    )


def _start(world: World) -> None:
    """Start the processes of the mesh."""
    for name in ("s1", "s2"):
        world.supervisor(name)
    facts = world.dice("facts").choice(("attempts", "all"))
    for name in ("n1", "n2", "n3"):
        habits = world.dice(name)
        rests, snapshots = habits.choice((3.0, 300.0)), habits.choice((4, 16, 256))
        world.node(name, passivate_s=rests, snapshot_records=snapshots, trace_facts=facts)


def _weights(world: World, kinds: tuple[str, ...] | None) -> Mapping[str, float]:
    """What clients do in a run with these `kinds` of faults; None: it has drawn them."""
    if kinds is not None:
        return MOVES if set(kinds) == set(ORDERLY) else WEIGHTS
    if world.dice("ends").random() < ENDS_SHARE:
        return ENDS
    return MOVES if world.dice("moves").random() < MOVES_SHARE else WEIGHTS


def settled(world: World, wanted: Collection[str], excused: Collection[str] = ()) -> bool:
    """Whether nothing is left to do; the agents `wanted` must run. Of those `excused` nothing is said."""
    state = (sum(stream.changes for stream in world.net.server.streams.values()), *wanted, None, *excused)
    if world.unsettled == state:
        return False  # it is asked for again and again, and all that counts lies in the streams
    if next(_open_ends(world, wanted, excused), None) is None:
        return True
    world.unsettled = state
    return False


def unsettled(world: World, wanted: Collection[str], excused: Collection[str] = ()) -> list[str]:
    """What is left to do."""
    return list(_open_ends(world, wanted, excused))


def halted(world: World) -> list[str]:
    """Agents that do nothing until they are resumed."""
    specs = {key[7:]: readable_spec(entry) for key, entry in registry_of(world).items() if key[:7] == "agents."}
    failed = [name for name, spec in specs.items() if spec is not None and spec.status == "failed"]
    return sorted(
        {*failed, *(name for name in (*IMMORTAL, *PAYERS) if (ledger := ledger_of(world, name)) is not None and ledger.halted)}
    )


def registry_of(world: World) -> dict[str, Entry]:
    """The registry's keys as they stand."""
    head = len(world.subjects.registry_key(""))
    stored = world.net.server.streams[world.subjects.stream("registry")].live()
    return {m.subject[head:]: Entry(m.subject[head:], m.data, m.seq) for m in stored if m.data}


def ledger_of(world: World, name: str) -> Ledger | None:
    """What the journal of an agent comes to; None if it is empty."""
    journal = world.net.server.streams[world.subjects.stream("journal")]
    stored = journal.view(world.subjects.journal(name), 0, 0.0)
    known, ledger = world.folded.get(name, ([], None))
    if known != stored:  # it is asked for every half second, and seldom is there anything new
        if stored[: len(known)] != known:
            known, ledger = [], None
        for message in filter(is_record, stored[len(known) :]):
            ledger = apply(ledger, record_of(world.net.server, world.subjects, message), message.seq)
        world.folded[name] = stored, ledger
    return ledger


def _last(world: World, name: str) -> Stored | None:
    """The newest record."""
    journal = world.net.server.streams[world.subjects.stream("journal")]
    last = journal.last_on(world.subjects.journal(name))
    if last is None or is_record(last):
        return last
    return next((m for m in reversed(journal.view(world.subjects.journal(name), 0, 0.0)) if is_record(m)), None)


def _open_ends(world: World, wanted: Collection[str], excused: Collection[str]) -> Iterator[str]:
    keys = registry_of(world)
    owners = _owners(keys)
    yield from (f"{name} has no spec" for name in wanted if spec_key(name) not in keys)
    for key in sorted(keys):
        if not key.startswith("agents."):
            continue
        name, spec = key.partition(".")[2], readable_spec(keys[key])
        if name in excused:
            continue
        if spec is None:
            if name in wanted:
                yield f"the spec of {name} is not the mesh's"
            continue
        last = _last(world, name)
        record = record_of(world.net.server, world.subjects, last) if last is not None else None
        if spec.status == "stopped":
            if record is not None and (record.kind != "tombstone" or record.incarnation != spec.incarnation):
                yield f"{name} is stopped, but its journal ends with {record.kind}"
            yield from _late(world, name)
            continue
        if spec.status != "running":
            yield f"{name} is {spec.status}"
        if len(found := owners.get(name, [])) != 1:
            yield f"{name} has the owners {found}"
        ledger = ledger_of(world, name)
        if ledger is not None and ledger.sets and ledger.sets[-1].number != spec.sets:
            yield f"the spec of {name} shows change {spec.sets} of its configuration, and {ledger.sets[-1].number} is in force"
        if record is None or record.kind != "rest":
            yield f"the journal of {name} ends with {record.kind if record else 'nothing'}"
        else:
            yield from _left(world, name, record)


def _late(world: World, name: str) -> Iterator[str]:
    """Mail for a life that has ended is answered too."""
    ledger = ledger_of(world, name)
    for lane in LANES.values():
        stream = world.net.server.streams[world.subjects.stream(lane.stream)]
        for message in stream.view(world.subjects.lane(lane.name, name), 0, 0.0):
            if FOR in message.headers and (ledger is None or not is_taken(ledger, lane.name, message.seq)):
                yield f"{name} is stopped, and nobody answered {lane.name} {message.seq}"


def _owners(keys: Mapping[str, Entry]) -> dict[str, list[str]]:
    """By agent: the living nodes that it is placed on."""
    nodes = {key.partition(".")[2] for key in keys if key.startswith("nodes.")}
    owners: dict[str, list[str]] = {}
    for key in keys:
        if key.startswith("placements."):
            _, node, agent = key.split(".", 2)
            if node in nodes:
                owners.setdefault(agent, []).append(node)
    return owners


def _left(world: World, name: str, record: Record) -> Iterator[str]:
    streams, subjects = world.net.server.streams, world.subjects
    for lane in LANES.values():
        message = streams[subjects.stream(lane.stream)].last_on(subjects.lane(lane.name, name))
        if message is not None and message.seq > (record.positions or {}).get(lane.name, 0):
            yield f"{name} has not seen {lane.name} {message.seq}"
    ledger = ledger_of(world, name)
    if ledger is not None and (ledger.halted or ledger.timers or ledger.deferred or ledger.awaiting or ledger.delegated):
        yield f"{name} is halted, or waits for timers or answers"


def quiet() -> None:
    """Errors that the mesh logs in a storm are its business; defects are reported by the loop."""
    logging.disable(logging.CRITICAL)
