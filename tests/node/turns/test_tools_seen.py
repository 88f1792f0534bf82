"""The tools that a turn's events tell of."""

from __future__ import annotations

from agentmesh.backend import Event
from agentmesh.tool_runs import ToolRun
from agentmesh_node.turns import tools_seen
from agentmesh_node.turns.tools_seen import ToolsSeen


def use(id: str, name: str = "pay") -> Event:
    return Event("tool_use", {"id": id, "name": name, "input": {"n": 1}})


def test_calls_and_their_ends_are_noted() -> None:
    seen = ToolsSeen()
    for event in (
        Event.text("hm"),
        use("1"),
        use("2", "look"),
        Event("tool_result", {"id": "1", "ok": True, "text": "paid"}),
        use("3"),
        Event("tool_result", {"id": "3", "ok": False, "text": "late", "error": "timeout"}),
        Event("tool_result", {"id": "3", "ok": False, "text": "later"}),
        Event("tool_result", {"id": "7", "ok": True, "text": "of no call"}),
    ):
        seen.observe(event)
    assert seen.runs == (
        ToolRun("pay", "ok", '{"n":1}', "paid", "1"),
        ToolRun("look", "interrupted", '{"n":1}', "", "2"),
        ToolRun("pay", "failed", '{"n":1}', "later", "3"),
    )


def test_the_newest_call_that_has_not_ended_is_waited_for() -> None:
    seen = ToolsSeen()
    waited_for = [seen.waited_for]
    for event in (use("1"), use("2", "look"), Event("tool_result", {"id": "2", "ok": True, "text": ""})):
        seen.observe(event)
        waited_for.append(seen.waited_for)
    assert waited_for == [None, "pay", "look", "pay"]


def test_they_are_bounded_and_odd_data_does_no_harm() -> None:
    seen = ToolsSeen()
    for number in range(tools_seen.MOST + 5):
        seen.observe(use(str(number)))
    assert len(seen.runs) == tools_seen.MOST
    odd = ToolsSeen()
    odd.observe(Event("tool_use", {"input": object()}))
    odd.observe(Event("tool_result", {}))
    assert [(run.name, run.end) for run in odd.runs] == [("None", "failed")]
