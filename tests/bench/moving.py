"""A node that is drained while its agents are in turns of many steps: `make bench-failover ARGS=moving`.

Of each round are printed: the time from SIGTERM to the end of the process, the longest pause that a reader of a turn's events saw
(one call of the turn takes `CALL_S` of that), and how many calls were made again. With `--other DIR` each round is made with the
nodes and supervisors of another checkout too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

from agentmesh_client import Mesh
from agentmesh_client.streaming import Ended, Text
from bench.failover_agents import CALL_S, RUNS, STEPS

PATIENCE_S = 120.0
NODES = ("n1", "n2", "n3")
BEGUN = 3
"""Calls of each turn before the node is told to end."""

type Staged = Callable[..., AbstractAsyncContextManager[Any]]


class Round(NamedTuple):
    """What one drain came to."""

    exit_s: float
    pause_s: float
    again: int
    failed: int


def code_of(tree: Path | None) -> dict[str, str]:
    """The environment of processes that run the code of a checkout; None: of this one."""
    return {} if tree is None else {"PYTHONPATH": os.pathsep.join(str(tree / part) for part in ("mesh", "node", "client"))}


async def moving(stage: Staged, busy: int, rounds: int, other: Path | None) -> None:
    """Print the figures of both builds, or of this one."""
    print(f"drain of a node with {busy} turns of {STEPS} steps open; one call takes {1000 * CALL_S:.0f} ms; ms, min median max")
    print(f"{'build':8} {'to its exit':>26}   {'longest pause of a stream':>26}   calls made again  errors")
    found: dict[str, list[Round]] = {}
    for _ in range(rounds):
        for name, tree in (("this", None), *((("other", other),) if other is not None else ())):
            found.setdefault(name, []).append(await _round(stage, busy, tree))
    for name, made in found.items():
        ends, pauses = ([1000 * getattr(one, what) for one in made] for what in ("exit_s", "pause_s"))
        again, failed = (sum(getattr(one, what) for one in made) for what in ("again", "failed"))
        print(f"{name:8} {_spread(ends):>26}   {_spread(pauses):>26}   {again:16}  {failed:6}", flush=True)


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):8.0f} {statistics.median(values):8.0f} {max(values):8.0f}"


async def _round(stage: Staged, busy: int, tree: Path | None) -> Round:
    async with stage(clustered=False, nodes=("n1",), env=code_of(tree)) as it:
        names = [f"w{number}" for number in range(busy)]
        runs = it.logs / RUNS
        await asyncio.gather(*(it.mesh.start_agent(name, kind="Walker", timeout=PATIENCE_S) for name in names))
        readers = [_Reader(it.mesh, name) for name in names]
        reading = [asyncio.create_task(reader.read()) for reader in readers]
        async with asyncio.timeout(PATIENCE_S):
            while min(reader.count for reader in readers) < BEGUN:  # noqa: ASYNC110 - the readers run beside it
                await asyncio.sleep(0.02)
        for own_id in NODES[1:]:
            await it.start_node(own_id, code_of(tree))
        for reader in readers:
            reader.longest_s = 0.0  # what came before has nothing to do with the drain
        began = time.monotonic()
        it.processes["n1"].signal(signal.SIGTERM)
        await it.processes["n1"].ended()
        exit_s = time.monotonic() - began
        await asyncio.gather(*reading)
        made = Counter(runs.read_text().splitlines())
        again = made.total() - len(made)
        return Round(exit_s, max(reader.longest_s for reader in readers), again, sum(not reader.ok for reader in readers))


class _Reader:
    """Watches one turn."""

    def __init__(self, mesh: Mesh, agent: str) -> None:
        self._mesh = mesh
        self._agent = agent
        self.count = 0
        self.longest_s = 0.0
        self.ok = False

    async def read(self) -> None:
        last = None
        async with self._mesh.stream(self._agent, f"walk {self._agent}", timeout=PATIENCE_S) as turn:
            async for event in turn:
                if isinstance(event, Text | Ended):
                    now = time.monotonic()
                    self.longest_s = max(self.longest_s, now - last) if last is not None else 0.0
                    last = now
                    self.count += 1
                if isinstance(event, Ended):
                    self.ok = event.outcome.ok
