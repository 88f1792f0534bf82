"""Users of another account, whose requests bear chains and keys, in the mesh of both builds; and what must hold of them.

While a process of the build before runs, what it has owned loses both (docs/compatibility.md): such a request is then unverified,
and open to all. It is never another user's. Once all read the second version nothing is lost, even if an older process joins.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from msgspec import structs

from agentmesh.identity import chain_in, told
from agentmesh.keys import KEY_DIGEST, digest_of
from agentmesh.wire import CHAIN
from agentmesh_client import Mesh
from compat.two_builds.caller import CHAIN as ASKING
from compat.two_builds.caller import COUNTERS, IMMORTAL, RING
from judge.behalf import Ways
from judge.evidence import OTHERS, OTHERS_CANCEL, OWN_POLL, Evidence, Operation
from sim.users import USERS, Users, key_of

ASK_S = 30.0
THREADS = 2
PAUSE_S = 0.1


class Accounts:
    """They ask until `over`."""

    def __init__(self, mesh: Mesh, history: list[Operation]) -> None:
        self.over = asyncio.Event()
        self._mesh = mesh
        self._history = history
        self._users = Users(history, ASK_S)

    async def work(self) -> None:
        """Do one thing after another, two at a time."""
        await asyncio.gather(*(self._thread(f"users-{number}") for number in range(THREADS)))

    async def _thread(self, client: str) -> None:
        dice = random.Random(client)
        for number in itertools.count():
            if self.over.is_set():
                return
            if dice.random() < 0.3:
                await self._users.pry(self._mesh, client, dice, self._do)
            else:
                await self._ask(client, f"{client}-{number}", dice)
            await asyncio.sleep(PAUSE_S * dice.random())

    async def _ask(self, client: str, label: str, dice: random.Random) -> None:
        agent, text = dice.choice((
            (dice.choice(IMMORTAL), f"add {label}"),
            (dice.choice(RING), f"pass {label} {dice.randint(1, 3)}"),
            (ASKING[0], f"call {label} {len(ASKING) - 1}"),
            (ASKING[1], f"wait {label} {ASKING[2]} {dice.choice(COUNTERS)}"),
        ))  # fmt: skip
        user = dice.choice(USERS)

        async def act(op: Operation) -> None:
            op.user, op.key = user, key_of(label)
            await self._users.ask(self._mesh, op, dice.choice(("ask", "tell")), text.encode())

        await self._do(client, f"user {text.split()[0]}", agent, label, act)

    async def _do(self, client: str, kind: str, agent: str, label: str, act: Callable[[Operation], Awaitable[Any]]) -> None:
        op = Operation(client, kind, agent, label, time.time())
        self._history.append(op)
        await act(op)
        op.ended = time.time()


def wronged(evidence: Evidence, secured: float) -> Iterator[str]:
    """What is wrong with what became of users' requests; `secured`: from when on both chain and key are kept by all."""
    ways, begun = Ways(evidence), {op.label: op.began for op in evidence.operations if op.user and op.key}
    for letter in evidence.letters:
        op = ways.operation(letter)
        if op is not None and op.key and letter.headers.get(KEY_DIGEST) != digest_of(op.key):
            yield f"{letter.agent} {letter.seq} ({letter.text}) was stored without its key"
        expected, found = ways.chain(letter) if letter.is_prompt else (), chain_in(letter.headers.get(CHAIN, ""))
        late = begun.get(letter.label.partition("@")[0], 0.0) > secured
        if letter.is_prompt and found != expected and (found or late):
            yield f"{letter.agent} {letter.seq} ({letter.text}) was sent for {told(found)!r}, and was for {told(expected)!r}"
    for agent, records in evidence.journals.items():
        for seq, record in records:
            met = ways.letters.get((agent, record.turn.ref)) if record.turn is not None else None
            if record.turn is None or met is None or not met.is_prompt:
                continue
            late = begun.get(met.label.partition("@")[0], 0.0) > secured
            if record.turn.chain != ways.chain(met) and (record.turn.chain or late):
                yield f"{agent}: record {seq} of {record.node} says that {met.text} was for {told(record.turn.chain)!r}"
    for op in evidence.operations:
        if op.kind in OTHERS and op.error is None and op.ended is not None and begun.get(op.label, 0.0) > secured:
            yield f"{op.client} got at the request {op.label} of {op.agent} without its key"
        if op.kind == OWN_POLL and op.error == "not_permitted":
            yield f"{op.client} was turned down with the key of {op.label} of {op.agent}"


def as_before_keys(operations: Iterable[Operation], secured: float) -> list[Operation]:
    """The operations, with those cancels of strangers as any client's whose request was made before all kept its key: such a
    request is open to all."""
    known = list(operations)
    begun = {op.label: op.began for op in known if op.user and op.key}
    return [
        structs.replace(op, kind="cancel") if op.kind == OTHERS_CANCEL and begun.get(op.label, 0.0) <= secured else op
        for op in known
    ]


def served(evidence: Evidence, secured: float) -> tuple[int, int]:
    """How many records of turns name a user, and how many trials without a key were turned down of requests from after that."""
    named = [record for records in evidence.journals.values() for _, record in records if record.turn and record.turn.chain]
    begun = {op.label: op.began for op in evidence.operations if op.user and op.key}
    refused = [op for op in evidence.operations if op.kind in OTHERS and op.error == "not_permitted"]
    return len(named), sum(begun.get(op.label, 0.0) > secured for op in refused)
