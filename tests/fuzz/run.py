"""Runs of the fuzz: a stream for each seed, its end, and what all ends were."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
import time
from collections import Counter
from random import Random
from typing import NamedTuple

from fuzz import cut_calls, mutations
from fuzz.readers import READERS
from fuzz.recordings import Recording, recordings
from fuzz.typed_turns import answer_of_model, typed

CALLS = {"calls": "messages", "chat-calls": "chat"}
"""Readers that are tried with calls that are cut, and the reader that they are."""
PATIENCE_S = 150.0
"""How long one stream may take: none waits for anything, so it takes milliseconds."""


class Failure(NamedTuple):
    seed: int
    recording: str
    what: str


class Report:
    """All ends of some streams."""

    def __init__(self) -> None:
        self.count = 0
        self.behind_first = 0
        self.reasons: Counter[str] = Counter()
        self.mutations: Counter[str] = Counter()
        self.longest = (0.0, 0)
        """Seconds of the longest stream, and its seed."""
        self.failures: list[Failure] = []
        self.memory_mb = 0.0

    def add(self, other: Report) -> None:
        self.count += other.count
        self.behind_first += other.behind_first
        self.reasons += other.reasons
        self.mutations += other.mutations
        self.longest = max(self.longest, other.longest)
        self.failures += other.failures
        self.memory_mb = max(self.memory_mb, other.memory_mb)

    def lines(self, name: str) -> list[str]:
        """The report in words."""
        share = 100 * self.behind_first / max(1, self.count)
        ends = ", ".join(f"{reason} {number}" for reason, number in self.reasons.most_common())
        seconds, seed = self.longest
        return [
            f"{name}: {self.count} streams, {len(self.failures)} failed; {share:.0f} % got behind their first event",
            f"    ended as: {ends}",
            f"    the longest took {1000 * seconds:.0f} ms (seed {seed}); at most {self.memory_mb:.0f} MB",
            *(f"    seed {failure.seed} ({failure.recording}): {failure.what}" for failure in self.failures[:20]),
        ]


def run(reader: str, first: int, count: int) -> Report:
    """Try the streams of the seeds from `first` on with a reader; those of `CALLS` with cut calls."""
    report = Report()
    asyncio.run(_run(reader, first, count, report))
    report.memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
    return report


def run_part(reader: str, part: tuple[int, int]) -> Report:
    """As `run`, for a pool of processes."""
    return run(reader, *part)


async def _run(reader: str, first: int, count: int, report: Report) -> None:
    logging.disable()  # what goes wrong is said once for each stream
    await _stream(reader, 0, Random(f"{reader} {first}"), Report())  # imports what it needs
    for seed in range(first, first + count):
        random = Random(f"{reader} {seed}")
        began = time.perf_counter()
        await _stream(reader, seed, random, report)
        report.count += 1
        report.longest = max(report.longest, (time.perf_counter() - began, seed))
    logging.disable(logging.NOTSET)


async def _stream(reader: str, seed: int, random: Random, report: Report) -> None:
    recording, frames, names = stream_of(reader, random)
    report.mutations.update(names)
    read = typed if reader == "typed" else READERS[CALLS.get(reader, reader)]
    try:
        async with asyncio.timeout(PATIENCE_S):
            ended = await read(list(mutations.chunks(frames, random)), random)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        report.failures.append(Failure(seed, recording.name, f"{'+'.join(names)}: {type(error).__name__}: {error}"[:300]))
        return
    report.reasons[ended.reason] += 1
    report.behind_first += ended.behind_first
    problem = cut_calls.wrong(recording, frames, ended.calls) if reader in CALLS else None
    if problem is not None:
        report.failures.append(Failure(seed, recording.name, problem[:300]))


def stream_of(reader: str, random: Random) -> tuple[Recording, list[bytes], list[str]]:
    """A recording, its frames after mutations, and the names of these."""
    if reader in CALLS:
        recording = random.choice([found for found in recordings(CALLS[reader]) if found.calls])
        return recording, cut_calls.forged(recording, random), ["forged"]
    if reader == "typed":
        return answer_of_model(random)
    recording = random.choice(recordings(reader))
    return recording, *mutations.mutated(recording, random)
