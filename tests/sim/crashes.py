"""A node that dies at its k-th call to the outside, for every k.

`Counting` counts each call that a node makes through its transport: journal appends, publishes, registry writes, reads, purges,
subscriptions. At the chosen one the node's process vanishes, before the call or just behind it, and comes back after a moment.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Literal

from agentmesh.edge.registry import decode_spec
from agentmesh.edge.transport import Answered, Handler, Headers, Message, Subscription, Transport
from agentmesh.errors import NotPermitted
from agentmesh.wire import Outcome
from agentmesh_client.client import Mesh
from judge.evidence import Evidence
from judge.verdict import judge, lives_of
from sim.agents import Cell
from sim.checker import gather
from sim.loop import SimLoop, run_sim
from sim.payments import Bank
from sim.run import registry_of, settled, unsettled
from sim.world import SERVED, World

WITH_ANOTHER = ("moves", "orders")
"""Scripts in which there is a second node, which does not die, and serves another version of the code."""
WITH_THIRD = ("orders",)
"""Scripts in which there is a third, which serves the same version as the one that dies."""
BACK_S = 0.2
"""How long the node stays dead."""
PATIENCE_S = 400.0

type Moment = Literal["before", "after"]
MOMENTS: tuple[Moment, Moment] = ("before", "after")
type Dies = Callable[[int, Moment, str], bool]
"""Whether the node dies at its call of that number, to that subject, at that moment."""
type Script = Callable[[Mesh, "Notes"], Awaitable[None]]


class Vanished(BaseException):
    """What runs now belongs to a process that is dead: nothing more of this step may happen."""


class Counting:
    """A transport that calls `at(k)` for its k-th call, before and after it is made."""

    def __init__(self, inner: Transport, at: Callable[[int, Moment, str], Coroutine[Any, Any, None] | None]) -> None:
        self._inner = inner
        self._at = at
        self.calls = 0

    async def _make[T](self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        number = self.calls
        if (dying := self._at(number, "before", what)) is not None:
            await dying
        pending = asyncio.ensure_future(call())
        await asyncio.sleep(0)  # what is to be sent is on its way now
        if (dying := self._at(number, "after", what)) is not None:
            await dying
        return await pending

    def _make_now[T](self, what: str, call: Callable[[], T]) -> T:
        self.calls += 1
        number = self.calls
        _vanish(self._at(number, "before", what))
        made = call()
        _vanish(self._at(number, "after", what))
        return made

    @property
    def domain(self) -> str | None:
        return self._inner.domain

    @domain.setter
    def domain(self, domain: str | None) -> None:
        self._inner.domain = domain

    @property
    def max_payload(self) -> int:
        return self._inner.max_payload

    @property
    def connected(self) -> bool:
        return self._inner.connected

    @property
    def clustered(self) -> bool:
        return self._inner.clustered

    @property
    def reading(self) -> bool:
        return self._inner.reading

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._inner.on_read(callback)

    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        await self._make(subject, lambda: self._inner.publish(subject, data, headers=headers, reply=reply))

    def send(self, subject: str, data: bytes = b"") -> bool:
        return self._make_now(subject, lambda: self._inner.send(subject, data))

    def call(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float, answered: Answered
    ) -> bool:
        return self._make_now(
            subject, lambda: self._inner.call(subject, data, headers=headers, timeout=timeout, answered=answered)
        )

    def post(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, though_full: bool = False) -> None:
        self._inner.post(subject, data, headers=headers, though_full=though_full)  # news for people: nothing depends on it

    def post_all(self, messages: Iterable[tuple[str, bytes]], *, though_full: bool = False) -> None:
        self._inner.post_all(messages, though_full=though_full)

    @property
    def dropped(self) -> int:
        return self._inner.dropped

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        return await self._make(subject, lambda: self._inner.request(subject, data, headers=headers, timeout=timeout))

    async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
        return await self._make(subject, lambda: self._inner.request_many(subject, data, timeout=timeout))

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        return await self._make(subject, lambda: self._inner.subscribe(subject, handler, queue=queue))

    def on_gap(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._inner.on_gap(callback)

    @property
    def refusal(self) -> NotPermitted | None:
        return self._inner.refusal

    def on_refused(self, callback: Callable[[NotPermitted], None], *, tells: bool = True) -> Callable[[], None]:
        return self._inner.on_refused(callback, tells=tells)

    async def flush(self, timeout: float = 5.0) -> None:
        await self._inner.flush(timeout)

    async def close(self) -> None:
        await self._inner.close()


def _vanish(dying: Coroutine[Any, Any, None] | None) -> None:
    """Die in the middle of a step that awaits nothing."""
    if dying is not None:
        dying.send(None)  # up to where it waits for ever
        raise Vanished


@dataclasses.dataclass
class Notes:
    """What the client of a script was told."""

    answers: dict[str, str] = dataclasses.field(default_factory=dict)

    async def ask(self, mesh: Mesh, agent: str, text: str) -> None:
        """Ask, and note the answer."""
        outcome = await mesh.ask_outcome(agent, text, timeout=200.0)
        self.answers[text.split()[1]] = said(outcome)


def said(outcome: Outcome) -> str:
    """An outcome in a word or two."""
    return outcome.text or "" if outcome.ok else f"error {outcome.error.code if outcome.error else '?'}"


@dataclasses.dataclass
class Final:
    """How a run ended: what must be the same wherever the node died."""

    answers: dict[str, str]
    agents: dict[str, Any]
    """Per agent: status, configuration, and what it consumed, in order for each kind and sender."""
    dead: list[tuple[str, str]]
    outcomes: dict[tuple[str, str], str]
    """What is stored for each prompt, by agent and label."""
    mail: list[tuple[str, str]]
    """What the lanes were given, by lane and label; repetitions apart."""
    wrong: list[str]
    calls: int
    seen: set[str]
    """Kinds of records and effects that came up."""


def play(
    script: Script,
    *,
    dies: Dies = lambda *_: False,
    trace: Callable[[str], None] | None = None,
    ended: Callable[[Final], None] = lambda _: None,
    collect: bool = True,
) -> Final:
    """Run `script` against one node that dies once, where `dies` says so. `trace` gets a line for each message, `ended` what is
    returned, before all that still runs is ended; `collect` as `run_sim` has it."""

    async def main(loop: SimLoop) -> Final:
        final = await _play(loop, script, dies, trace)
        ended(final)
        return final

    return run_sim(main, collect=collect)


async def _play(loop: SimLoop, script: Script, dies: Dies, trace: Callable[[str], None] | None) -> Final:
    world = World(loop, "crash")
    if trace is not None:
        world.net.trace_to(trace)
    Cell.dice, Cell.slowness, Cell.crashed, Cell.max_takeovers = random.Random(0), 0.0, set(), 5
    Cell.called.clear()
    Bank.clear()
    await world.prepare()
    counting: list[Counting] = []
    gone = loop.create_future()

    def at(number: int, now: Moment, subject: str) -> Coroutine[Any, Any, None] | None:
        if gone.done() or not dies(number, now, subject):
            return None
        gone.set_result(None)
        return _die(world)

    def wrap(transport: Transport) -> Transport:
        if counting:
            return transport  # it has died once
        counting.append(Counting(transport, at))
        return counting[0]

    world.wrap["n1"] = wrap
    world.supervisor("s1")
    if script.__name__ in WITH_ANOTHER:
        world.node("n2", passivate_s=2.0, snapshot_records=5, code=dict.fromkeys(SERVED, "another"))
    if script.__name__ in WITH_THIRD:
        world.node("n3", passivate_s=2.0, snapshot_records=5, code=dict.fromkeys(SERVED, "same"))
    world.node("n1", passivate_s=2.0, snapshot_records=5, code=dict.fromkeys(SERVED, "same"))  # the newest gets the first agent
    notes = Notes()

    async def client() -> None:
        async with world.client("c1") as mesh:
            await script(mesh, notes)

    await world.process("c1").spawn(client())
    end = loop.time() + PATIENCE_S
    while not settled(world, ()) and loop.time() < end:  # noqa: ASYNC110 - the world is looked at from outside
        await asyncio.sleep(0.25)
    wrong = unsettled(world, ())
    evidence = gather(world.net.server, world.subjects, [], payments=Bank.paid)
    again = sum(Cell.called.values()) - len(Cell.called)
    if again > 1:
        wrong.append(f"{again} calls of turns were made again, and only one can have been in flight")
    return _final(
        world,
        notes,
        evidence,
        [*wrong, *judge(evidence, ()), *(d for d in loop.defects if Vanished.__name__ not in d)],
        counting[0].calls,
    )


async def _die(world: World) -> None:
    world.kill("n1")
    world.loop.call_later(BACK_S, world.restart, "n1", context=world.net.world)
    await asyncio.Event().wait()


def _final(world: World, notes: Notes, evidence: Evidence, wrong: list[str], calls: int) -> Final:
    agents = {}
    for key, entry in registry_of(world).items():
        if not key.startswith("agents."):
            continue
        name = key.partition(".")[2]
        consumed: dict[str, list[str]] = defaultdict(list)
        for life in lives_of(name, evidence.journals.get(name, ())):
            for line in life.log:
                kind, sender, label = line.split("|")
                consumed[f"{kind}|{sender}"].append("" if kind == "answer" else label)  # the tag is a ref: a sequence
        spec = decode_spec(entry)
        shown = (spec.watchdog_s, spec.budget, spec.restart, spec.backend_options, spec.sets)
        agents[name] = (spec.status, shown, dict(consumed))
    dead = [(m.subject, m.headers["Mesh-Reason"]) for m in world.net.server.streams[world.subjects.stream("dead")].live()]
    refs = {(x.agent, str(x.seq)): x.label for x in evidence.letters}
    outcomes = {(o.agent, refs[o.agent, o.ref]): said(o) for o in evidence.results}
    mail = {(f"{x.lane}.{x.agent}", x.label if not x.label.startswith("=") else "=") for x in evidence.letters}
    seen: set[str] = {record.kind for records in evidence.journals.values() for _, record in records}
    seen |= {"snapshot" for records in evidence.journals.values() for _, record in records if record.snapshot is not None}
    seen |= {type(e).__name__ for records in evidence.journals.values() for _, record in records for e in record.effects}
    return Final(notes.answers, agents, sorted(dead), outcomes, sorted(mail), wrong, calls, seen)
