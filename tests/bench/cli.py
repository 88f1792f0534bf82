"""Which benchmarks there are, and a run of some or all of them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from bench import asks, between, clustered, crowd, lives, owing, peer, report, room, takeover, traced
from bench.figures import Figure
from bench.stage import FULL, SMOKE, Sizes, Stage, single

type OnOneServer = Callable[[Stage], Awaitable[list[Figure]]]
type OnItsOwn = Callable[[Sizes], Awaitable[list[Figure]]]

ON_ONE_SERVER: dict[str, OnOneServer] = {
    "ask": asks.one_caller,
    "asks": asks.many_callers,
    "ring": between.ring,
    "fan": between.fan,
    "start": lives.start,
    "cold": lives.cold,
    "crowd": crowd.crowds,
    "state": crowd.states,
    "journal": room.journal,
    "memory": room.memory,
    "owes": owing.owing,
    "tracing": traced.tracing,
}
ON_THEIR_OWN: dict[str, OnItsOwn] = {"cluster": clustered.replicated, "failover": takeover.killed}
"""Benchmarks that set up their own servers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for. The exit code says nothing about speed."""
    names = [*ON_ONE_SERVER, *ON_THEIR_OWN]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the mesh beside its floors.")
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"any of: {', '.join(names)}; default: all")
    parser.add_argument("--rounds", type=int, help=f"rounds of each (default: {FULL.rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's values there")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: proves that the benchmarks run, and nothing else")
    options = parser.parse_args(arguments)
    unknown = set(options.benchmarks) - set(names)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    sizes = SMOKE if options.smoke else FULL
    if options.rounds is not None:
        sizes = msgspec.structs.replace(sizes, rounds=max(options.rounds, 1))
    where = report.machine()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        results = runner.run(run([n for n in names if not options.benchmarks or n in options.benchmarks], sizes))
    where.load_after = report.load()
    print(report.table(results, verdicts=not options.smoke))
    if options.json is not None:
        options.json.write_bytes(report.as_json(where, results, smoke=options.smoke))
    return 0


async def run(names: Sequence[str], sizes: Sizes) -> dict[str, list[Figure]]:
    """Run benchmarks one after another, those of one server on one."""
    results = {}
    if not peer.installed():
        _say("FastStream is not installed: pip install -e '.[bench]' measures it too")
    together = [name for name in names if name in ON_ONE_SERVER]
    if together:
        async with single(sizes) as stage:
            for name in together:
                results[name] = await _timed(name, ON_ONE_SERVER[name](stage))
    for name in names:
        if name in ON_THEIR_OWN:
            results[name] = await _timed(name, ON_THEIR_OWN[name](sizes))
    return results


async def _timed(name: str, work: Awaitable[list[Figure]]) -> list[Figure]:
    began = time.perf_counter()
    figures = await work
    _say(f"{name}: {time.perf_counter() - began:.0f} s")
    return figures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes uvloop's loops where it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None
