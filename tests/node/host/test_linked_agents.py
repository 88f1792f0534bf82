"""Agents that were started with `link=True` are stopped with their parent, and nobody else is."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.registry_values import AgentStatus
from agentmesh.wire import ErrorBody, parse_time
from agentmesh_node.host.linked_agents import end_children
from node.simulated import SimulatedNode, simulate
from support import never_sent


async def end(node: SimulatedNode, parent: str = "mother", life: str = "life-1") -> None:
    await end_children(node.registry, node.specs, parent, life, node.services.now)


@pytest.mark.parametrize("status", ["wanted", "running", "failed"])
@pytest.mark.parametrize("parent_life", ["life-1", None])
def test_a_child_is_to_stop_and_its_spec_says_why(status: AgentStatus, parent_life: str | None) -> None:
    async def story(node: SimulatedNode) -> None:
        spec = await node.spec("child", status=status, parent="mother", parent_life=parent_life, options={"depth": 2})
        await end(node)
        found = await node.read_spec("child")
        assert found is not None and found.since is not None and abs(parse_time(found.since) - node.services.now()) < 1
        reason = ErrorBody(code="stopped", message="its parent mother ended")
        assert found == msgspec.structs.replace(spec, status="stopping", reason=reason, since=found.since)

    simulate(story)


def test_only_children_of_that_life_are_stopped() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("mother", incarnation="life-1", status="running")
        await node.spec("of-another", parent="stepmother", status="running")
        await node.spec("of-another-life", parent="mother", parent_life="life-2", status="running")
        await node.spec("namesake", parent="mother-in-law", status="running")
        # JSON that names the parent at another place.
        await node.spec("mentions", options={"parent": "mother"}, parent="stepmother", status="running")
        await node.spec("free", status="running")
        before = {key: entry.revision for key, entry in node.specs.entries.items()}
        await end(node)
        await node.pass_time(1.0)
        assert {key: entry.revision for key, entry in node.specs.entries.items()} == before

    simulate(story)


@pytest.mark.parametrize("status", ["stopping", "stopped"])
def test_who_ends_already_keeps_its_reason(status: AgentStatus) -> None:
    async def story(node: SimulatedNode) -> None:
        reason = ErrorBody(code="over_budget", message="spent")
        spec = await node.spec("child", status=status, parent="mother", reason=reason)
        await end(node)
        assert await node.read_spec("child") == spec

    simulate(story)


def test_a_name_that_json_escapes_is_found() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.write_spec("child", msgspec.json.encode({"kind": "Doll", "incarnation": "i", "parent": 'mo"ther'}))
        await end(node, parent='mo"ther')
        found = await node.read_spec("child")
        assert found is not None and found.status == "stopping"

    simulate(story)


def test_a_spec_that_cannot_be_read_holds_up_no_other() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.write_spec("a-broken", b'{"parent":"mother"')
        await node.spec("b-child", parent="mother", status="running")
        await end(node)
        found = await node.read_spec("b-child")
        assert found is not None and found.status == "stopping"

    simulate(story)


def test_what_was_written_meanwhile_is_not_written_over() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a-child", parent="mother", status="running")
        await node.spec("b-child", parent="mother", status="running")
        node.faults.lost.add(node.subjects.registry_change("agents.a-child"))
        newer = await node.spec("a-child", incarnation="life-9", status="running")
        await end(node)
        assert await node.read_spec("a-child") == newer
        other = await node.read_spec("b-child")
        assert other is not None and other.status == "stopping"

    simulate(story)


def test_what_cannot_be_written_now_is_left_to_the_leader() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a-child", parent="mother", status="running")
        await node.spec("b-child", parent="mother", status="running")
        node.transport.inject(node.subjects.registry_key("agents.a-child"), never_sent)  # Uncertain
        await end(node)
        first, second = await node.read_spec("a-child"), await node.read_spec("b-child")
        assert first is not None and first.status == "running"
        assert second is not None and second.status == "stopping"
        await node.stop_server()
        await end(node)  # Unavailable

    simulate(story)


def test_what_the_view_does_not_show_as_living_is_no_child() -> None:
    async def story(node: SimulatedNode) -> None:
        await end(node)
        await node.spec("child", parent="mother", status="running")
        entry = node.specs.get("agents.child")
        assert entry is not None
        await node.registry.delete("agents.child", entry.revision)
        await node.until(lambda: node.specs.get("agents.child") is None, "the deletion is seen")
        await end(node)
        assert await node.read_spec("child") is None

    simulate(story)
