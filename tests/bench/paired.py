"""Two versions of a node beside each other: `python -m bench.paired OTHER`, where OTHER is a checkout of the other version.

Two runs of the benchmarks, one after the other, differ by more than most changes are worth: machines drift by a quarter within
minutes. Here both nodes are on one server, each under a root of its own, and the same caller's asks alternate between them.
Server, supervisors and caller are this checkout's; so it shows what a change to the node is worth, and none to the client.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from functools import partial
from pathlib import Path

import msgspec

from agentmesh_client import Mesh
from bench.cli import loop_factory
from bench.clock import ASK_S, Call, quantile, rate, side_by_side
from bench.figures import Figure
from bench.report import table
from bench.stage import FULL, SMOKE, Child, Sizes, Stage, single

HERE = Path(__file__).parents[2]
ROOTS = ("theirs", "ours")


class Side:
    """One version's node, and its agents as the caller asks them."""

    def __init__(self, mesh: Mesh, node: Child, callers: int) -> None:
        self.one: Call = partial(mesh.ask, "many.0", "hello", timeout=ASK_S)
        self.all: list[Call] = [partial(mesh.ask, f"many.{number}", "hello", timeout=ASK_S) for number in range(callers)]
        self._node = node

    @staticmethod
    async def of(stage: Stage, root: str, checkout: Path) -> Side:
        """Start the node of `checkout`."""
        mesh, callers = await stage.client(root), stage.sizes.callers
        await stage.supervisor(root)
        settings = msgspec.json.encode({"root": root, "node_id": "n1"}).decode()
        node = await stage.spawn(str(checkout / "tests/bench/host.py"), stage.url, settings, checkout=checkout)
        for number in range(callers):
            await mesh.start_agent(f"many.{number}", kind="Echo")
        return Side(mesh, node, callers)

    def cpu_s(self) -> float:
        """What the node has used of its processors so far (Linux)."""
        fields = Path(f"/proc/{self._node.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def asks(self, each: int) -> tuple[float, float]:
        """Asks a second by all callers at once, and microseconds of the node for each."""
        before = self.cpu_s()
        found = await rate(self.all, each)
        return found, (self.cpu_s() - before) * 1e6 / (len(self.all) * (each + 1))


async def compare(other: Path, sizes: Sizes) -> list[Figure]:
    """This checkout's node beside the one of `other`."""
    async with single(sizes) as stage:
        theirs, ours = [await Side.of(stage, root, where) for root, where in zip(ROOTS, (other, HERE), strict=True)]
        beside = f"{other.name or other}, its node"
        half = Figure(name="ask, one caller, p50", unit="ms", floor=beside)
        many = Figure(name=f"asks/s, {sizes.callers} callers, {sizes.callers} agents", unit="/s", floor=beside)
        spent = Figure(name="the node's processor for each of them", unit="us", floor=beside)
        for number in range(sizes.rounds):
            mine, floor = await side_by_side(ours.one, theirs.one, count=sizes.calls)
            half.add(quantile(mine, 0.5), quantile(floor, 0.5))
            order = (ours, theirs) if number % 2 else (theirs, ours)  # who comes first has the emptier streams
            found = {side: await side.asks(sizes.each) for side in order}
            many.add(found[ours][0], found[theirs][0])
            spent.add(max(found[ours][1], 1.0), max(found[theirs][1], 1.0))
        return [half, many, spent]


def main() -> int:
    """Compare with the checkout that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.paired", description="Compare this checkout's node with another's.")
    parser.add_argument("other", type=Path, help="a checkout of the other version: git worktree add /tmp/other main")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: proves that it runs, and nothing else")
    options = parser.parse_args()
    sizes = msgspec.structs.replace(SMOKE if options.smoke else FULL, rounds=max(1, options.rounds))
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        print(table({"paired": runner.run(compare(options.other.resolve(), sizes))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
