"""Which version of records may be written, by the leases of the mesh's processes."""

from __future__ import annotations

import pytest

from agentmesh.edge.registry import Registry
from agentmesh.formats import FIRST, RECORD_VERSION
from agentmesh.subjects import SUPERVISOR_KEY, node_key
from agentmesh_node.formats import ABSENT_S
from node.simulated import SimulatedNode, simulate

OLD = b'{"boot":"b","kinds":["Doll"]}'
NEW = b'{"boot":"b","kinds":["Doll"],"reads":%d,"by_operation":true}' % RECORD_VERSION


def test_the_least_of_all_leases_counts_also_for_a_while_after_it_has_gone() -> None:
    async def story(node: SimulatedNode) -> None:
        registry, formats = Registry(node.others, node.subjects), node.services.formats
        await registry.create(node_key("n2"), NEW)
        await formats.start()
        assert formats.writes == RECORD_VERSION
        revision = await registry.create(node_key("o1"), OLD)
        await node.until(lambda: formats.writes == FIRST, "an older node has joined")
        await registry.delete(node_key("o1"), revision)
        await node.pass_time(ABSENT_S - 1)
        assert formats.writes == FIRST, "it may be on its way back"
        await node.until(lambda: formats.writes == RECORD_VERSION, "it is gone for good", 2.0)

    simulate(story)


def test_a_process_that_comes_back_upgraded_holds_up_nobody() -> None:
    async def story(node: SimulatedNode) -> None:
        registry, formats = Registry(node.others, node.subjects), node.services.formats
        revision = await registry.create(node_key("n2"), OLD)
        await formats.start()
        assert formats.writes == FIRST
        await registry.delete(node_key("n2"), revision)
        await registry.create(node_key("n2"), NEW)
        await node.until(lambda: formats.writes == RECORD_VERSION, "all read it", 1.0)

    simulate(story)


def test_the_leading_supervisor_counts_and_what_is_no_lease_does_not() -> None:
    async def story(node: SimulatedNode) -> None:
        registry, formats = Registry(node.others, node.subjects), node.services.formats
        await registry.create(node_key("odd"), b'"no lease"')
        await formats.start()
        assert formats.writes == RECORD_VERSION
        await registry.create(SUPERVISOR_KEY, b'{"id":"so","since":""}')
        await node.until(lambda: formats.writes == FIRST, "an older supervisor leads")

    simulate(story)


@pytest.mark.case(690)
def test_whether_all_owners_take_control_requests_by_operation() -> None:
    async def story(node: SimulatedNode) -> None:
        registry, formats = Registry(node.others, node.subjects), node.services.formats
        changes: list[bool] = []
        formats.on_change(lambda: changes.append(formats.by_operation))
        await registry.create(SUPERVISOR_KEY, b'{"id":"sn","since":"","reads":2}')
        await registry.create(node_key("n2"), NEW)
        await formats.start()
        assert formats.by_operation and not changes, "a supervisor owns no agents"
        revision = await registry.create(node_key("n3"), b'{"boot":"b","reads":2}')
        await node.until(lambda: not formats.by_operation, "an older node has joined")
        await registry.delete(node_key("n3"), revision)
        await node.pass_time(ABSENT_S - 1)
        assert changes == [False], "it may be on its way back"
        await node.until(lambda: changes == [False, True], "it is gone for good", 2.0)

    simulate(story)
