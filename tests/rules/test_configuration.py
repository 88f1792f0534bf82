"""The configuration of a running agent: what turns use is the journal's, and the spec shows it
(docs/operations.md#the-configuration-of-a-running-agent)."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh.control_values import Configuration
from agentmesh.edge.registry import Registry
from agentmesh.errors import BackendError, BadRequest, Conflict, NotFound, Unavailable
from agentmesh.registry_values import NodeLease, Restart
from agentmesh.subjects import node_key, spec_key
from agentmesh.wire import encode
from rules.scene import KINDS, Scene, do, play
from sim.run import registry_of


async def configuration(scene: Scene, agent: str) -> Configuration:
    found = (await scene.mesh.status(agent, timeout=60.0)).configuration
    assert found is not None
    return found


@pytest.mark.case(340)
@pytest.mark.case(345)
def test_what_is_set_outlives_its_owner_and_is_shown_in_the_spec() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("boss")
        await scene.mesh.ask("boss", do(["start_agent", {"name": "a", "kind": "Doll"}]))
        await scene.until(lambda: spec_key("a") in registry_of(scene.world), "a is wanted")
        await scene.until(lambda: scene.spec("a").status == "running", "a runs")
        by = scene.spec("a").by
        assert by is not None
        done = await scene.mesh.update_agent(
            "a", backend_options={"delay_s": 0}, budget={"usd": 2}, watchdog_s=70, restart="transient", timeout=60.0
        )
        assert done.changed and done.configuration == await configuration(scene, "a")
        await scene.until(lambda: scene.spec("a").sets == 1, "the spec shows it")
        spec = scene.spec("a")
        assert (spec.watchdog_s, spec.budget, spec.restart) == (70.0, {"usd": 2.0}, Restart(policy="transient"))
        assert spec.backend_options == {"delay_s": 0} and spec.by == by
        assert scene.kinds("a").count("set") == 1
        scene.world.kill(scene.node_of("a"))
        assert await configuration(scene, "a") == done.configuration
        changes = await scene.mesh.configuration_history("a")
        assert [(change.number, change.after_turn) for change in changes] == [(1, 0)]
        assert changes[0].values["watchdog_s"] == 70.0

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(342)
def test_a_sleeping_agent_is_set_and_sleeps_on() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        placed = scene.world.nodes["n1"].catalog.agents["a"]
        await scene.until(lambda: placed.owner is None, "it sleeps")
        assert (await scene.mesh.update_agent("a", watchdog_s=5.0)).changed
        await scene.until(lambda: scene.spec("a").watchdog_s == 5.0, "the spec shows it")
        await scene.until(lambda: placed.owner is None, "it sleeps again")
        assert not (await scene.mesh.update_agent("a", watchdog_s=5.0)).changed
        assert scene.kinds("a").count("set") == 1

    play(story, passivate_s=0.5, rest_s=0.1)


@pytest.mark.case(341)
def test_options_that_the_backend_refuses_change_nothing() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        before = await configuration(scene, "a")
        with pytest.raises(BackendError, match=r"nothing has changed.*delay_s"):
            await scene.mesh.update_agent("a", backend_options={"delay_s": "soon"}, watchdog_s=5.0)
        assert await configuration(scene, "a") == before
        assert "set" not in scene.kinds("a")
        assert (await scene.mesh.ask("a", do())).text == do()
        with pytest.raises(BadRequest):
            await scene.mesh.update_agent("a")
        with pytest.raises(NotFound):
            await scene.mesh.update_agent("nobody", watchdog_s=5.0)

    play(story)


@pytest.mark.case(344)
@pytest.mark.case(345)
def test_labels_are_the_specs_and_move_the_agent() -> None:
    async def story(scene: Scene) -> None:
        scene.world.node("n2", agents=KINDS, labels={"zone": "b"})
        await scene.start("a")
        before = await configuration(scene, "a")
        assert (await scene.mesh.update_agent("a", labels={"zone": "b"}, expect=before.tag)).changed
        await scene.until(lambda: scene.node_of("a") == "n2", "it moves")
        now = await configuration(scene, "a")
        assert now.labels == {"zone": "b"} and now.tag != before.tag
        with pytest.raises(Conflict):
            await scene.mesh.update_agent("a", labels={"zone": "c"}, expect=before.tag)
        with pytest.raises(Conflict):
            await scene.mesh.update_agent("a", watchdog_s=5.0, expect=before.tag)
        with pytest.raises(BadRequest):
            await scene.mesh.update_agent("a", labels={"mesh.reads-2": "no"})
        assert not (await scene.mesh.update_agent("a", labels={"zone": "b"})).changed
        await scene.mesh.update_agent("a", watchdog_s=5.0, expect=now.tag)
        # No node has this: it waits, and can be given others without an owner.
        await scene.mesh.update_agent("a", labels={"zone": "nowhere"})
        await scene.until(lambda: (reason := scene.spec("a").reason) is not None and "zone" in reason.message, "it waits")
        await scene.mesh.update_agent("a", labels={"zone": None})
        assert (await configuration(scene, "a")).labels == {}
        assert (await configuration(scene, "a")).watchdog_s == 5.0

    play(story)


@pytest.mark.case(347)
def test_while_a_process_of_an_older_build_is_up_nothing_is_set() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        registry = Registry(scene.mesh.transport, scene.world.subjects)
        revision = await registry.create(node_key("old"), encode(NodeLease(boot="b", kinds=("Doll",))))
        services = scene.world.nodes["n1"].services
        await scene.until(lambda: services.formats.writes == 1, "the node has seen it")
        with pytest.raises(Unavailable, match="older build"):
            await scene.mesh.update_agent("a", watchdog_s=5.0)
        assert {record.v for record in scene.records("a")} == {1}
        await registry.delete(node_key("old"), revision)
        async with asyncio.timeout(120):
            await scene.until(lambda: services.formats.writes == 2, "it counts no more", 60.0)
        assert (await scene.mesh.update_agent("a", watchdog_s=5.0)).changed
        assert scene.records("a")[-1].v == 2 and "mesh.reads-2" in scene.spec("a").labels

    play(story)
