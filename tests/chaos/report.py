"""What is printed and saved of a run."""

from __future__ import annotations

import gzip
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from chaos.schedule import Fault
from judge.evidence import Evidence


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was recorded of a run: what the judge read, and what had been done to the mesh."""

    seed: int
    seconds: float
    faults: list[Fault]
    notes: list[str]
    wrong: list[str]
    evidence: Evidence


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How one seed ended."""

    seed: int
    seconds: float
    """How long things went wrong."""
    took: float
    """Seconds of the whole run."""
    calm_after: float
    """Seconds from the last fault until everything was done."""
    faults: Mapping[str, int]
    history: History

    @property
    def wrong(self) -> Sequence[str]:
        """What is wrong; nothing, if all is well."""
        return self.history.wrong


def save(history: History, path: Path) -> None:
    """Write a history, to be judged again with `--judge`."""
    with gzip.open(path, "wb") as file:
        file.write(msgspec.json.encode(history))


def load(path: Path) -> History:
    """Read a saved history."""
    with gzip.open(path, "rb") as file:
        return msgspec.json.decode(file.read(), type=History)


def summary(result: Result, answered: Mapping[tuple[str, str], float]) -> list[str]:
    """The lines at the end of a run. `answered`: when each request got its outcome."""
    evidence = result.history.evidence
    operations = evidence.operations
    done = Counter(op.kind for op in operations)
    errors = Counter(op.error for op in operations if op.error is not None)
    waits = sorted(answered[op.agent, op.ref] - op.began for op in operations if op.ref and (op.agent, op.ref) in answered)
    records = sum(len(records) for records in evidence.journals.values())
    owners = sum(record.kind == "activated" for records in evidence.journals.values() for _, record in records)
    lines = [
        f"operations: {len(operations)} ({_counted(done)})",
        f"refused or given up by their callers: {errors.total()} ({_counted(errors)})",
        f"faults:     {sum(result.faults.values())} ({_counted(result.faults)})",
        f"recorded:   {len(evidence.letters)} messages, {len(evidence.results)} outcomes, "
        f"{records} records of {len(evidence.journals)} agents under {owners} owners",
    ]
    if waits:
        figures = f"min {waits[0]:.3f} s, median {statistics.median(waits):.3f} s, max {waits[-1]:.1f} s"
        lines.append(f"call to outcome: {figures}, of {len(waits)} requests")
    lines.append(f"everything done {result.calm_after:.1f} s after the last fault; {result.took:.0f} s in all")
    lines += [f"WRONG: {line}" for line in result.wrong[:40]]
    if len(result.wrong) > 40:
        lines.append(f"WRONG: and {len(result.wrong) - 40} more")
    return lines


def _counted(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"
