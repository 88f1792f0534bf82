"""`python -m tests.sim --seed N [--seeds M] [--minutes X]`: run seeds on all cores; one with `--trace` step by step.

With `--crash` instead: let a node die at each of its calls (see crash_points.py).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.run import Verdict

ROOT = Path(__file__).parents[2]
LIFE = 40
"""Seeds that a worker runs before another process takes its place: it never frees what they leave behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the `arguments` say, by default those of this process.

    Returns: the exit code, 1 if a seed failed.
    """
    options = _parser().parse_args(arguments)
    if options.crash is not None:
        return _crash(options)
    kinds = None if options.faults is None else tuple(kind for kind in options.faults.split(",") if kind != "none")
    seeds: Iterable[int] = itertools.count(options.seed)
    if options.seeds or options.minutes is None:
        seeds = range(options.seed, options.seed + (options.seeds or 1))
    began = time.monotonic()
    deadline = None if options.minutes is None else began + 60 * options.minutes
    count, failed, virtual, seen, counts = 0, [], 0.0, Counter[str](), Counter[str]()
    for verdict in _verdicts(seeds, deadline, options, kinds):
        count += 1
        virtual += verdict.virtual_s
        seen.update(verdict.kinds)
        counts.update(verdict.counts)
        if options.verbose or verdict.wrong:
            print(verdict.line(), flush=True)
        if verdict.wrong:
            failed.append(verdict.seed)
            for line in (*verdict.faults, *verdict.wrong):
                print(f"    {line}", flush=True)
    spent = time.monotonic() - began
    if options.verbose:
        print("runs with each kind of fault: " + ", ".join(f"{kind} {number}" for kind, number in sorted(seen.items())))
    if counts:
        print(", ".join(f"{number} {what}" for what, number in counts.items()))
    rate = f"{60 * count / spent:.0f} seeds a minute on {options.jobs} cores"
    print(f"{count} seeds from {options.seed}: {len(failed)} failed {sorted(failed) or ''}; ", end="")
    print(f"{virtual / 60:.0f} virtual minutes in {spent:.0f} s, {rate}")
    for seed in sorted(failed):
        print(f"    replay: make sim SEED={seed} ARGS=--trace")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="the whole mesh in one deterministic event loop")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=None, help="how many; by default one, or as many as the minutes allow")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after this time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; by default one for each core")
    parser.add_argument("--seconds", type=float, default=None, help="virtual seconds of faults and load; by default the seed's")
    parser.add_argument("--faults", default=None, help="only these kinds of fault, joined by commas; 'none' for a calm run")
    parser.add_argument("--loss", action="store_true", help="instead of faults, a store that is put back to an earlier state")
    parser.add_argument("--foreign", type=int, default=0, help="instead of faults, so many messages of strangers in each run")
    parser.add_argument("--unreadable", type=int, default=0, help="instead of faults, so many records that nobody can read")
    parser.add_argument("--crash", default=None, help="a script whose node is to die at each call, or one call: waits:17:after")
    parser.add_argument("--part", default="1/1", help="with --crash: only this part of the calls, as 1/4")
    parser.add_argument("--trace", action="store_true", help="show every message and every fault")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    return parser


def _crash(options: argparse.Namespace) -> int:
    from sim.crash_points import run
    from sim.run import quiet

    quiet()
    gc.freeze()  # what is imported is shared with all copies
    return run(options.crash, options.part, options.jobs, print if options.trace else None)


def _kind_of_run(options: argparse.Namespace) -> Callable[..., Verdict]:
    from sim.loss import run_loss
    from sim.run import run_seed
    from sim.strangers import run_foreign, run_unreadable

    if options.foreign or options.unreadable:
        return partial(run_foreign if options.foreign else run_unreadable, count=options.foreign or options.unreadable)
    return run_loss if options.loss else run_seed


def _verdicts(
    seeds: Iterable[int], deadline: float | None, options: argparse.Namespace, kinds: tuple[str, ...] | None
) -> Iterator[Verdict]:
    """A verdict for each seed, as they come; no run begins behind the deadline."""
    from sim.run import attempt, quiet

    quiet()
    timely = itertools.takewhile(lambda _: deadline is None or time.monotonic() < deadline, seeds)
    run = partial(attempt, _kind_of_run(options), kinds=kinds, seconds=options.seconds)
    if options.trace or options.jobs == 1 or seeds in (range(options.seed, options.seed + 1),):
        yield from (run(seed, trace=print if options.trace else None) for seed in timely)
        return
    gc.freeze()  # what is imported is shared with all workers
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=LIFE) as pool:
        # A pool takes all its work at once; with a deadline it is given little, and some cores wait for the others in between.
        batches = [timely] if deadline is None else itertools.batched(timely, LIFE * options.jobs)
        for batch in batches:
            yield from pool.imap_unordered(partial(run, collect=False), batch)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names are iterated in the order of their hashes: a seed repeats its run only where these are fixed.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
