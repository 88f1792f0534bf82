"""What an agent's spec asks of a node, before the first record of a newer version is written."""

from __future__ import annotations

import msgspec
import pytest

from agentmesh.edge.registry import Registry
from agentmesh.errors import Unavailable
from agentmesh.formats import SECOND, required
from agentmesh.subjects import spec_key
from agentmesh_node.owner.reader_label import require_readers
from node.simulated import SimulatedNode, simulate


def test_the_label_is_put_beside_what_is_there_and_only_once() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a1", status="running", labels={"gpu": "yes"})
        await require_readers(node.services, "a1", "life", SECOND)
        spec = await node.read_spec("a1")
        assert spec is not None and required(spec.labels) == SECOND
        assert spec.labels["gpu"] == "yes" and spec.status == "running"
        before = await Registry(node.others, node.subjects).get(spec_key("a1"))
        await require_readers(node.services, "a1", "life", SECOND)
        after = await Registry(node.others, node.subjects).get(spec_key("a1"))
        assert before is not None and after is not None and before.revision == after.revision

    simulate(story)


def test_fields_of_a_newer_build_stay() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.write_spec("a1", b'{"kind":"Doll","incarnation":"life","fresh":{"a":[1,null]},"status":"running"}')
        await require_readers(node.services, "a1", "life", SECOND)
        entry = await Registry(node.others, node.subjects).get(spec_key("a1"))
        assert entry is not None and entry.value is not None
        assert msgspec.json.decode(entry.value)["fresh"] == {"a": [1, None]}

    simulate(story)


def test_another_life_is_left_alone() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a1", incarnation="next")
        await require_readers(node.services, "a1", "life", SECOND)
        spec = await node.read_spec("a1")
        assert spec is not None and spec.labels == {}

    simulate(story)


def test_a_write_of_somebody_else_is_written_over() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a1", status="wanted")
        node.faults.lost.add(node.subjects.registry_change(spec_key("a1")))
        await node.spec("a1", status="running")  # which the node does not see
        await require_readers(node.services, "a1", "life", SECOND)
        spec = await node.read_spec("a1")
        assert spec is not None and (spec.status, required(spec.labels)) == ("running", SECOND)

    simulate(story)


def test_without_a_registry_it_gives_up_in_time() -> None:
    async def story(node: SimulatedNode) -> None:
        await node.spec("a1", status="running")
        node.faults.leaderless.add(node.subjects.stream("registry"))
        with pytest.raises(Unavailable, match="a1"):
            await require_readers(node.services, "a1", "life", SECOND)

    simulate(story)
