"""Specs and the epoch that a message of a stranger has replaced are put back: what was seen, or what the journal kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from msgspec import structs

from agentmesh.edge.journal_reader import JournalReader
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Entry
from agentmesh.ownership import kept_spec
from agentmesh.records import Change, Ledger, Record, encode_record
from agentmesh.registry_values import Spec
from agentmesh.subjects import EPOCH_KEY, spec_key
from agentmesh.wire import encode
from agentmesh_node.supervisor.registry_index import RegistryIndex
from agentmesh_node.supervisor.spec_repair import PERIOD_S, SpecRepair
from node.simulated import NODE, SimulatedNode, simulate

GOOD = Spec(kind="Doll", incarnation="life", status="running", options={"depth": 3}, ran=True)


class Repair:
    """A repair at work, and what its supervisor has seen."""

    def __init__(self, node: SimulatedNode) -> None:
        self.node = node
        self.index = RegistryIndex()
        self.leads = True
        journals = JournalReader(node.transport, node.subjects)
        self.part = SpecRepair(node.registry, journals, self.index, lambda: self.leads, node.services.now)

    async def write(self, value: bytes, agent: str = "a") -> int:
        """Somebody writes a spec, and the supervisor sees it."""
        revision = await self.node.write_spec(agent, value)
        self.index.observe(Entry(spec_key(agent), value, revision))
        return revision

    async def epoch(self, value: bytes) -> None:
        await store(self.node.others, self.node.subjects.registry_key(EPOCH_KEY), value)

    def value(self, key: str) -> bytes:
        return self.node.stored(self.node.subjects.registry_key(key))[-1].data


@asynccontextmanager
async def repairing(node: SimulatedNode) -> AsyncIterator[Repair]:
    repair = Repair(node)
    task = node.world.process("others").spawn(repair.part.run())
    try:
        yield repair
    finally:
        task.cancel()


async def journal(node: SimulatedNode, spec: Spec, ledger: Ledger, epoch: int = 1) -> None:
    who = {"id": "r", "at": 1.0, "incarnation": "life", "epoch": epoch, "generation": 1, "node": NODE, "boot": "b"}
    body = msgspec.convert({"kind": "activated", **who}, Record)
    body = structs.replace(body, snapshot=ledger, change=Change(spec=kept_spec(spec, ledger)))
    await store(node.others, node.subjects.journal("a"), encode_record(body), headers={"Mesh-Record": "r"})


def test_the_last_spec_that_was_seen_is_put_back_if_no_owner_does_it() -> None:
    async def story(node: SimulatedNode) -> None:
        async with repairing(node) as repair:
            await repair.write(encode(GOOD))
            await repair.write(b"{")
            await node.until(lambda: repair.value(spec_key("a")) == encode(GOOD), "the spec is put back", 3 * PERIOD_S)

    simulate(story)


def test_an_owner_that_is_quicker_is_left_alone() -> None:
    async def story(node: SimulatedNode) -> None:
        async with repairing(node) as repair:
            await repair.write(encode(GOOD))
            await repair.write(b"{")
            newer = encode(structs.replace(GOOD, status="failed"))
            await repair.write(newer)
            await node.pass_time(5.0)
            assert repair.value(spec_key("a")) == newer

    simulate(story)


def test_a_supervisor_that_does_not_lead_writes_nothing() -> None:
    async def story(node: SimulatedNode) -> None:
        async with repairing(node) as repair:
            repair.leads = False
            await repair.write(encode(GOOD))
            await repair.write(b"{")
            await repair.epoch(b"soon")
            await node.pass_time(10.0)
            assert (repair.value(spec_key("a")), repair.value(EPOCH_KEY)) == (b"{", b"soon")

    simulate(story)


@pytest.mark.parametrize(
    ("ledger", "status"),
    [
        (Ledger(incarnation="life", phase="ready"), "running"),
        (Ledger(incarnation="life", phase="new"), "wanted"),
        (Ledger(incarnation="life", phase="stopped"), "stopping"),
    ],
    ids=["ready", "new", "stopped"],
)
def test_a_spec_that_nobody_remembers_comes_from_the_journal_with_the_status_that_it_says(ledger: Ledger, status: str) -> None:
    async def story(node: SimulatedNode) -> None:
        async with repairing(node) as repair:
            await journal(node, GOOD, ledger)
            await repair.write(b"{")
            await node.until(lambda: repair.value(spec_key("a")) != b"{", "the spec is put back", 3 * PERIOD_S)
            spec = await node.read_spec("a")
            assert spec is not None and (spec.status, spec.options, spec.kind) == (status, GOOD.options, "Doll")

    simulate(story)


def test_a_key_that_was_never_an_agents_is_reported_once() -> None:
    async def story(node: SimulatedNode) -> None:
        async with repairing(node) as repair:
            await repair.write(b"{", "nobody")
            await node.pass_time(20.0)
            assert repair.value(spec_key("nobody")) == b"{"
            assert len(node.logged("none is known")) == 1

    simulate(story)


@pytest.mark.case(256)
def test_an_epoch_that_nobody_remembers_comes_from_the_journals() -> None:
    async def story(node: SimulatedNode) -> None:
        await store(node.others, node.subjects.registry_key(EPOCH_KEY), b"soon")
        async with repairing(node) as repair:
            await journal(node, GOOD, Ledger(incarnation="life", phase="ready"), epoch=4)
            await repair.write(encode(GOOD))
            await node.until(lambda: repair.value(EPOCH_KEY) == b"4", "the epoch is put back", 5 * PERIOD_S)

    simulate(story)


def test_the_epoch_is_put_back_as_it_was_last_and_never_guessed() -> None:
    async def story(node: SimulatedNode) -> None:
        await store(node.others, node.subjects.registry_key(EPOCH_KEY), b"soon")
        async with repairing(node) as repair:
            await node.pass_time(5.0)
            assert repair.value(EPOCH_KEY) == b"soon", "it has never seen one, and there is no journal"
            assert len(node.logged("epoch_unreadable")) == 1
            await repair.epoch(b"3")
            await node.pass_time(2 * PERIOD_S)
            await repair.epoch(b"{")
            await node.until(lambda: repair.value(EPOCH_KEY) == b"3", "the epoch is put back", 3 * PERIOD_S)

    simulate(story)
