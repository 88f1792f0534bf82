"""A short run of the real thing: three servers, two supervisors, four nodes, and half a minute of everything going wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.run import WEIGHTS, run_seed
from support import run

SEED = 9
STORM_S = 20.0
PATIENCE_S = 150.0
WHOLE_S = 330.0
# What is sent to an agent that has ended is given up only when the duplicate window is over: two minutes.
_WEIGHTS = {kind: weight for kind, weight in WEIGHTS.items() if kind not in ("spawn", "halt", "flaky")}


@pytest.mark.slow
@pytest.mark.case(201)
@pytest.mark.case(204)
@pytest.mark.case(206)
def test_nothing_is_lost_and_nothing_happens_twice(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run(run_seed(SEED, STORM_S, tmp_path, lines.append, weights=_WEIGHTS, patience=PATIENCE_S), timeout=WHOLE_S)
    assert not result.wrong, "\n".join(lines)
    # It was a storm, and there was work in it.
    assert {"kill node", "cut node"} <= result.faults.keys(), result.faults
    assert any(kind.endswith("server") for kind in result.faults), result.faults
    assert len(result.history.evidence.results) > 50
