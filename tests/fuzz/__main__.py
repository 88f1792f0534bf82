"""`python -m tests.fuzz --reader messages --seed 1 --streams 100000`: mutated streams against the readers of the backends.

Without `--reader` all of them, and `calls` and `chat-calls`: streams whose tool calls are known, cut off and ended as if they
were whole; and `typed`: whole turns of an agent whose answers have a type. One stream with `--show` is printed. See
recordings.py, mutations.py, readers.py and typed_turns.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

PART = 500
"""Streams that a worker tries at a time."""
NAMES = ("messages", "calls", "chat", "chat-calls", "responses", "claude", "codex", "typed")


def main() -> int:
    """Returns the exit code: 1 if a stream was a crash, or a call was made that had not been sent."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--reader", choices=NAMES, action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=100_000, help="for each reader")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", action="store_true", help="print the stream of the seed, and how it ends")
    given = parser.parse_args()
    names = given.reader or NAMES
    if given.show:
        return _show(names[0], given.seed)
    failed = False
    for name in names:
        failed = _all(name, given.seed, given.streams, given.jobs) or failed
    return 1 if failed else 0


def _all(name: str, first: int, count: int, jobs: int) -> bool:
    from fuzz.run import Report, run_part

    report = Report()
    parts = [(start, min(PART, first + count - start)) for start in range(first, first + count, PART)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for part in pool.imap_unordered(partial(run_part, name), parts):
            report.add(part)
    print("\n".join(report.lines(name)), flush=True)
    return bool(report.failures) or report.behind_first < count / 2


def _show(name: str, seed: int) -> int:
    from fuzz.run import run, stream_of

    recording, frames, names = stream_of(name, Random(f"{name} {seed}"))
    print(f"{recording.name}: {'+'.join(names)}")
    for frame in frames[:200]:
        print(frame)
    print("\n".join(run(name, seed, 1).lines(name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
