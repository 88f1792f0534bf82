"""A history is judged again from its file, and what is wrong with it is found again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from agentmesh.records import Change, Record
from agentmesh.wire import Outcome
from chaos.report import History, load, save
from chaos.schedule import schedule
from judge.evidence import Evidence, Letter, Operation, State

ROOT = Path(__file__).parents[2]


def _history() -> History:
    who = {"id": "r", "at": 0.0, "incarnation": "i1", "epoch": 1, "generation": 5, "node": "n1", "boot": "b1"}
    state = Raw(msgspec.json.encode(State(count=1, log=["prompt|-|L1"])))
    records = [msgspec.convert({"kind": kind, **who}, Record) for kind in ("activated", "turn", "rest")]
    records[1] = msgspec.structs.replace(records[1], change=Change(state=state))
    outcome = Outcome(agent="k0", ref="1", ok=True, text="add L1")
    evidence = Evidence(
        [Operation("c0-0", "add", "k0", "L1", 0.0, 1.0, "1", outcome)],
        [Letter(1, "inbox", "k0", "add L1", "L1", {})],
        {"k0": list(enumerate(records, 1))},
        [outcome],
        [outcome],
    )
    return History(seed=1, seconds=9.0, faults=schedule(1, 9.0), notes=["a note"], wrong=[], evidence=evidence)


def _judged(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.chaos", "--judge", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.processes
def test_a_saved_history_is_the_same_and_is_judged_the_same(tmp_path: Path) -> None:
    history = _history()
    save(history, tmp_path / "good.gz")
    assert msgspec.json.encode(load(tmp_path / "good.gz")) == msgspec.json.encode(history)
    good = _judged(tmp_path / "good.gz")
    assert (good.returncode, "seed 1: ok" in good.stdout) == (0, True), good.stdout + good.stderr
    lost = msgspec.structs.replace(history.evidence, results=[])
    save(msgspec.structs.replace(history, evidence=lost), tmp_path / "bad.gz")
    bad = _judged(tmp_path / "bad.gz")
    assert (bad.returncode, "has no outcome" in bad.stdout) == (1, True), bad.stdout + bad.stderr
