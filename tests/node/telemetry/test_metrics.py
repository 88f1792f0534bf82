"""What a node's metrics count (those of what turns spend: `tests/node/turns/test_budget_meter.py`)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agentmesh_node.telemetry.metrics import SAY_S, DroppedNews


class Counter:
    def __init__(self) -> None:
        self.added: list[tuple[int, dict[str, str]]] = []

    def add(self, amount: int, attributes: dict[str, str]) -> None:
        self.added.append((amount, attributes))


@pytest.mark.case(470)
def test_what_is_dropped_is_a_metric_and_a_line_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    counter, now = Counter(), [0.0]
    meter = cast("Any", type("Meter", (), {"create_counter": lambda *_: counter}))()
    dropped = DroppedNews("n1", lambda: now[0], meter)
    for at, total in ((0.0, 0), (1.0, 5), (2.0, 7), (1.0 + SAY_S, 7), (200.0, 7), (201.0, 8)):
        now[0] = at
        dropped.seen(total)
    assert counter.added == [(5, {"mesh.node": "n1"}), (2, {"mesh.node": "n1"}), (1, {"mesh.node": "n1"})]
    assert [cast("Any", record).count for record in caplog.records] == [5, 2, 1]
