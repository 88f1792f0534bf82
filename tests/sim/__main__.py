"""`python -m tests.sim --seed N [--seeds M] [--minutes X]`: run seeds; with one seed and `--trace`, step by step."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Returns the exit code: 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="the whole mesh in one deterministic event loop")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=None, help="how many; by default one, or as many as the minutes allow")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time")
    parser.add_argument("--seconds", type=float, default=25.0, help="virtual seconds of faults and load in each run")
    parser.add_argument("--faults", default=None, help="only these kinds of fault, joined by commas; 'none' for a calm run")
    parser.add_argument("--trace", action="store_true", help="show every message and every fault")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    options = parser.parse_args()
    from sim.run import quiet, run_seed

    quiet()
    kinds = None if options.faults is None else tuple(kind for kind in options.faults.split(",") if kind != "none")
    seeds = range(options.seed, options.seed + options.seeds) if options.seeds else itertools.count(options.seed)
    if options.seeds is None and options.minutes is None:
        seeds = range(options.seed, options.seed + 1)
    began, count, failed, virtual = time.monotonic(), 0, [], 0.0
    for seed in seeds:
        if options.minutes is not None and time.monotonic() - began > 60 * options.minutes:
            break
        verdict = run_seed(seed, kinds=kinds, seconds=options.seconds, trace=print if options.trace else None)
        count += 1
        virtual += verdict.virtual_s
        if options.verbose or verdict.wrong:
            print(verdict.line(), flush=True)
        if verdict.wrong:
            failed.append(seed)
            for line in (*verdict.faults, *verdict.wrong):
                print(f"    {line}", flush=True)
    spent = time.monotonic() - began
    head = f"{count} seeds from {options.seed}: {len(failed)} failed {failed or ''}"
    print(f"{head}; {virtual / 60:.0f} virtual minutes in {spent:.0f} s")
    for seed in failed:
        print(f"    replay: make sim SEED={seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names are iterated in the order of their hashes: a seed repeats its run only where these are fixed.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
