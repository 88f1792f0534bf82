"""A node whose agents a benchmark asks in turns with those of others on the same server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from agentmesh_client import Mesh
from bench.clock import ASK_S, Call, rate
from bench.stage import Child, Stage

SLICE = 10
"""Asks of each caller in a row, before the other version has its turn."""


class Side:
    """One version's node, and its agents as the caller asks them."""

    def __init__(self, mesh: Mesh, node: Child, callers: int) -> None:
        self.one: Call = partial(mesh.ask, "many.0", "hello", timeout=ASK_S)
        self.all: list[Call] = [partial(mesh.ask, f"many.{number}", "hello", timeout=ASK_S) for number in range(callers)]
        self.asks = 0
        self.seconds = 0.0
        self.cpu_s = 0.0
        """What the node used of its processors for those asks."""
        self._cpu_clock = ~node.pid << 3 | 2  # as clock_getcpuclockid(3) makes it (Linux)

    @staticmethod
    async def of(stage: Stage, root: str, checkout: Path, own: Mapping[str, object]) -> Side:
        """Start the node of `checkout`, with settings of its own."""
        mesh, callers = await stage.client(root), stage.sizes.callers
        await stage.supervisor(root)
        settings = msgspec.json.encode({"root": root, "node_id": "n1", **own}).decode()
        node = await stage.spawn(str(checkout / "tests/bench/host.py"), stage.url_as("node"), settings, checkout=checkout)
        return await Side.begun(mesh, node, callers)

    @staticmethod
    async def begun(mesh: Mesh, node: Child, callers: int) -> Side:
        """Start the agents on `node`, the only one of its mesh."""
        for number in range(callers):
            await mesh.start_agent(f"many.{number}", kind="Echo")
        return Side(mesh, node, callers)

    async def ask_all(self, each: int) -> None:
        """All callers ask, and what that takes is added up."""
        count = len(self.all) * each
        before = time.clock_gettime(self._cpu_clock)
        self.seconds += count / await rate(self.all, each)
        spent = time.clock_gettime(self._cpu_clock) - before
        self.cpu_s += spent * each / (each + 1)  # one ask of each caller comes before the clock starts
        self.asks += count

    @property
    def rate(self) -> float:
        """Asks a second."""
        return self.asks / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of the node's processors for an ask."""
        return self.cpu_s / self.asks * 1e6
