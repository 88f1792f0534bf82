"""A client process of either build: it works until its input ends, and prints each of its operations as a line of JSON.

It knows a build by its public client alone.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import agentmesh_client
from agentmesh.errors import AskTimeout, MeshError, Unavailable

RING = ("r0", "r1")
CHAIN = ("a0", "a1", "a2")
COUNTERS = ("k0", "k1")
IMMORTAL = (*RING, *CHAIN, *COUNTERS)
MORTAL = ("m0", "m1")
THREADS = 3
ASK_S = 30.0
TRIES = 5
WEIGHTS = {"add": 6, "tell": 4, "notify": 3, "pass": 4, "call": 4, "steps": 3, "wait": 2, "timer": 1, "start": 1, "stop": 1}
PAUSES = (0.0, 0.02, 0.1)


class Caller:
    """One client."""

    def __init__(self, name: str, mesh: Any) -> None:
        self.name = name
        self.mesh = mesh
        self.over = asyncio.Event()

    async def work(self) -> None:
        """Do one thing after another, some at a time, until `over`."""
        await asyncio.gather(*(self._thread(f"{self.name}-{number}") for number in range(THREADS)))

    async def _thread(self, client: str) -> None:
        dice = random.Random(client)
        count = 0
        while not self.over.is_set():
            count += 1
            await self._one(client, f"{client}-{count}", dice)
            await asyncio.sleep(dice.choice(PAUSES) * dice.random())

    async def _one(self, client: str, label: str, dice: random.Random) -> None:
        kind = dice.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
        match kind:
            case "pass":
                await self._tell(client, dice.choice(RING), f"pass {label} {dice.randint(1, 3)}")
            case "timer":
                await self._tell(client, dice.choice(COUNTERS), f"timer {label} 0.3")
            case "tell":
                await self._tell(client, dice.choice(IMMORTAL), f"add {label}")
            case "call":
                await self._ask(client, CHAIN[0], f"call {label} {len(CHAIN) - 1}")
            case "steps":
                await self._ask(client, dice.choice(IMMORTAL), f"steps {label} {dice.randint(1, 5)}")
            case "wait":
                await self._ask(client, CHAIN[1], f"wait {label} {CHAIN[2]} {dice.choice(COUNTERS)}")
            case "add":
                await self._ask(client, dice.choice((*IMMORTAL, *MORTAL)), f"add {label}")
            case "notify":
                await self._notify(client, dice.choice(IMMORTAL), label)
            case "start":
                agent = dice.choice(MORTAL)
                await self._do(client, kind, agent, label, lambda op: self.mesh.start_agent(agent, kind="Cell", timeout=20.0))
            case _:
                agent = dice.choice(MORTAL)
                await self._do(client, kind, agent, label, lambda op: self.mesh.stop(agent, timeout=20.0))

    async def _do(self, client: str, kind: str, agent: str, label: str, act: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
        op: dict[str, Any] = {"client": client, "kind": kind, "agent": agent, "label": label, "began": time.time()}
        try:
            await act(op)
        except MeshError as error:
            op["error"] = error.code
        print(json.dumps({**op, "ended": time.time()}), flush=True)

    async def _ask(self, client: str, agent: str, text: str) -> None:
        async def act(op: dict[str, Any]) -> None:
            try:
                outcome = await self.mesh.ask_outcome(agent, text, timeout=ASK_S, on_accepted=lambda ref: op.update(ref=ref))
            except AskTimeout:
                op["error"] = "ask_timeout"
            else:
                error = None if outcome.error is None else {"code": outcome.error.code, "message": outcome.error.message}
                op["outcome"] = {"agent": agent, "ref": outcome.ref, "ok": outcome.ok, "text": outcome.text, "error": error}

        await self._do(client, f"ask {text.split(maxsplit=1)[0]}", agent, text.split()[1], act)

    async def _tell(self, client: str, agent: str, text: str) -> None:
        async def act(op: dict[str, Any]) -> None:
            key: str | None = None
            for _ in range(TRIES):
                try:
                    op["ref"] = await self.mesh.tell(agent, text, idempotency_key=key, timeout=20.0)
                    return
                except Unavailable as error:
                    key = error.details.get("idempotency_key", key)
                    if key is None:
                        raise
            raise Unavailable("not confirmed")

        await self._do(client, f"tell {text.split(maxsplit=1)[0]}", agent, text.split()[1], act)

    async def _notify(self, client: str, agent: str, label: str) -> None:
        async def act(op: dict[str, Any]) -> None:
            await self.mesh.notify(agent, {"label": label}, timeout=20.0, idempotency_key=f"e-{label}")
            op["ref"] = "-"

        await self._do(client, "notify", agent, label, act)


async def prepare(mesh: Any) -> None:
    """Start the agents that live for ever."""
    for group, ring in ((RING, True), (CHAIN, False), (COUNTERS, True)):
        for index, name in enumerate(group):
            following = group[(index + 1) % len(group)] if ring or index + 1 < len(group) else ""
            await mesh.start_agent(name, kind="Cell", options={"next": following}, restart="permanent")


async def main(name: str, url: str, root: str) -> None:
    """Work until the standard input ends."""
    async with agentmesh_client.connect(url, root=root) as mesh:
        caller = Caller(name, mesh)
        work = asyncio.create_task(caller.work())
        await asyncio.to_thread(sys.stdin.read)
        caller.over.set()
        await work


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
