"""Two versions of a node beside each other: `python -m bench.paired OTHER`, where OTHER is a checkout of the other version.

Two runs of the benchmarks, one after the other, differ by more than most changes are worth: machines drift by a quarter within
minutes. Here both nodes are on one server, each under a root of its own, and the same caller's asks alternate between them. Two
processes of the very same code differ too, by up to six percent for as long as they live (where their memory lies, how their
dicts hash), so each round has new ones: what all rounds agree on is the change.
Server, supervisors and caller are this checkout's; so it shows what a change to the node is worth, and none to the client.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.cli import loop_factory
from bench.clock import quantile, side_by_side
from bench.figures import Figure
from bench.report import table
from bench.side import SLICE, Side
from bench.stage import FULL, SMOKE, Sizes, single

HERE = Path(__file__).parents[2]
ROOTS = ("theirs", "ours")


async def compare(other: Path, sizes: Sizes, settings: Mapping[str, object]) -> list[Figure]:
    """This checkout's node, with `settings`, beside the one of `other`."""
    beside = f"{other.name or other}, its node"
    half = Figure(name="ask, one caller, p50", unit="ms", floor=beside)
    many = Figure(name=f"asks/s, {sizes.callers} callers, {sizes.callers} agents", unit="/s", floor=beside)
    spent = Figure(name="the node's processor for each of them", unit="us", floor=beside)
    for number in range(sizes.rounds):
        async with single(sizes) as stage:
            order = slice(None, None, -1 if number % 2 else 1)  # whose processes are older changes, too
            both = [*zip(ROOTS, (other, HERE), ({}, settings), strict=True)][order]
            sides = {root: await Side.of(stage, root, where, own) for root, where, own in both}
            theirs, ours = (sides[root] for root in ROOTS)
            mine, floor = await side_by_side(ours.one, theirs.one, count=sizes.calls)
            half.add(quantile(mine, 0.5), quantile(floor, 0.5))
            for turn in range(max(2, sizes.each // SLICE)):
                for side in (ours, theirs) if turn % 2 else (theirs, ours):
                    await side.ask_all(min(SLICE, sizes.each))
            many.add(ours.rate, theirs.rate)
            spent.add(ours.cpu_us, theirs.cpu_us)
    return [half, many, spent]


def main() -> int:
    """Compare with the checkout that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.paired", description="Compare this checkout's node with another's.")
    parser.add_argument("other", type=Path, help="a checkout of the other version: git worktree add /tmp/other main")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--settings", default="{}", help='of this checkout\'s node, as JSON: {"trace_facts": "all"}')
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: proves that it runs, and nothing else")
    options = parser.parse_args()
    sizes = msgspec.structs.replace(SMOKE if options.smoke else FULL, rounds=max(1, options.rounds))
    settings = msgspec.json.decode(options.settings, type=dict[str, object])
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        print(table({"paired": runner.run(compare(options.other.resolve(), sizes, settings))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
