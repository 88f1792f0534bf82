"""What clients do in a run, and what became of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from agentmesh import wire
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout
from agentmesh.errors import AskTimeout, MeshError, Unavailable
from agentmesh.subjects import Way
from agentmesh_client.client import Mesh
from judge.evidence import Operation
from sim.users import USER_WEIGHTS, USERS, Users, key_of

RING = ("r0", "r1", "r2")
CHAIN = ("a0", "a1", "a2", "a3")
COUNTERS = ("k0", "k1")
IMMORTAL = (*RING, *CHAIN, *COUNTERS)
"""Agents that are never stopped: what is accepted for them must be answered by a turn."""
PAYERS = ("p0", "p1")
"""Agents that pay, where a workload has such: they are never stopped either."""
MORTAL = ("m0", "m1")
"""Agents that are started and stopped all the time."""
ASK_S = 15.0
PLAIN_TRIES = 3
RECENT = 12
"""Of so many of the newest operations one may be cancelled."""
PLAIN_PAUSE_S = 0.5
"""Between two tries of a plain request that nobody took."""
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "ask": 5,
        "plain": 2,
        "tell": 5,
        "notify": 3,
        "pass": 3,
        "call": 3,
        "steps": 2,
        "wait": 2,
        "timer": 2,
        "halt": 1,
        "flaky": 1,
        "boom": 0.3,
        "start": 1,
        "stop": 1,
        "spawn": 1,
        "mortal": 2,
        "resume": 4,
        "set": 3,
        "apart": 2,
        "interrupt": 2,
        "cancel": 3,
    }
)
"""How often clients do what, by default."""
ENDS: Mapping[str, float] = MappingProxyType(
    {"wait": 6, "call": 5, "apart": 3, "steps": 2, "ask": 1, "plain": 1, "pass": 1, "spawn": 0.5, "stop": 0.5, "start": 0.5,
     "mortal": 0.5, "resume": 1, "interrupt": 3, "cancel": 8}
)  # fmt: skip
"""The same, where most is asked on behalf of something else and much of it is ended before its time."""

MOVES: Mapping[str, float] = MappingProxyType(
    {"steps": 5, "slowly": 5, "wait": 4, "work": 8, "ask": 1, "call": 1, "notify": 1, "cancel": 1, "interrupt": 0.5, "resume": 1}
)
"""The same, where most turns have many steps, so that they are met in their middle by what moves agents."""

ENDING = 0.15
"""How many of the questions end by a time, where some do."""
PAY = 3.0
"""How often they are to pay, beside these."""
WORK = 2.0
"""How often they are to work with tools, beside these."""
WATCHED = 0.5
"""How many of the turns with steps their clients watch."""


class Place(Protocol):
    """Where clients live: a simulated world, or a real mesh."""

    def dice(self, purpose: str) -> random.Random:
        """A source of chance of its own for each purpose."""

    def now(self) -> float:
        """Seconds of its clock."""

    def client(self, name: str) -> AbstractAsyncContextManager[Mesh]:
        """A client, for work that `spawn` runs under that name."""

    def spawn[T](self, name: str, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Run `work` in the process of that name."""


class Workload:
    """Some clients, each with a few tasks that do one thing after another."""

    def __init__(
        self,
        world: Place,
        *,
        clients: int = 2,
        threads: int = 2,
        weights: Mapping[str, float] = WEIGHTS,
        ask_s: float = ASK_S,
        pays: bool = False,
        users: bool = False,
        ends: Callable[[str, str, float], dt.datetime] | None = None,
    ) -> None:
        """
        Args:
            ask_s: how long a client waits for an answer.
            pays: there are agents that pay.
            users: some clients are users of another account, with a key for each request.
            ends: gives a time by a client's clock, by the client's name, the label of a request, and the seconds from now. With
                it some requests end by such a time, answered or not.
        """
        self._ends = ends
        self._world = world
        self._dice = world.dice("workload")
        if pays:
            weights = {"work": WORK, **weights, "pay": PAY}
        if users:
            weights = {**weights, **USER_WEIGHTS}
        self._payers = PAYERS if pays else ()
        self._immortal = (*IMMORTAL, *self._payers)
        self._kinds, self._weights = tuple(weights), tuple(weights.values())
        self._ask_s = ask_s
        self._clients = [f"c{n}" for n in range(clients)]
        self._threads = threads
        self.history: list[Operation] = []
        self._users = Users(self.history, ask_s)

    async def prepare(self) -> None:
        """Start the agents that are to live for ever."""

        async def start() -> None:
            async with self._world.client("c-setup") as mesh:
                for group, rings in ((RING, True), (CHAIN, False), (COUNTERS, True)):
                    for index, name in enumerate(group):
                        following = group[(index + 1) % len(group)] if rings or index + 1 < len(group) else ""
                        await mesh.start_agent(name, kind="Cell", options={"next": following}, restart="permanent")
                for name in self._payers:
                    await mesh.start_agent(name, kind="Payer", restart="permanent")

        await self._world.spawn("c-setup", start())

    async def run(self, seconds: float) -> None:
        """Have all clients work for so long, and wait for what they have begun."""
        end = self._world.now() + seconds
        runs = []
        for name in self._clients:
            dice = random.Random(self._dice.random())
            runs.append(self._world.spawn(name, self._client(name, dice, end)))
        await asyncio.gather(*runs)

    async def _client(self, name: str, dice: random.Random, end: float) -> None:
        async with self._world.client(name) as mesh, asyncio.TaskGroup() as group:
            for number in range(self._threads):
                group.create_task(self._thread(mesh, f"{name}-{number}", random.Random(dice.random()), end))

    async def _thread(self, mesh: Mesh, name: str, dice: random.Random, end: float) -> None:
        count = 0
        while self._world.now() < end:
            count += 1
            await self._one(mesh, name, f"{name}-{count}", dice)
            await asyncio.sleep(dice.choice((0.0, 0.01, 0.2, 1.0)) * dice.random())

    async def _one(self, mesh: Mesh, client: str, label: str, dice: random.Random) -> None:
        kind = dice.choices(self._kinds, self._weights)[0]
        match kind:
            case "pass":
                await self._tell(mesh, client, dice.choice(RING), f"pass {label} {dice.randint(1, 5)}")
            case "call" | "apart":
                depth = dice.randint(1, len(CHAIN) - 1)
                await self._ask(mesh, client, CHAIN[0], f"{kind} {label} {depth}", dice)
            case "steps" | "slowly" | "wait" | "pay" | "work" | "user" | "pry":
                await self._long(mesh, client, kind, label, dice)
            case "notify":
                await self._do(
                    client, "notify", agent := dice.choice(self._immortal), label, lambda op: self._notify(mesh, op, agent, label)
                )
            case "timer":
                await self._tell(mesh, client, dice.choice(COUNTERS), f"timer {label} {dice.choice((0.0, 0.5, 5.0))}")
            case "interrupt":
                agent = dice.choice((*self._immortal, *MORTAL))
                await self._do(client, kind, agent, label, lambda op: _interrupt(mesh, agent))
            case "cancel":
                await self._cancel(mesh, client, dice)
            case "start" | "stop" | "resume" | "set":
                await self._operate(mesh, client, kind, label, dice)
            case "spawn":
                verb = dice.choice(("spawn", "end"))
                await self._tell(mesh, client, dice.choice(COUNTERS), f"{verb} {label} {dice.choice(MORTAL)}")
            case "mortal" | "ask":
                await self._ask(mesh, client, dice.choice(MORTAL if kind == "mortal" else self._immortal), f"add {label}", dice)
            case "plain":
                agent = dice.choice((*self._immortal, *MORTAL))
                await self._do(client, "plain ask", agent, label, lambda op: self._plain(mesh, op, agent, label))
            case _:
                await self._tell(mesh, client, dice.choice(self._immortal), f"{'add' if kind == 'tell' else kind} {label}")

    async def _operate(self, mesh: Mesh, client: str, kind: str, label: str, dice: random.Random) -> None:
        """What operators do."""
        agent = dice.choice({"start": MORTAL, "stop": MORTAL, "resume": self._immortal}.get(kind, (*self._immortal, *MORTAL)))
        watchdog_s = float(dice.randint(600, 9999)) if kind == "set" else 0.0

        async def act(op: Operation) -> None:
            match kind:
                case "start":
                    await mesh.start_agent(agent, kind="Cell", timeout=20.0)
                case "stop":
                    await mesh.stop(agent, timeout=20.0)
                case "resume":
                    await mesh.resume(agent, timeout=10.0)
                case _:
                    await _set(mesh, op, agent, label, watchdog_s)

        await self._do(client, kind, agent, label, act)

    async def _long(self, mesh: Mesh, client: str, kind: str, label: str, dice: random.Random) -> None:
        """A turn with steps, one that pays, what users of another account do, or a turn that waits for others. Agents wait for
        each other, and for themselves: circles come about, within one chain of waits and across several."""
        if kind in ("steps", "slowly", "work"):
            agents = self._payers if kind == "work" else self._immortal
            text = f"{kind} {label} {dice.randint(1, 8)}"
            await (self._watch if dice.random() < WATCHED else self._ask)(mesh, client, dice.choice(agents), text, dice)
            return
        if kind == "pay":
            await self._ask(mesh, client, dice.choice(self._payers), f"pay {label} {dice.randint(1, 4)}", dice)
            return
        if kind == "user":
            await self._user(mesh, client, label, dice)
            return
        if kind == "pry":
            await self._users.pry(mesh, client, dice, self._do)
            return
        first, *others = dice.choices((*RING, *CHAIN[2:], *self._payers), k=dice.randint(2, 4))
        await self._ask(mesh, client, first, f"wait {label} {' '.join(others)}", dice)

    async def _user(self, mesh: Mesh, client: str, label: str, dice: random.Random) -> None:
        """A request of a user of another account, of any kind."""
        others = dice.choices((*RING, *CHAIN[2:], *self._payers), k=dice.randint(1, 3))
        depth = dice.randint(1, len(CHAIN) - 1)
        agent, text = dice.choice((
            (dice.choice((*self._immortal, *MORTAL)), f"add {label}"),
            (dice.choice(self._immortal), f"steps {label} {dice.randint(1, 8)}"),
            (dice.choice(RING), f"pass {label} {dice.randint(1, 5)}"),
            (CHAIN[0], f"{dice.choice(('call', 'apart'))} {label} {depth}"),
            (dice.choice(COUNTERS), f"spawn {label} {dice.choice(MORTAL)}"),
            (dice.choice(RING), f"wait {label} {' '.join(others)}"),
        ))  # fmt: skip
        way: Way = dice.choice(("ask", "ask", "tell", "event-to"))
        if way == "event-to":
            agent, text = dice.choice(self._immortal), f"event {label}"
        body = msgspec.json.encode({"label": label}) if way == "event-to" else text.encode()
        user = dice.choice(USERS)

        async def act(op: Operation) -> None:
            op.user, op.key = user, key_of(label)
            await self._users.ask(mesh, op, way, body)

        await self._do(client, f"user {text.split()[0]}", agent, label, act)

    async def _cancel(self, mesh: Mesh, client: str, dice: random.Random) -> None:
        """End a request of some client, and all that is open on its behalf."""
        newest = [op for op in self.history[-RECENT:] if op.ref not in (None, "-") and op.kind[:4] in ("ask ", "tell")]
        newest = [op for op in newest if op.ended is None] or newest
        if not newest:
            return
        target = dice.choice(newest)

        async def act(op: Operation) -> None:
            assert target.ref is not None
            await mesh.cancel(target.agent, target.ref, tree=True, timeout=10.0)

        await self._do(client, "cancel", target.agent, target.label, act)

    # --- operations -----------------------------------------------------------------------------------------------
    async def _do(self, client: str, kind: str, agent: str, label: str, act: Callable[[Operation], Awaitable[None]]) -> None:
        op = Operation(client, kind, agent, label, self._world.now())
        self.history.append(op)
        try:
            await act(op)
        except MeshError as error:
            op.error = error.code
        op.ended = self._world.now()

    async def _tell(self, mesh: Mesh, client: str, agent: str, text: str) -> None:
        verb, label = text.split()[:2]

        async def act(op: Operation) -> None:
            key: str | None = None
            for _ in range(3):
                try:
                    op.ref = await mesh.tell(agent, text, idempotency_key=key, timeout=20.0)
                    return
                except Unavailable as error:
                    # What a careful caller does: the same again, under the key that the error names.
                    key = error.details.get("idempotency_key", key)
                    if key is None:
                        raise
            raise Unavailable("not confirmed")

        await self._do(client, f"tell {verb}", agent, label, act)

    async def _ask(self, mesh: Mesh, client: str, agent: str, text: str, dice: random.Random) -> None:
        verb, label = text.split()[:2]
        end_by = None
        if self._ends is not None and dice.random() < ENDING:
            end_by = self._ends(client.partition("-")[0], label, dice.choice((0.3, 2.0, 8.0)) * dice.random())

        async def act(op: Operation) -> None:
            def accepted(ref: str) -> None:
                op.ref = ref

            try:
                op.outcome = await mesh.ask_outcome(agent, text, timeout=self._ask_s, on_accepted=accepted, end_by=end_by)
            except AskTimeout:
                op.error = "ask_timeout"

        await self._do(client, f"ask {verb}", agent, label, act)

    async def _watch(self, mesh: Mesh, client: str, agent: str, text: str, dice: random.Random) -> None:
        """Ask, and watch the turn."""
        verb, label = text.split()[:2]

        async def act(op: Operation) -> None:
            try:
                async with mesh.stream(agent, text, timeout=self._ask_s) as turn:
                    op.ref = turn.ref
                    op.outcome = await turn.outcome()
            except AskTimeout:
                op.error = "ask_timeout"

        await self._do(client, f"ask {verb}", agent, label, act)

    async def _plain(self, mesh: Mesh, op: Operation, agent: str, label: str) -> None:
        """A request of plain NATS, repeated under its id as long as no answer comes."""
        headers = {wire.MSG_ID: f"{agent}.q-{label}"}
        op.error = "ask_timeout"
        for _ in range(PLAIN_TRIES):
            try:
                subject = mesh.subjects.ask(agent)
                reply = await mesh.transport.request(
                    subject, f"add {label}".encode(), headers=headers, timeout=self._ask_s / PLAIN_TRIES
                )
            except (RequestTimeout, NoResponders, Disconnected):
                await asyncio.sleep(PLAIN_PAUSE_S)
                continue
            outcome = wire.decode_outcome(reply.data)
            op.error = None if outcome.error is None else outcome.error.code
            if outcome.ref:
                op.ref, op.outcome, op.error = outcome.ref, outcome, None
            elif op.error == "unavailable":
                continue
            return

    async def _notify(self, mesh: Mesh, op: Operation, agent: str, label: str) -> None:
        await mesh.notify(agent, {"label": label}, timeout=20.0, idempotency_key=f"e-{label}")
        op.ref = "-"

    # --- the end --------------------------------------------------------------------------------------------------
    async def revive(self, settled: Callable[[], bool], halted: Callable[[], list[str]], patience: float) -> bool:
        """Resume what is `halted`, until everything is `settled`; whether it was within `patience` seconds."""
        end = self._world.now() + patience

        async def work() -> bool:
            async with self._world.client("c-last") as mesh:
                while not settled():
                    if self._world.now() > end:
                        return False
                    for name in halted():
                        try:
                            await mesh.resume(name, timeout=3.0)
                        except MeshError:
                            continue  # seen to by `settled`
                    await asyncio.sleep(0.5)
            return True

        return await self._world.spawn("c-last", work())


async def _set(mesh: Mesh, op: Operation, agent: str, label: str, watchdog_s: float) -> None:
    """Two parts of the configuration that tell of each other, so that a change which is torn shows."""
    options = {"label": label, "watchdog_s": watchdog_s}
    await mesh.update_agent(agent, backend_options=options, watchdog_s=watchdog_s, timeout=20.0)
    op.ref = "-"


async def _interrupt(mesh: Mesh, agent: str) -> None:
    await mesh.interrupt(agent, timeout=10.0)
