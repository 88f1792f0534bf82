"""`python -m tests.chaos --seed N [--seeds M] [--minutes X]`: run seeds, each for so long. See docs/chaos.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Returns the exit code: 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="a mesh of processes, and everything that can die")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after another")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long things go wrong in each run")
    parser.add_argument("--out", type=Path, default=None, help="where histories of failed runs go; by default a new directory")
    parser.add_argument("--keep", action="store_true", help="save the history of runs that went well too")
    parser.add_argument("--schedule", action="store_true", help="only print what would go wrong, and when")
    parser.add_argument("--judge", type=Path, default=None, metavar="FILE", help="judge a saved history again")
    options = parser.parse_args()
    if options.judge is not None:
        return _judge(options.judge)
    seeds = range(options.seed, options.seed + options.seeds)
    if options.schedule:
        return _schedule(seeds, 60 * options.minutes)
    out = options.out or Path(tempfile.mkdtemp(prefix="mesh-chaos-"))
    failed = [seed for seed in seeds if not _run(seed, 60 * options.minutes, out, keep=options.keep)]
    print(f"{len(seeds)} seeds, {options.minutes:g} minutes each: {len(failed)} failed {failed or ''}", flush=True)
    if not failed and not options.keep and options.out is None:
        shutil.rmtree(out)
    return 1 if failed else 0


def _run(seed: int, seconds: float, out: Path, *, keep: bool) -> bool:
    """Whether the seed went well."""
    from chaos.report import save
    from chaos.run import run_seed

    logs = out / f"logs-{seed}"
    logs.mkdir(parents=True, exist_ok=True)
    print(f"--- seed {seed}, {seconds:.0f} s", flush=True)
    with asyncio.Runner(loop_factory=_loop()) as runner:
        result = runner.run(run_seed(seed, seconds, logs, lambda line: print(line, flush=True)))
    verdict = f"seed {seed}: {'FAILED' if result.wrong else 'ok'}"
    print(verdict, flush=True)
    if result.wrong or keep:
        path = out / f"chaos-{seed}.json.gz"
        save(result.history, path)
        print(f"    history: {path}\n    logs:    {logs}")
        print(f"    judge it again: python -m tests.chaos --judge {path}")
        print(f"    the same schedule again: make chaos SEED={seed} MINUTES={seconds / 60:g}", flush=True)
    return not result.wrong


def _loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with contextlib.suppress(ImportError):
        import uvloop

        return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
    return None


def _schedule(seeds: range, seconds: float) -> int:
    from chaos.schedule import schedule

    for seed in seeds:
        print(f"--- seed {seed}, {seconds:.0f} s")
        for fault in schedule(seed, seconds):
            print(f"{fault.at:8.2f} s  {fault.line()}")
    return 0


def _judge(path: Path) -> int:
    from chaos.report import load
    from judge.moves import moved_wrongly
    from judge.verdict import judge
    from sim.workload import IMMORTAL

    history = load(path)
    print(*history.notes, sep="\n")
    wrong = [*judge(history.evidence, IMMORTAL), *moved_wrongly(history.evidence)]
    print(*(f"WRONG: {line}" for line in wrong), sep="\n")
    print(f"seed {history.seed}: {'FAILED' if wrong else 'ok'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
