"""A node's agents: taken up when they are placed, activated when there is work, released when they are placed here no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agentmesh import Agent, Idle, Init
from agentmesh.edge.registry import Entry, Registry
from agentmesh.registry_values import Placement
from agentmesh.subjects import placement_key, spec_key
from agentmesh.wire import ErrorBody, encode
from agentmesh_node.host.catalog import Catalog
from agentmesh_node.host.placed_agent import PlacedAgent
from node.simulated import NODE, SimulatedNode, simulate


class Doll(Agent[int]):
    backend = "scripted"
    script = ("hello",)

    async def init_agent(self, options: dict[str, Any]) -> Init[int]:
        return Init(0)

    async def handle_response(self, ref: str, response: object, state: int) -> Idle[int]:
        return Idle(state + 1)


SETTINGS: dict[str, Any] = {"agents": {"Doll": Doll}}


@asynccontextmanager
async def catalog_of(node: SimulatedNode) -> AsyncIterator[Catalog]:
    catalog = Catalog(node.services)
    await catalog.start()
    try:
        yield catalog
    finally:
        await catalog.close()


def others(node: SimulatedNode) -> Registry:
    return Registry(node.others, node.subjects)


async def place(node: SimulatedNode, agent: str, value: bytes | None = None) -> int:
    """The leader places `agent` on the node; the generation."""
    placement = encode(Placement(incarnation="life")) if value is None else value
    return await others(node).create(placement_key(NODE, agent), placement)


async def placed(node: SimulatedNode, catalog: Catalog, agent: str) -> PlacedAgent:
    """`agent` as the node has taken it up: it is listened for."""
    await node.until(lambda: agent in catalog.agents and catalog.agents[agent].subscription, f"{agent} is taken up")
    return catalog.agents[agent]


async def awake(node: SimulatedNode, catalog: Catalog, agent: str) -> PlacedAgent:
    found = await placed(node, catalog, agent)
    await node.until(lambda: found.owner is not None and found.owner.begun, f"{agent} is activated")
    return found


async def asleep(node: SimulatedNode, agent: str) -> None:
    """`agent` runs somewhere, and its journal says that nothing is left to do."""
    await node.spec(agent, status="running")
    await node.record(agent, "activated")
    await node.record(agent, "rest", positions={})


def test_a_new_agent_is_activated_and_shown_as_running() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await node.spec("a")
            generation = await place(node, "a")
            found = await awake(node, catalog, "a")
            assert (found.generation, found.incarnation) == (generation, "life")
            assert found.owner is not None
            await node.until(lambda: found.owner is not None and found.owner.idle, "its start is over")
            await found.owner.settled()
            spec = await node.read_spec("a")
            assert spec is not None
            assert spec.status == "running"
            assert node.services.awake == 1
        assert node.services.awake == 0

    simulate(story, **SETTINGS)


def test_a_sleeping_agent_is_left_asleep_until_mail_comes() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await asleep(node, "a")
            await place(node, "a")
            found = await placed(node, catalog, "a")
            await node.pass_time(5.0)
            assert found.owner is None
            assert found.activation is None
            await node.mail("a")
            await awake(node, catalog, "a")

    simulate(story, **SETTINGS)


def test_after_missed_messages_a_sleeping_agent_is_looked_at_again() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await asleep(node, "a")
            await place(node, "a")
            found = await placed(node, catalog, "a")
            await node.pass_time(1.0)  # it was looked whether it has work
            assert found.subscription is not None
            await found.subscription.unsubscribe()  # what comes now is missed
            await node.mail("a")
            await node.pass_time(1.0)
            assert found.owner is None
            catalog.catch_up()
            await awake(node, catalog, "a")

    simulate(story, **SETTINGS)


def test_an_agent_that_is_not_placed_here_any_more_is_released() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await node.spec("a")
            generation = await place(node, "a")
            found = await awake(node, catalog, "a")
            owner = found.owner
            assert owner is not None
            await others(node).delete(placement_key(NODE, "a"), generation)
            await node.until(lambda: "a" not in catalog.agents, "its release")
            await node.until(lambda: owner.closed, "its owner's end")
            assert found.gone
            assert found.owner is None

    simulate(story, **SETTINGS)


def test_a_newer_placement_takes_the_place_of_the_older() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await node.spec("a")
            generation = await place(node, "a")
            first = await awake(node, catalog, "a")
            newer = await others(node).update(placement_key(NODE, "a"), encode(Placement(incarnation="life")), generation)
            await node.until(lambda: catalog.agents["a"].generation == newer, "the newer placement")
            second = await awake(node, catalog, "a")
            assert first.gone
            assert second.owner is not None
            assert second.owner.claim.generation == newer

    simulate(story, **SETTINGS)


def test_a_placement_that_cannot_be_read_is_skipped_and_one_that_cannot_be_served_is_given_up() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await place(node, "broken", b"{")
            await node.until(lambda: node.logged("placement skipped"), "the report")
            assert "broken" not in catalog.agents

            await node.spec("stranger", kind="Unknown")
            await place(node, "stranger")
            await node.until(lambda: "stranger" in catalog.agents, "it is taken up")
            await node.until(lambda: "stranger" not in catalog.agents, "it is given up")
            await node.pass_time(1.0)
            assert await others(node).get(placement_key(NODE, "stranger")) is None

    simulate(story, **SETTINGS)


def test_an_agent_whose_spec_cannot_be_read_waits_for_another_spec() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await node.write_spec("a", b"{")
            await place(node, "a")
            found = await placed(node, catalog, "a")
            await node.until(lambda: node.logged("not activated"), "the report")
            await node.mail("a")
            await node.pass_time(5.0)
            assert found.owner is None
            assert len(node.logged("not activated")) == 1  # said once, whatever comes
            await node.spec("a")
            entry = node.specs.get(spec_key("a"))
            assert entry is not None
            catalog.on_spec(entry)
            await awake(node, catalog, "a")

    simulate(story, **SETTINGS)


def test_a_spec_that_says_stopping_stops_the_agent_and_its_placement_goes() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await node.spec("a")
            await place(node, "a")
            await awake(node, catalog, "a")
            await node.spec("a", status="stopping", reason=ErrorBody(code="stopped"))
            entry = node.specs.get(spec_key("a"))
            assert entry is not None
            catalog.on_spec(entry)
            await node.until(lambda: "a" not in catalog.agents, "its end")
            spec = await node.read_spec("a")
            assert spec is not None
            assert spec.status == "stopped"

    simulate(story, **SETTINGS)


def test_a_handed_over_agent_is_at_rest_and_its_placement_is_deleted() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await node.spec("a")
            await place(node, "a")
            await catalog.hand_over(await awake(node, catalog, "a"))
            assert catalog.agents == {}
            assert await others(node).get(placement_key(NODE, "a")) is None

    simulate(story, **SETTINGS)


def test_who_leaves_activates_nobody() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            catalog.stop_activations()
            await node.spec("a")
            await place(node, "a")
            found = await placed(node, catalog, "a")
            await node.pass_time(5.0)
            assert found.owner is None

    simulate(story, **SETTINGS)


def test_what_a_loaded_agent_has_is_told() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            await asleep(node, "sleeper")
            await place(node, "sleeper")
            await placed(node, catalog, "sleeper")
            await node.spec("a")
            await place(node, "a")
            found = await awake(node, catalog, "a")
            assert found.owner is not None
            assert dict(catalog.mailboxes()) == {"sleeper": None, "a": found.owner.mailbox}
            assert catalog.acknowledged()["a"].record == found.owner.committed
            assert list(catalog.acknowledged()) == ["a"]
            catalog.lose_store("a")
            await node.until(lambda: found.broken and found.owner is None, "the alarm")
            assert "a" in catalog.agents  # an operator must look at it first

    simulate(story, **SETTINGS)


def test_a_change_of_another_agents_spec_means_nothing() -> None:
    async def story(node: SimulatedNode) -> None:
        async with catalog_of(node) as catalog:
            catalog.on_spec(Entry(spec_key("nobody"), b"{}", 1))
            assert catalog.agents == {}

    simulate(story, **SETTINGS)
