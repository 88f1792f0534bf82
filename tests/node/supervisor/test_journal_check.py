"""The leader finds agents that an older node cannot read."""

from __future__ import annotations

import asyncio
from collections.abc import Set

from agentmesh.edge.publish import store
from agentmesh.formats import FIRST, SECOND
from agentmesh.records import Record, encode_record
from agentmesh_node.supervisor.journal_check import PERIOD_S, JournalCheck
from node.simulated import SimulatedNode, simulate


async def write(node: SimulatedNode, agent: str, version: int) -> None:
    record = Record(kind="turn", id=agent, at=1.0, incarnation="life", epoch=1, generation=1, node="n1", boot="b", v=version)
    await store(node.others, node.subjects.journal(agent), encode_record(record))


class Scene:
    """The check, and what it did."""

    def __init__(self, node: SimulatedNode) -> None:
        self.suspects: Set[str] = frozenset()
        self.leads = True
        self.required: list[tuple[str, int]] = []
        self.check = JournalCheck(node.services.journal, lambda: self.suspects, self.require, lambda: self.leads)
        self.task = asyncio.get_running_loop().create_task(self.check.run())

    async def require(self, agent: str, version: int) -> None:
        self.required.append((agent, version))

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


def test_an_agent_that_does_not_begin_gets_its_label_if_its_journal_is_newer() -> None:
    async def story(node: SimulatedNode) -> None:
        await write(node, "newer", SECOND)
        await write(node, "older", FIRST)
        await store(node.others, node.subjects.journal("odd"), b"no record")
        scene = Scene(node)
        scene.suspects = {"newer", "older", "odd", "empty"}
        await node.until(lambda: scene.required, "a label is put back")
        assert set(scene.required) == {("newer", SECOND)}
        await scene.close()

    simulate(story)


def test_an_agent_that_begins_in_time_is_not_looked_at() -> None:
    async def story(node: SimulatedNode) -> None:
        await write(node, "newer", SECOND)
        scene = Scene(node)
        for number in range(4):
            scene.suspects = {"newer"} if number % 2 else {"another"}
            await node.pass_time(PERIOD_S)
        assert scene.required == []
        await scene.close()

    simulate(story)


def test_a_standby_looks_at_none() -> None:
    async def story(node: SimulatedNode) -> None:
        await write(node, "newer", SECOND)
        scene = Scene(node)
        scene.leads, scene.suspects = False, {"newer"}
        await node.pass_time(5 * PERIOD_S)
        assert scene.required == []
        await scene.close()

    simulate(story)
