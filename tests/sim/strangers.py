"""Messages of strangers, and records that nobody can read (docs/architecture.md#foreign-messages).

`run_foreign`: somebody who may publish anywhere writes into all streams and registry keys what is not the mesh's, while turns run
and nodes and supervisors are killed. No agent ends, no committed turn is forgotten or run twice. In some runs he rolls journals
up: their agents, and no others, say that the store is lost, and nothing is written there. In some he empties the registry.

`run_unreadable`: records with the mesh's header come into the journals that no program can read, stand for a while, and are
removed, as if a program had come that reads them. Nothing is written behind one that stands, and all agents go on.

What a stranger writes in the form of the mesh is his right to do harm: a spec, an outcome, an epoch, a deletion of a key.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from agentmesh.edge.blobs import BLOB
from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.publish import ROLLUP
from agentmesh.edge.registry import Entry, readable_spec
from agentmesh.registry_values import Spec
from agentmesh.subjects import EPOCH_KEY, SUPERVISOR_KEY, node_key, placement_key, spec_key
from judge.evidence import Evidence
from judge.verdict import judge, lives_of
from sim.agents import Cell
from sim.checker import FORGED, GARBLED, gather, is_record
from sim.loop import SimLoop, run_sim
from sim.run import PATIENCE_S, Verdict, halted, registry_of, settled, unsettled
from sim.store import Stored, Stream
from sim.workload import IMMORTAL, WEIGHTS, Workload
from sim.world import World

SECONDS = 15.0
"""How long strangers write, agents work and processes die."""
KILLS_A_SECOND = 0.4
NAMED_S = 200.0
"""By when a loss, or a record that cannot be read, shows in the spec."""
_NODES, _SUPERVISORS = ("n1", "n2", "n3"), ("s1", "s2")
_SOLO = ("ask", "tell", "notify", "steps", "timer", "set")
"""What needs no other agent: where some of them are stuck, the others must come to an end."""
_OTHERS = frozenset(("boom", "flaky", "halt", "start", "stop", "spawn", "mortal", "plain"))
_BODIES = (b"", b"hello", b"{", b'{"kind":7}', b"\xff", b"[]", b"[" * 3000, b'{"kind":"Cell"}', b'{"v":1,"kind":"turn"}', b"null")
_STANDS_S = (0.5, 5.0, 40.0)


class Scene:
    """A world at work in which processes die."""

    def __init__(self, world: World, weights: dict[str, float], *, threads: int = 2) -> None:
        self.world = world
        self.work = Workload(world, weights=weights, ask_s=30.0, threads=threads)
        self.kills = 0
        self.killed: tuple[str, ...] = (*_NODES, *_SUPERVISORS)
        """Which processes die."""
        self._dice = world.dice("kills")

    async def prepare(self) -> None:
        """Start everything."""
        world = self.world
        Cell.dice, Cell.crashed, Cell.bulk = world.dice("agents"), set(), 0
        Cell.called.clear()
        Cell.slowness, Cell.max_takeovers = self._dice.choice((0.0, 0.1, 1.0)), 1000
        await world.prepare()
        for name in _SUPERVISORS:
            world.supervisor(name)
        for name in _NODES:
            world.node(name, passivate_s=self._dice.choice((3.0, 300.0)), snapshot_records=self._dice.choice((4, 32, 256)))
        await self.work.prepare()

    async def run(self, seconds: float, *others: Awaitable[Any]) -> None:
        """Have clients work for so long, processes die, and `others` do what they do."""
        await asyncio.gather(self.work.run(seconds), self._kill(self.world.loop.time() + seconds), *others)

    async def _kill(self, end: float) -> None:
        while (pause := self._dice.expovariate(KILLS_A_SECOND)) < end - self.world.loop.time():
            await asyncio.sleep(pause)
            name = self._dice.choice(self.killed)
            self.world.kill(name)
            self.kills += 1
            await asyncio.sleep(self._dice.choice((0.1, 0.5, 3.0)))
            self.world.restart(name)

    def stream(self, role: Any) -> Stream:
        return self.world.net.server.streams[self.world.subjects.stream(role)]

    def spec(self, agent: str) -> Spec | None:
        return readable_spec(registry_of(self.world).get(spec_key(agent)))

    async def until(self, seconds: float, holds: Callable[[], bool]) -> bool:
        """Whether `holds()` comes true within so many seconds."""
        end = self.world.loop.time() + seconds
        while not holds():
            if self.world.loop.time() > end:
                return False
            await asyncio.sleep(0.5)
        return True

    async def verdict(self, seed: int, lost: dict[str, int], wrong: list[str], counts: dict[str, int]) -> Verdict:
        """Wait for the end, and judge. `lost`: by agent whose journal was rolled up, the sequence of the message that did it."""
        world = self.world
        wanted = [agent for agent in IMMORTAL if agent not in lost]
        halts = lambda: [name for name in halted(world) if name not in lost]  # noqa: E731
        if not await self.work.revive(lambda: settled(world, wanted, lost), halts, PATIENCE_S):
            wrong += [f"not done {PATIENCE_S:g} s after the last fault: {line}" for line in unsettled(world, wanted, lost)]
        evidence = gather(world.net.server, world.subjects, self.work.history)
        for agent, seq in lost.items():
            wrong += _of_the_lost(agent, seq, evidence.journals.get(agent, ()))
        wrong += judge(_without(evidence, lost), wanted)
        wrong += [f"defect: {line}" for line in world.loop.defects]
        digest = hashlib.sha256()
        for name, stream in sorted(world.net.server.streams.items()):
            for message in stream.history:
                digest.update(f"{name} {message.seq} {message.subject} {message.at}".encode() + message.data)
        records = sum(len(records) for records in evidence.journals.values())
        counts = {**counts, "kills": self.kills, "records": records}
        done, printed = len(self.work.history), digest.hexdigest()[:16]
        return Verdict(seed, wrong, [], (), done, records, world.loop.time(), 0.0, printed, counts)


def _of_the_lost(agent: str, seq: int, records: Any) -> Iterator[str]:
    """Nothing follows the loss, and what was before it happened once."""
    if any(number > seq for number, _ in records):
        yield f"{agent}: a record follows the loss of its journal"
    for life in lives_of(agent, records):
        for entry, count in Counter(life.log).items():
            if count > 1 and not entry.startswith("undelivered|"):
                yield f"{agent} consumed {entry} {count} times"
            if entry.startswith("rewritten|"):
                yield f"{agent} has forgotten a committed turn"


def _without(evidence: Evidence, lost: dict[str, int]) -> Evidence:
    """The evidence on all other agents."""
    return msgspec.structs.replace(
        evidence,
        operations=[op for op in evidence.operations if op.agent not in lost],
        letters=[letter for letter in evidence.letters if letter.agent not in lost],
        journals={agent: records for agent, records in evidence.journals.items() if agent not in lost},
    )


# --- strangers ------------------------------------------------------------------------------------------------------
class Stranger:
    """Somebody who may publish anywhere."""

    def __init__(self, scene: Scene, count: int) -> None:
        self.rolls = 0.0
        """How likely a message to a journal rolls it up."""
        self.empties = 0.0
        """How likely a message to the registry removes all its other keys."""
        self.emptied = 0
        """How often one has."""
        self.sent: Counter[str] = Counter()
        self._scene = scene
        self._count = count
        self._dice = scene.world.dice("stranger")

    async def write(self) -> None:
        """Write all messages within `SECONDS`."""
        for number in range(self._count):
            role, subject = self._target()
            self._scene.world.net.server.publish(subject, self._headers(role), self._body(role), "")
            self.sent[role] += 1
            if number % 7 == 0:  # in bursts, as a program in a loop would
                await asyncio.sleep(self._dice.expovariate(self._count / 7 / SECONDS))

    def _target(self) -> tuple[str, str]:
        dice, s = self._dice, self._scene.world.subjects
        agent, node = dice.choice((*IMMORTAL, "ghost")), dice.choice((*_NODES, "ghost"))
        seq = str(self._scene.stream("mail").last_seq + dice.randint(-20, 20))
        token = f"x{dice.randint(0, 99)}"
        keys = (spec_key(agent), node_key(node), placement_key(node, agent), SUPERVISOR_KEY, EPOCH_KEY, f"odd.{token}")
        places = (
            (50, "journal", s.journal(agent)),
            (30, "registry", s.registry_key(dice.choice(keys))),
            (2, "mail", s.lane(dice.choice(("inbox", "notify", "peer-inbox", "peer-notify")), agent)),
            (2, "timer", s.timer(agent, token)),
            (2, "timer", s.due(agent)),
            (4, "result", s.result(agent, seq)),
            (3, "dead", s.dead(agent)),
            (3, "session", s.session(agent, token, token, "main")),
            (2, "blob", s.blob_chunks(token)),
            (2, "blob", s.blob_meta(token)),
        )
        _, role, subject = dice.choices(places, [weight for weight, _, _ in places])[0]
        return role, subject

    def _body(self, role: str) -> bytes:
        if role == "mail":
            return GARBLED + self._dice.randbytes(4)
        return self._dice.choice(_BODIES)

    def _headers(self, role: str) -> dict[str, str]:
        dice = self._dice
        headers = {}
        if role == "journal" and self.rolls and dice.random() < self.rolls:
            headers[ROLLUP] = "all" if dice.random() < 0.05 else "sub"
        if role == "registry" and self.empties and dice.random() < self.empties:
            headers[ROLLUP] = "all"
            self.emptied += 1
        if dice.random() < 0.1:
            headers["Nats-Msg-Id"] = f"id-{dice.randint(0, 20)}"
        if dice.random() < 0.1:
            headers["traceparent"] = "nothing"
        if role == "journal" and dice.random() < 0.1:
            headers["Nats-TTL"] = str(dice.randint(1, 5))
        return headers


async def _foreign(loop: SimLoop, seed: int, count: int) -> Verdict:
    world = World(loop, seed)
    dice = world.dice("strangers")
    rolls = dice.choice((0.0, 0.0, 0.003, 0.03))
    weights = {k: w for k, w in WEIGHTS.items() if (k in _SOLO if rolls else k not in _OTHERS)}
    scene = Scene(world, weights)
    await scene.prepare()
    stranger = Stranger(scene, count)
    stranger.rolls = rolls
    if dice.random() < 0.3:
        stranger.empties = 10.0 / count
        scene.killed = _NODES  # what a registry held that was emptied, only supervisors know
    await scene.run(SECONDS, stranger.write())
    lost = _rolled_up(scene)
    await scene.until(NAMED_S, lambda: all(_is_named(scene, agent) for agent in lost))
    unnamed = [agent for agent in lost if not _is_named(scene, agent)]
    wrong = [f"{agent} has lost its journal, and its spec says {_shown(scene, agent)}" for agent in unnamed]
    counts = {"foreign messages": stranger.sent.total(), "journals rolled up": len(lost), "registry emptied": stranger.emptied}
    return await scene.verdict(seed, lost, wrong, counts)


def _is_named(scene: Scene, agent: str) -> bool:
    """Whether somebody says that the agent has lost its journal: its spec; or, where strangers wrote that or the epoch too, the
    leader, which reports that there is nothing left to take it from."""
    head = len(scene.world.subjects.registry_key(""))
    keys = {m.subject[head:]: Entry(m.subject[head:], m.data, m.seq) for m in scene.stream("registry").live()}
    leaders = [supervisor for supervisor in scene.world.supervisors.values() if supervisor.leads]
    hopeless = {(key, revision) for leader in leaders for key, revision in leader.repair.hopeless.items()}
    epoch = keys.get(EPOCH_KEY)
    if epoch is None or (EPOCH_KEY, epoch.revision) in hopeless:
        return epoch is not None
    spec = keys.get(spec_key(agent))
    if readable_spec(spec) is None:
        return spec is not None and (agent, spec.revision) in hopeless
    return _says(scene, agent, "failed", "store_lost")


def _rolled_up(scene: Scene) -> dict[str, int]:
    """The agents whose journals a stranger has rolled up, each with the sequence of the message that did it first."""
    subjects, found = {scene.world.subjects.journal(agent): agent for agent in IMMORTAL}, dict[str, int]()
    for message in scene.stream("journal").history:
        how = message.headers.get(ROLLUP)
        if how is None or RECORD in message.headers:
            continue
        for agent in (subjects.get(message.subject),) if how == "sub" else IMMORTAL:
            if agent is not None:
                found.setdefault(agent, message.seq)
    return found


def _says(scene: Scene, agent: str, status: str, code: str) -> bool:
    spec = scene.spec(agent)
    return spec is not None and spec.status == status and spec.reason is not None and spec.reason.code == code


def _shown(scene: Scene, agent: str) -> str:
    spec = scene.spec(agent)
    return "nothing that is the mesh's" if spec is None else f"{spec.status}, {spec.reason}"


# --- records that cannot be read ------------------------------------------------------------------------------------
class Forger:
    """Puts records into journals that no program can read, and takes them away again."""

    def __init__(self, scene: Scene, count: int) -> None:
        self.records: dict[str, list[Stored]] = defaultdict(list)
        """By agent, what it was that could not be read."""
        self.unnamed: list[str] = []
        self._scene = scene
        self._left = count
        self._count = 0
        self._dice = scene.world.dice("forger")

    async def write(self) -> None:
        """Write all of them, in as many rounds for each agent as that takes."""
        await asyncio.gather(*(self._keep_on(agent, random.Random(self._dice.random())) for agent in IMMORTAL))

    async def _keep_on(self, agent: str, dice: random.Random) -> None:
        await asyncio.sleep(dice.uniform(0.0, 3.0))
        while self._left > 0:
            burst = min(self._left, dice.randint(1, 5))
            self._left -= burst
            written = [self._forge(agent, dice) for _ in range(burst)]
            if dice.random() < 0.05:
                await self._scene.world.spawn(f"c-{agent}", self._prompt(agent))  # an idle agent has no reason to look
                named = await self._scene.until(NAMED_S, lambda: _says(self._scene, agent, "wanted", "unreadable_record"))
                self.unnamed += [] if named else [f"{agent} cannot be read, and its spec says {_shown(self._scene, agent)}"]
            else:
                await asyncio.sleep(dice.choice(_STANDS_S) * dice.random())
            for message in dice.sample(written, len(written)):
                self._scene.stream("journal").delete(message.seq)
            await asyncio.sleep(dice.choice((0.0, 1.0, 60.0)) * dice.random())

    async def _prompt(self, agent: str) -> None:
        async with self._scene.world.client(f"c-{agent}") as mesh:
            await mesh.tell(agent, f"add {agent}-{self._count}", timeout=20.0)

    def _forge(self, agent: str, dice: random.Random) -> Stored:
        journal, subject = self._scene.stream("journal"), self._scene.world.subjects.journal(agent)
        whole = next(m for m in reversed(journal.view(subject, 0, 0.0)) if is_record(m))
        self._count += 1
        headers = {RECORD: f"{FORGED}{self._count}"}
        body = whole.data
        match dice.choice(("version", "kind", "cut", "blob")):
            case "version":
                body = body.replace(b'{"v":', b'{"v":9', 1)
            case "kind":
                fields = msgspec.json.decode(body)
                body = msgspec.json.encode({**fields, "kind": "dream"})
            case "cut":
                body = body[: dice.randrange(len(body))]
            case _:
                headers[BLOB] = f"gone-{self._count}"
        journal.publish(subject, headers, body)
        message = journal.last_on(subject)
        assert message is not None
        self.records[agent].append(message)
        return message


def _passed_over(scene: Scene, forger: Forger) -> Iterator[str]:
    """Records that were written behind one that stood there and could not be read."""
    own: dict[str, list[Stored]] = defaultdict(list)
    for message in filter(is_record, scene.stream("journal").history):
        own[message.subject].append(message)
    for agent, forged in forger.records.items():
        for unread in forged:
            assert unread.gone is not None
            for message in own[scene.world.subjects.journal(agent)]:
                if message.seq > unread.seq and message.at < unread.gone:
                    yield f"{agent}: record {message.seq} was written behind {unread.seq}, which cannot be read"


async def _unreadable(loop: SimLoop, seed: int, count: int) -> Verdict:
    world = World(loop, seed)
    scene = Scene(world, {kind: weight for kind, weight in WEIGHTS.items() if kind not in _OTHERS}, threads=8)
    await scene.prepare()
    forger = Forger(scene, count)
    await scene.run(SECONDS, forger.write())
    forged = sum(len(records) for records in forger.records.values())
    wrong = [*forger.unnamed, *_passed_over(scene, forger)]
    return await scene.verdict(seed, {}, wrong, {"unreadable records": forged})


# --- runs -----------------------------------------------------------------------------------------------------------
def run_foreign(seed: int, *, count: int, collect: bool = True, **_ignored: Any) -> Verdict:
    """Run one seed to its verdict, with so many messages of strangers."""
    return _timed(lambda loop: _foreign(loop, seed, count), collect)


def run_unreadable(seed: int, *, count: int, collect: bool = True, **_ignored: Any) -> Verdict:
    """Run one seed to its verdict, with so many records that nobody can read."""
    return _timed(lambda loop: _unreadable(loop, seed, count), collect)


def _timed(main: Callable[[SimLoop], Any], collect: bool) -> Verdict:
    began = time.monotonic()
    verdict: Verdict = run_sim(main, collect=collect)
    verdict.real_s = time.monotonic() - began
    return verdict
