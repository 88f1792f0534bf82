"""How `mesh owes` shows waits and circles to people."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from agentmesh.wire import ErrorBody
from agentmesh_client import WaitCircle, WaitEntry, WaitGraph
from agentmesh_client.cli.owes import text_of

NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)


def after(**delta: float) -> dt.datetime:
    return NOW + dt.timedelta(**delta)


def wait(waiter: str | None, agent: str, **fields: Any) -> WaitEntry:
    return WaitEntry(**{"waiter": waiter, "agent": agent, "kind": "tag", "stage": "queued", "state": "idle", **fields})


def test_a_wait_is_a_line() -> None:
    reason = ErrorBody(code="failed", message="crashed 6 times")
    entries = (
        wait(None, "boss", kind="ask", stage="running", state="running", ref="7", since=after(minutes=-5), node="n1"),
        wait(
            "boss", "desk", ref="9", request="7", since=after(hours=-2), deadline=after(minutes=-1), state="failed", reason=reason
        ),
        wait("boss", "lost", stage="sent", state="no_agent", deadline=after(hours=3)),
        wait(None, "desk", kind="tell", stage="deferred", exclusive=True, state="running", reason=reason, node="n2"),
    )
    head, *rows = text_of(WaitGraph(waits=entries), NOW).splitlines()
    assert head.split() == ["WAITS", "FOR", "KIND", "STAGE", "SINCE", "ENDS", "REF", "BEHALF", "STATE", "REASON"]
    assert [row.split() for row in rows] == [
        ["client", "boss", "ask", "running", "5m", "-", "7", "-", "running", "on", "n1", "-"],
        ["boss", "desk", "tag", "queued", "2h", "1m", "ago", "9", "7", "failed", "failed:", "crashed", "6", "times"],
        ["boss", "lost", "tag", "sent", "-", "in", "3h", "-", "-", "no", "agent", "-"],
        ["client", "desk", "tell", "deferred,", "exclusive", "-", "-", "-", "-", "running", "on", "n2", "-"],
    ]


@pytest.mark.parametrize(
    ("circle", "line"),
    [
        (WaitCircle(agents=("a", "b"), blocked=False), "circle: a -> b -> a; they can still answer"),
        (
            WaitCircle(agents=("a",), blocked=True, deadline=after(minutes=9), others=("b", "c")),
            "circle: a -> a; none of them can go on; the first of these waits ends in 9m; in circles with them: b, c",
        ),
    ],
)
def test_a_circle_is_a_line_below_the_waits(circle: WaitCircle, line: str) -> None:
    assert text_of(WaitGraph(waits=(wait("a", "b"),), circles=(circle,)), NOW).splitlines()[-2:] == ["", line]
