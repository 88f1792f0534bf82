"""A message of a stranger ends no agent, and what the store has lost is seen (docs/architecture.md#foreign-messages)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Registry, readable_spec
from agentmesh.edge.transport import Message
from agentmesh.errors import MeshError, StoreLost, UnreadableRecord
from agentmesh.records import Record, decode_record, encode_record
from agentmesh.subjects import placement_key, spec_key
from agentmesh_node.host.audit import PERIOD_S
from rules.scene import PATIENCE_S, Scene, play
from sim.run import registry_of
from sim.world import World

pytestmark = pytest.mark.slow

BODIES = (b"", b"hello", b'{"prompt":"missing field kind"}', b"\xff", b"[" * 3000)


class Stranger:
    """Somebody who may publish where only the mesh should."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def journal(self, agent: str, body: bytes = b"hello", **headers: str) -> int:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        subject = self._scene.world.subjects.journal(agent)
        return (await store(self._scene.mesh.transport, subject, body, headers=fields)).seq

    async def registry(self, key: str, body: bytes = b"{", **headers: str) -> int:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        subject = self._scene.world.subjects.registry_key(key)
        return (await store(self._scene.mesh.transport, subject, body, headers=fields)).seq


async def facts(scene: Scene, agent: str) -> list[dict[str, Any]]:
    """The agent's lifecycle facts from now on."""
    heard: list[dict[str, Any]] = []

    def take(message: Message) -> None:
        heard.append(msgspec.json.decode(message.data))

    await scene.mesh.transport.subscribe(scene.world.subjects.event(agent, "*"), take)
    return heard


def kinds(heard: list[dict[str, Any]]) -> list[str]:
    return [fact["kind"] for fact in heard]


async def rested(scene: Scene, agent: str) -> None:
    await scene.until(lambda: readable(scene, agent)[-1].kind == "rest", f"{agent} rests")


def readable(scene: Scene, agent: str) -> list[Record]:
    """The records that were ever appended, without what is not the mesh's."""
    subject = scene.world.subjects.journal(agent)
    return [decode_record(m.data) for m in scene.history("journal", subject) if RECORD in m.headers]


# --- foreign messages -----------------------------------------------------------------------------------------------
@pytest.mark.case(252)
def test_an_agent_goes_on_behind_foreign_messages_in_its_journal() -> None:
    async def story(scene: Scene) -> None:
        stranger, heard = Stranger(scene), await facts(scene, "a")
        await scene.start("a")
        for body in BODIES:
            await stranger.journal("a", body)
            assert (await scene.mesh.ask("a", "hello", timeout=PATIENCE_S)).text == "hello"
        fact = next(fact for fact in heard if fact["kind"] == "foreign_message")
        assert fact["count"] == 1 and fact["seq"] > 0
        generation = scene.ledger("a").generation
        assert kinds(heard).count("activated") == 1, "its owner stays its owner"
        await rested(scene, "a")
        assert len(await scene.mesh.history("a")) == len(BODIES)
        assert scene.ledger("a").generation == generation

    play(story)


@pytest.mark.case(252)
def test_a_takeover_passes_foreign_messages_over_and_cleans_the_journal() -> None:
    async def story(scene: Scene) -> None:
        stranger = Stranger(scene)
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        for body in BODIES:
            await stranger.journal("a", body)
        first = scene.node_of("a")
        scene.world.kill(first)
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert scene.node_of("a") != first
        assert scene.seen("a").prompts == ["one", "two"]
        subject = scene.world.subjects.journal("a")
        assert all(RECORD in m.headers for m in scene.stored("journal") if m.subject == subject), "rolled up"
        assert [turn.turn for turn in await scene.mesh.history("a")] == [1, 2]

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(252)
def test_sleepers_are_woken_by_foreign_messages_at_most_and_lose_nothing() -> None:
    async def story(scene: Scene) -> None:
        stranger = Stranger(scene)
        await scene.start("a", "b")
        await scene.mesh.ask("a", "one")
        for name in ("a", "b"):
            await scene.until(lambda name=name: _asleep(scene, name), f"{name} sleeps")  # type: ignore[misc]
        await stranger.journal("a", b'{"kind":"rest"}')
        await stranger.journal("b", b'{"kind": "rest", "positions": 3}')
        await asyncio.sleep(70.0)  # a round of the audit
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert scene.seen("a").prompts == ["one", "two"]

    play(story, passivate_s=2.0)


def _asleep(scene: Scene, agent: str) -> bool:
    placed = scene.world.nodes["n1"].catalog.agents[agent]
    return placed.owner is None and readable(scene, agent)[-1].kind == "rest"


@pytest.mark.case(252)
def test_a_stopped_agents_journal_with_foreign_messages_is_swept_and_begun_anew() -> None:
    async def story(scene: Scene) -> None:
        stranger = Stranger(scene)
        await scene.start("a")
        await stranger.journal("a")
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        await stranger.journal("a")
        late = await store(scene.mesh.transport, scene.world.subjects.inbox("a"), b"late", headers={"Mesh-For": "life"})
        await scene.until(lambda: str(late.seq) in scene.results("a"), "the answer behind the end", 150.0)
        assert scene.results("a")[str(late.seq)].error is not None
        await scene.start("a")
        assert (await scene.mesh.ask("a", "hello", timeout=PATIENCE_S)).text == "hello"

    play(story)


# --- a lost store ---------------------------------------------------------------------------------------------------
async def wiped(scene: Scene, agent: str) -> None:
    """See that the loss of the agent's journal is shown everywhere."""
    await scene.until(lambda: scene.spec(agent).status == "failed", "the spec says it", 130.0)
    reason = scene.spec(agent).reason
    assert reason is not None and reason.code == "store_lost" and agent in reason.message
    ready = scene.world.nodes[scene.node_of(agent)].not_ready()
    assert ready is not None and agent in ready and "mesh stop" in ready
    status = await scene.mesh.status(agent, timeout=PATIENCE_S)
    assert status.failed is not None and status.failed.code == "store_lost"
    with pytest.raises(StoreLost):
        await scene.mesh.resume(agent)
    with pytest.raises(StoreLost):
        await scene.mesh.ask(agent, "hello")
    with pytest.raises(StoreLost):
        await scene.mesh.poll(agent, "999")


@pytest.mark.case(254)
@pytest.mark.parametrize("how", ["sub", "all"])
def test_a_journal_that_a_stranger_rolled_up_is_a_lost_store(how: str) -> None:
    async def story(scene: Scene) -> None:
        stranger, heard = Stranger(scene), await facts(scene, "a")
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await rested(scene, "a")
        written = len(readable(scene, "a"))
        await stranger.journal("a" if how == "sub" else "other", Nats_Rollup=how)
        await wiped(scene, "a")
        assert kinds(heard).count("store_lost") == 1
        await asyncio.sleep(60.0)
        assert len(readable(scene, "a")) == written, "nothing is written"
        with pytest.raises(MeshError):
            await scene.mesh.history("a") if how == "sub" else await scene.mesh.ask("a", "two")

    play(story)


@pytest.mark.case(254)
@pytest.mark.parametrize("how", ["sub", "all"])
@pytest.mark.parametrize("seen", [False, True])
def test_a_takeover_neither_begins_such_an_agents_life_again_nor_forgets_the_loss(how: str, seen: bool) -> None:
    async def story(scene: Scene) -> None:
        stranger = Stranger(scene)
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await rested(scene, "a")
        await stranger.journal("a" if how == "sub" else "other", Nats_Rollup=how)
        if seen:
            await scene.until(lambda: scene.spec("a").status == "failed", "the spec says it", 130.0)
        first = scene.node_of("a")
        scene.world.kill(first)
        await scene.until(lambda: scene.node_of("a") != first, "the takeover")
        await wiped(scene, "a")

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(251)
def test_an_agent_that_waited_for_a_node_while_its_journal_was_lost_does_not_begin_again() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        scene.world.kill("n1")
        await scene.until(lambda: scene.spec("a").status == "wanted", "it waits")
        await Stranger(scene).journal("other", Nats_Rollup="all")
        scene.world.restart("n1")
        await wiped(scene, "a")

    play(story)


@pytest.mark.case(251)
def test_a_loss_that_the_spec_shows_is_not_forgotten_by_a_takeover_until_the_epoch_is_raised() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await rested(scene, "a")
        stream = scene.server.streams[scene.world.subjects.stream("journal")]
        backup = stream.backup()
        await scene.mesh.ask("a", "what will be lost")
        await rested(scene, "a")
        scene.world.net.stop_server()
        stream.restore(backup)
        scene.world.net.start_server()
        await scene.until(lambda: scene.spec("a").status == "failed", "the spec says it")
        for _ in range(3):  # each takeover hands on what the one before it was told
            for name in ("n1", "n2"):
                scene.world.kill(name)
                scene.world.restart(name)
            await asyncio.sleep(30.0)
            await wiped(scene, "a")
        await Stranger(scene).registry("epoch", b"2")  # an operator has restored what there was to restore
        for name in ("n1", "n2"):
            scene.world.kill(name)
            scene.world.restart(name)
        await scene.until(lambda: scene.spec("a").status == "running", "it goes on")
        assert (await scene.mesh.ask("a", "hello", timeout=PATIENCE_S)).text == "hello"
        assert scene.spec("a").reason is None

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(251)
@pytest.mark.parametrize("how", ["sub", "all"])
def test_an_operator_gives_up_what_is_lost_by_stopping_the_agent(how: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await Stranger(scene).journal("a" if how == "sub" else "other", Nats_Rollup=how)
        await wiped(scene, "a")
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        assert scene.spec("a").status == "stopped"
        assert scene.world.nodes["n1"].not_ready() is None
        await scene.start("a")
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert scene.seen("a").prompts == ["two"]

    play(story)


@pytest.mark.case(251)
def test_a_stop_under_way_waits_for_a_second_word_when_the_store_is_found_lost() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await Stranger(scene).journal("a", Nats_Rollup="sub")
        await scene.mesh.stop("a", wait=False)
        await scene.until(lambda: scene.spec("a").reason is not None, "the reason")
        assert scene.spec("a").status == "stopping"
        await asyncio.sleep(30.0)
        reason = scene.spec("a").reason
        assert reason is not None and reason.code == "store_lost", "an operator who did not know gives nothing up"
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        assert scene.spec("a").status == "stopped"

    play(story)


# --- what cannot be read --------------------------------------------------------------------------------------------
def newer(scene: Scene, agent: str) -> bytes:
    """A record behind the newest one, as a newer program would write it."""
    return encode_record(readable(scene, agent)[-1]).replace(b'{"v":1', b'{"v":99')


@pytest.mark.case(253)
@pytest.mark.parametrize("what", ["version", "kind", "cut"])
def test_an_agent_waits_before_what_cannot_be_read_and_goes_on_when_it_can(what: str) -> None:
    async def story(scene: Scene) -> None:
        stranger, heard = Stranger(scene), await facts(scene, "a")
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await rested(scene, "a")
        last = encode_record(readable(scene, "a")[-1])
        bodies = {"version": newer(scene, "a"), "kind": last.replace(b'"rest"', b'"dream"'), "cut": last[:-20]}
        seq = await stranger.journal("a", bodies[what], Mesh_Record="r99")
        ref = await scene.mesh.tell("a", "two")
        await scene.until(lambda: scene.spec("a").status == "wanted", "the spec says it", 130.0)
        reason = scene.spec("a").reason
        assert reason is not None and reason.code == "unreadable_record" and str(seq) in reason.message
        status = await scene.mesh.status("a", timeout=PATIENCE_S)
        assert status.waiting == reason and status.failed is None
        with pytest.raises(UnreadableRecord):
            await scene.mesh.resume("a", timeout=PATIENCE_S)
        assert not (await scene.mesh.poll("a", ref)).done, "its mail waits"
        written = len(scene.history("journal", scene.world.subjects.journal("a")))
        await asyncio.sleep(150.0)
        assert len(scene.history("journal", scene.world.subjects.journal("a"))) == written, "nothing is written behind it"
        assert scene.world.nodes["n1"].not_ready() is None, "the node takes work"
        assert kinds(heard).count("unreadable_record") == 1
        scene.server.streams[scene.world.subjects.stream("journal")].delete(seq)
        await scene.until(lambda: scene.spec("a").status == "running", "it goes on", 70.0)
        assert scene.spec("a").reason is None
        await scene.until(lambda: ref in scene.results("a"), "its mail is answered")
        assert scene.seen("a").prompts == ["one", "two"]

    play(story)


# --- the registry ---------------------------------------------------------------------------------------------------
FOREIGN = (b"{", b"", b"[" * 3000, b'"text"', b"7", b'{"kind":7}', b"\xff")


@pytest.mark.case(256)
@pytest.mark.parametrize("body", FOREIGN)
def test_a_foreign_spec_is_put_back_by_the_agents_owner(body: bytes) -> None:
    async def story(scene: Scene) -> None:
        await scene.mesh.start_agent("a", kind="Doll", options={"depth": 3}, timeout=PATIENCE_S)
        await scene.mesh.ask("a", "one")
        before = scene.spec("a")
        generation = scene.ledger("a").generation
        await Stranger(scene).registry(spec_key("a"), body)
        await scene.until(lambda: _spec(scene) is not None, "the spec is put back", 0.5)
        assert msgspec.structs.replace(scene.spec("a"), since=before.since) == before
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert scene.ledger("a").generation == generation

    play(story)


def _spec(scene: Scene, agent: str = "a") -> Any:
    found = registry_of(scene.world).get(spec_key(agent))
    return readable_spec(found)


@pytest.mark.case(256)
def test_a_foreign_spec_of_a_sleeping_agent_is_put_back_from_its_journal() -> None:
    async def story(scene: Scene) -> None:
        await scene.mesh.start_agent("a", kind="Doll", options={"depth": 3}, timeout=PATIENCE_S)
        await scene.until(lambda: _asleep(scene, "a"), "it sleeps")
        before = scene.spec("a")
        scene.world.kill("s1")  # no leader helps
        await Stranger(scene).registry(spec_key("a"))
        await scene.until(lambda: _spec(scene) is not None, "the spec is put back", 5.0)
        assert msgspec.structs.replace(scene.spec("a"), since=before.since) == before
        assert (await scene.mesh.ask("a", "one", timeout=PATIENCE_S)).text == "one"

    play(story, passivate_s=2.0)


@pytest.mark.case(256)
@pytest.mark.parametrize("leader", ["remembers", "is new"])
def test_a_foreign_spec_without_an_owner_is_put_back_and_its_agent_goes_on(leader: str) -> None:
    """Its node died at the same moment; a leader that was there has seen the spec, a new one takes it from the journal."""

    async def story(scene: Scene) -> None:
        await scene.mesh.start_agent("a", kind="Doll", options={"depth": 3}, timeout=PATIENCE_S)
        await scene.mesh.ask("a", "one")
        before = scene.spec("a")
        first = scene.node_of("a")
        scene.world.kill(first)
        if leader == "is new":
            scene.world.kill("s1")
        await Stranger(scene).registry(spec_key("a"))
        if leader == "is new":
            scene.world.restart("s1")
        await scene.until(lambda: _spec(scene) is not None, "the spec is put back")
        assert scene.spec("a").options == before.options and scene.spec("a").incarnation == before.incarnation
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert scene.seen("a").prompts == ["one", "two"]

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(256)
def test_a_foreign_spec_of_an_agent_that_waits_for_its_first_node_is_put_back() -> None:
    async def story(scene: Scene) -> None:
        await scene.mesh.start_agent("a", kind="Doll", labels={"zone": "b"}, wait=False)
        await scene.until(lambda: scene.spec("a").reason is not None, "it waits")
        await Stranger(scene).registry(spec_key("a"))
        await scene.until(lambda: _spec(scene) is not None, "the spec is put back")
        assert scene.spec("a").labels == {"zone": "b"}

    play(story)


@pytest.mark.case(256)
def test_a_name_that_never_was_an_agents_is_left_alone() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        revision = await Stranger(scene).registry(spec_key("nobody"))
        await asyncio.sleep(30.0)
        assert registry_of(scene.world)[spec_key("nobody")].revision == revision
        assert (await scene.mesh.ask("a", "one", timeout=PATIENCE_S)).text == "one"

    play(story)


@pytest.mark.case(255)
@pytest.mark.parametrize("body", FOREIGN)
def test_a_foreign_placement_counts_as_none(body: bytes) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await Stranger(scene).registry(placement_key(scene.node_of("a"), "a"), body)
        await Stranger(scene).registry(placement_key("n3", "a"), body)
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        await scene.until(lambda: _placements(scene, "a") == 1, "one placement")
        assert scene.seen("a").prompts == ["one", "two"]

    play(story, nodes=("n1", "n2"))


def _placements(scene: Scene, agent: str) -> int:
    return sum(key.startswith("placements.") and key.endswith(f".{agent}") for key in registry_of(scene.world))


@pytest.mark.case(255)
@pytest.mark.parametrize("body", FOREIGN)
def test_a_foreign_lease_moves_no_agent_of_a_node_that_lives(body: bytes) -> None:
    async def story(scene: Scene) -> None:
        heard = await facts(scene, "a")
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await Stranger(scene).registry("nodes.n1", body)
        await asyncio.sleep(20.0)
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert kinds(heard).count("activated") == 1
        assert scene.ledger("a").takeovers == {}

    play(story)


@pytest.mark.case(255)
def test_a_foreign_lease_of_a_dead_node_holds_none_of_its_agents() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        first = scene.node_of("a")
        scene.world.kill(first)
        await Stranger(scene).registry(f"nodes.{first}")
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert scene.node_of("a") != first
        await scene.until(lambda: f"nodes.{first}" not in registry_of(scene.world), "the leftover is deleted")

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(255)
@pytest.mark.parametrize("body", FOREIGN)
def test_a_foreign_leaders_lease_keeps_nobody_from_leading(body: bytes) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await Stranger(scene).registry("supervisor", body)
        await scene.start("b")
        assert (await scene.mesh.ask("b", "one", timeout=PATIENCE_S)).text == "one"
        scene.world.kill("s1")
        await Stranger(scene).registry("supervisor", body)
        scene.world.restart("s1")
        await scene.start("c")

    play(story)


@pytest.mark.case(255)
def test_a_foreign_epoch_is_put_back_and_nodes_start_again() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one")
        await Stranger(scene).registry("epoch", b"soon")
        scene.world.kill("n1")
        scene.world.restart("n1")
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert registry_of(scene.world)["epoch"].value == b"1"

    play(story)


@pytest.mark.case(474)
def test_an_unreadable_record_behind_an_agent_that_has_nothing_to_do_is_found_by_the_audit() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one", timeout=PATIENCE_S)
        await rested(scene, "a")
        seq = await Stranger(scene).journal("a", b"{", Mesh_Record="x")
        await scene.until(lambda: _reason(scene, "a") == ("wanted", "unreadable_record"), "it is named", 2 * PERIOD_S)
        scene.server.streams[scene.world.subjects.stream("journal")].delete(seq)
        assert (await scene.mesh.ask("a", "two", timeout=3 * PATIENCE_S)).text == "two"
        assert scene.seen("a").prompts == ["one", "two"]

    play(story, passivate_s=100_000.0)


def _reason(scene: Scene, agent: str) -> tuple[str, str]:
    spec = scene.spec(agent)
    return spec.status, spec.reason.code if spec.reason is not None else ""


# --- a registry that was emptied, and epochs --------------------------------------------------------------------------
@pytest.mark.case(471)
@pytest.mark.parametrize("key", ["agents.b", "nodes.n1", "supervisor", "epoch", "odd.key"])
def test_a_registry_that_a_stranger_has_emptied_is_put_back_and_the_agents_go_on(key: str) -> None:
    """`Nats-Rollup: all` leaves nothing but the message that bears it."""

    async def story(scene: Scene) -> None:
        await scene.start("a", "b")
        await scene.mesh.ask("a", "one", timeout=PATIENCE_S)
        before = scene.spec("a")
        await Stranger(scene).registry(key, Nats_Rollup="all")
        assert list(registry_of(scene.world)) == [key]
        await scene.until(lambda: _is_placed(scene, "a") and _is_placed(scene, "b"), "all is back", 3 * PATIENCE_S)
        after = scene.spec("a")
        assert (after.incarnation, after.options, after.by) == (before.incarnation, before.options, before.by)
        await scene.until(lambda: "epoch" in registry_of(scene.world), "the epoch is back")
        assert registry_of(scene.world)["epoch"].value == b"1"
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert (await scene.mesh.ask("b", "one", timeout=PATIENCE_S)).text == "one"
        # It may be on its way to the other node once more.
        await scene.until(lambda: _is_awake(scene, "a"), "the agent is awake")
        assert scene.seen("a").prompts == ["one", "two"]

    play(story, nodes=("n1", "n2"))


def _is_awake(scene: Scene, agent: str) -> bool:
    placed = scene.world.nodes[scene.node_of(agent)].catalog.agents.get(agent)
    return placed is not None and placed.owner is not None and placed.owner.core is not None


def _is_placed(scene: Scene, agent: str) -> bool:
    return readable_spec(registry_of(scene.world).get(spec_key(agent))) is not None and _placements(scene, agent) == 1


@pytest.mark.case(471)
def test_a_spec_that_somebody_has_deleted_stays_deleted() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", "b")
        await Registry(scene.mesh.transport, scene.world.subjects).delete(
            spec_key("a"), registry_of(scene.world)[spec_key("a")].revision
        )
        await asyncio.sleep(60.0)
        assert spec_key("a") not in registry_of(scene.world)
        assert (await scene.mesh.ask("b", "one", timeout=PATIENCE_S)).text == "one"

    play(story)


@pytest.mark.case(472)
@pytest.mark.parametrize("lowered", [b"1", None], ids=["written", "gone"])
def test_an_epoch_that_is_older_than_the_journals_is_put_back_by_the_first_node_that_meets_one(lowered: bytes | None) -> None:
    async def story(scene: Scene) -> None:
        world, stranger = scene.world, Stranger(scene)
        await stranger.registry("epoch", b"7")
        _restart(world, "n1")
        await scene.start("a")
        await scene.mesh.ask("a", "one", timeout=PATIENCE_S)
        assert scene.ledger("a").epoch == 7
        world.kill("s1")
        if lowered is None:
            registry = Registry(scene.mesh.transport, world.subjects)
            await registry.delete("epoch", registry_of(world)["epoch"].revision)
        else:
            await stranger.registry("epoch", lowered)
        world.restart("s1")
        _restart(world, "n1")
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert registry_of(world)["epoch"].value == b"7"
        assert scene.seen("a").prompts == ["one", "two"]

    play(story)


@pytest.mark.case(472)
def test_a_node_follows_an_epoch_that_was_raised_while_it_ran() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one", timeout=PATIENCE_S)
        first = scene.node_of("a")
        other = next(node for node in ("n1", "n2") if node != first)
        await Stranger(scene).registry("epoch", b"5")
        _restart(scene.world, first)
        await scene.start("b")
        scene.world.kill(other)
        await scene.mesh.ask("a", "two", timeout=PATIENCE_S)
        assert scene.ledger("a").epoch == 5
        scene.world.restart(other)
        await scene.until(lambda: f"nodes.{other}" in registry_of(scene.world), "the other is there")
        scene.world.kill(first)
        assert (await scene.mesh.ask("a", "three", timeout=PATIENCE_S)).text == "three"
        assert scene.seen("a").prompts == ["one", "two", "three"]

    play(story, nodes=("n1", "n2"))


def _restart(world: World, name: str) -> None:
    world.kill(name)
    world.restart(name)


@pytest.mark.case(472)
@pytest.mark.parametrize("epoch", [b"0", b"-3", b"99999999999999999999999"])
def test_a_number_that_is_no_epoch_is_put_back(epoch: bytes) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        await scene.mesh.ask("a", "one", timeout=PATIENCE_S)
        await Stranger(scene).registry("epoch", epoch)
        _restart(scene.world, "n1")
        assert (await scene.mesh.ask("a", "two", timeout=PATIENCE_S)).text == "two"
        assert registry_of(scene.world)["epoch"].value == b"1"

    play(story)
