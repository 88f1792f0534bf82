"""The benchmarks run: every one of them, with tiny sizes. How fast anything is, no test says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cli, peer
from support import WHOLE_S

pytestmark = pytest.mark.processes

PROJECT = Path(__file__).parents[2]
TARGETS = 8
"""Figures that the design bounds, the one against FastStream apart."""


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--smoke", "--json", report],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    run = json.loads(report.read_text())
    assert run["smoke"] is True
    assert list(run["benchmarks"]) == [*cli.ON_ONE_SERVER, *cli.ON_THEIR_OWN]
    figures = [figure for figures in run["benchmarks"].values() for figure in figures]
    for figure in figures:
        assert figure["name"] in done.stdout
        assert figure["values"] and all(math.isfinite(v) and v > 0 for v in figure["values"]), figure
        assert len(figure["floors"]) == (len(figure["values"]) if figure["floor"] else 0), figure
    assert sum(figure["bound"] is not None for figure in figures) == TARGETS + peer.installed()
    assert any("FastStream" in (figure["floor"] or "") for figure in figures) == peer.installed()


def test_an_unknown_benchmark_is_wrong_use() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.bench", "speed"], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no such benchmark: speed" in done.stderr


def test_two_versions_are_compared() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.paired", PROJECT, "--smoke", "--rounds", "2"],
        cwd=PROJECT / "tests",
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "ask, one caller, p50", "asks/s, 8 callers, 8 agents", "the node's processor for each of them",
    ]  # fmt: skip
    assert all(row[5] == f"{PROJECT.name}, its node" for row in rows)


def test_roles_and_tenants_are_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.under_roles", "--smoke", "--rounds", "1"],
        cwd=PROJECT / "tests",
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for figure in ("ask, one caller, p50, under roles", "from another account, p50", "p99, while another floods the gateway"):
        assert figure in done.stdout
