"""What servers that were killed forget, and what a replica shows wrongly, each as a small world of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agentmesh import wire
from agentmesh.edge.publish import Stored, store
from agentmesh.edge.registry import Registry, View, decode_spec
from agentmesh.records import decode_record
from agentmesh.subjects import spec_key
from agentmesh.wire import Outcome
from agentmesh_client.client import Mesh
from sim.agents import Cell
from sim.loop import SimLoop, run_sim
from sim.run import registry_of
from sim.server import Faults
from sim.world import World

LIMIT = 8
"""What a lane holds here."""


class Scene:
    """One supervisor, one node, one client, and the agent `a`."""

    def __init__(self, world: World, mesh: Mesh) -> None:
        self.world = world
        self.mesh = mesh
        self.inbox = world.subjects.inbox("a")
        self.mail = world.net.server.streams[world.subjects.stream("mail")]
        self._results = world.net.server.streams[world.subjects.stream("result")]

    async def send(self, text: str, msg_id: str, **headers: str) -> Stored:
        """A prompt of plain NATS with an id."""
        return await store(self.mesh.transport, self.inbox, text.encode(), msg_id=msg_id, headers=dict(headers))

    async def repeat(self, text: str, msg_id: str, **headers: str) -> Stored:
        """The same prompt once more, to servers that have forgotten its id."""
        self.mail.forget_ids(lambda: True)
        again = await self.send(text, msg_id, **headers)
        assert not again.duplicate
        return again

    def outcome(self, sent: Stored) -> Outcome | None:
        found = self._results.last_on(self.world.subjects.result("a", str(sent.seq)))
        return None if found is None else wire.decode_outcome(found.data)

    async def ends(self, sent: Stored, seconds: float = 60.0) -> Outcome:
        await self.until(lambda: self.outcome(sent) is not None, seconds)
        outcome = self.outcome(sent)
        assert outcome is not None
        return outcome

    def records(self) -> list[str]:
        journal = self.world.net.server.streams[self.world.subjects.stream("journal")]
        return [decode_record(m.data).kind for m in journal.history if m.subject == self.world.subjects.journal("a")]

    def turns(self) -> int:
        return self.records().count("turn")

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - the world is looked at from outside
                await asyncio.sleep(0.05)

    async def killed_servers(self, *deeds: Callable[[], object]) -> None:
        """All servers are killed, and come back having done `deeds`."""
        self.world.net.stop_server()
        await asyncio.sleep(0.2)
        self.world.net.start_server()
        for deed in deeds:
            deed()
        await asyncio.sleep(1.0)


def play(story: Callable[[Scene], Awaitable[None]], **node: float) -> None:
    async def main(loop: SimLoop) -> None:
        world = World(loop, story.__name__, mailbox_limit=LIMIT)
        Cell.dice, Cell.slowness, Cell.crashed = world.dice("agents"), 0.0, set()
        await world.prepare()
        world.supervisor("s1")
        world.node("n1", **node)

        async def client() -> None:
            async with world.client("c1") as mesh:
                await mesh.start_agent("a", kind="Cell")
                await story(Scene(world, mesh))

        await world.process("c1").spawn(client())
        assert loop.defects == []

    run_sim(main)


# --- ids ------------------------------------------------------------------------------------------------------------
@pytest.mark.case(280)
@pytest.mark.parametrize("lane", ["inbox", "peer-inbox"])
@pytest.mark.parametrize("first", ["answered", "waits", "purged", "answered by another owner", "purged by another owner"])
def test_a_second_message_with_an_id_runs_no_turn_and_gets_the_first_ones_outcome(first: str, lane: str) -> None:
    async def story(it: Scene) -> None:
        if first == "waits":
            await it.mesh.ask("a", "halt L0")
        it.inbox = it.world.subjects.lane(lane, "a")  # of a stranger, or of a user that the gateway knows
        sent = await it.send("add L1", "a.1")
        if first != "waits":
            await it.ends(sent)
        if first.startswith("purged"):
            others = [await it.send(f"add M{number}", f"a.m{number}") for number in range(LIMIT - 2)]
            await it.ends(others[-1])
            await it.until(lambda: it.mail.get(sent.seq) is None)
        if first.endswith("owner"):
            it.world.kill("n1")
            it.world.restart("n1")
        turns = it.turns()
        again = await it.repeat("add L1", "a.1")
        if first == "waits":
            await it.mesh.resume("a")
            turns += 1
        assert (await it.ends(again)).text == (await it.ends(sent)).text == "add L1"
        assert it.turns() == turns

    play(story)


@pytest.mark.case(280)
def test_an_id_is_used_anew_when_the_agent_remembers_it_no_more() -> None:
    async def story(it: Scene) -> None:
        await it.ends(await it.send("add L1", "a.1"))
        await asyncio.sleep(200.0)
        again = await it.send("add L2", "a.1")
        assert not again.duplicate and (await it.ends(again)).text == "add L2"

    play(story)


@pytest.mark.case(281)
def test_an_event_that_comes_twice_with_one_id_is_handled_once() -> None:
    async def story(it: Scene) -> None:
        for _ in range(2):
            it.mail.forget_ids(lambda: True)
            await it.mesh.notify("a", {"label": "E1"}, idempotency_key="e1")
        await it.ends(await it.send("add L1", "a.1"))
        status = await it.mesh.status("a", content=True)
        assert status.agent_state["log"].count("event|-|E1") == 1

    play(story)


@pytest.mark.case(282)
def test_who_cancels_a_repetition_cancels_what_it_repeats() -> None:
    async def story(it: Scene) -> None:
        await it.mesh.ask("a", "halt L0")
        sent = await it.send("add L1", "a.1")
        again = await it.repeat("add L1", "a.1")
        assert await it.mesh.cancel("a", str(again.seq))
        await it.mesh.resume("a")
        codes = [outcome.error.code for message in (sent, again) if (outcome := await it.ends(message)).error]
        assert codes == ["cancelled", "cancelled"]

    play(story)


@pytest.mark.case(282)
@pytest.mark.parametrize("end", ["stop", "deadline", "stop before"])
def test_a_repetition_that_gets_no_turn_ends_as_the_first_one_did(end: str) -> None:
    async def story(it: Scene) -> None:
        deadline = {"Mesh-Deadline": wire.format_time(it.world.net.server.wall() + 5.0)} if end == "deadline" else {}
        sent = await it.send("add L1", "a.1", **deadline)
        assert (await it.ends(sent)).ok
        if end == "stop before":
            started = decode_spec(registry_of(it.world)[spec_key("a")]).incarnation
            await it.mesh.stop("a")
            again = await it.repeat("add L1", "a.1", **{wire.FOR: started})
        else:
            await it.mesh.ask("a", "halt L0")
            again = await it.repeat("add L1", "a.1", **deadline)
            if end == "stop":
                await it.mesh.stop("a")
        assert (await it.ends(again, 100.0)).text == "add L1"
        assert it.turns() <= 2

    play(story)


# --- what was deleted -----------------------------------------------------------------------------------------------
@pytest.mark.case(283)
@pytest.mark.parametrize("passivate_s", [2.0, 300.0])
def test_purged_mail_that_is_back_is_not_read_and_refuses_nobody(passivate_s: float) -> None:
    async def story(it: Scene) -> None:
        for number in range(3 * LIMIT):
            await it.mesh.ask("a", f"add L{number}")
        turns = it.turns()
        await asyncio.sleep(10.0)
        back: list[int] = []
        await it.killed_servers(
            lambda: it.mail.bring_back(lambda: True), lambda: back.append(len(it.mail.view(it.inbox, 0, 0.0)))
        )
        assert back[0] >= LIMIT, "the lane is full"
        await asyncio.sleep(20.0)
        assert (await it.mesh.ask("a", "add last")).text == "add last"
        assert it.turns() == turns + 1

    play(story, passivate_s=passivate_s)


@pytest.mark.case(283)
def test_records_that_are_back_before_a_snapshot_are_no_loss() -> None:
    async def story(it: Scene) -> None:
        for number in range(12):
            await it.mesh.ask("a", f"add L{number}")
        journal = it.world.net.server.streams[it.world.subjects.stream("journal")]
        odd = iter(range(10**6))
        it.world.kill("n1")
        await it.killed_servers(lambda: journal.bring_back(lambda: next(odd) % 2 == 1))
        it.world.restart("n1")
        assert (await it.mesh.ask("a", "add last")).text == "add last"
        assert (await it.mesh.status("a", content=True)).agent_state["count"] == 13

    play(story, snapshot_records=4)


@pytest.mark.case(285)
def test_a_deleted_key_that_is_back_is_known_for_old() -> None:
    async def story(it: Scene) -> None:
        registry = Registry(it.mesh.transport, it.mesh.subjects)
        revision = await registry.create("others.b", b"{}")
        view = View(registry, ["others.*"], resync_s=5.0)
        await view.start()
        assert await registry.delete("others.b", revision)
        await asyncio.sleep(1.0)
        bucket = it.world.net.server.streams[it.mesh.subjects.stream("registry")]
        subject = it.mesh.subjects.registry_key("others.b")
        bucket.purge(subject, 0)  # the marker lapses
        await asyncio.sleep(10.0)
        marker_first = iter((False, *(True for _ in bucket.history)))
        await it.killed_servers(lambda: bucket.bring_back(lambda: next(marker_first)))
        found = bucket.last_on(subject)
        assert found is not None and found.seq == revision
        await asyncio.sleep(20.0)
        assert view.get("others.b") is None
        assert await registry.update("others.b", b"[]", revision)
        await asyncio.sleep(1.0)
        entry = view.get("others.b")
        assert entry is not None and entry.value == b"[]", "a newer one counts"
        await view.close()

    play(story)


@pytest.mark.case(285)
def test_a_lease_that_a_replica_still_shows_counts_for_its_term_only() -> None:
    class Undead(Faults):
        def undead(self) -> bool:
            return True

    async def story(it: Scene) -> None:
        registry = Registry(it.mesh.transport, it.mesh.subjects)
        await registry.create("nodes.n9", b'{"boot":"x"}', ttl_s=3)
        await asyncio.sleep(20.0)
        it.world.net.server.faults = Undead()
        entries, _ = await registry.load("nodes.")
        assert [entry.key for entry in entries] == ["nodes.n1"]

    play(story)


# --- listings -------------------------------------------------------------------------------------------------------
@pytest.mark.case(284)
@pytest.mark.parametrize("missing", [0, 2, 5])
def test_a_record_that_a_listing_lacks_is_read_from_the_leader(missing: int) -> None:
    class Lacking(Faults):
        def lacking(self, count: int) -> int | None:
            return missing if missing < count else None

    async def story(it: Scene) -> None:
        for number in range(8):
            await it.mesh.ask("a", f"add L{number}")
        it.world.net.server.faults = Lacking()
        it.world.kill("n1")
        it.world.restart("n1")
        assert (await it.mesh.ask("a", "add last", timeout=60.0)).text == "add last"
        assert (await it.mesh.status("a", content=True)).agent_state["count"] == 9

    play(story)


@pytest.mark.case(284)
def test_a_key_that_a_listing_lacks_is_not_gone() -> None:
    class Lacking(Faults):
        def lacking(self, count: int) -> int | None:
            return 0

    async def story(it: Scene) -> None:
        registry = Registry(it.mesh.transport, it.mesh.subjects)
        told: list[str] = []
        view = View(registry, ["agents.*"], lambda entry: told.append(f"{entry.key} {entry.value is not None}"), resync_s=5.0)
        await view.start()
        it.world.net.server.faults = Lacking()
        await asyncio.sleep(20.0)
        assert view.get(spec_key("a")) is not None and told == [f"{spec_key('a')} True"]
        await view.close()

    play(story)


# --- timers ---------------------------------------------------------------------------------------------------------
@pytest.mark.case(286)
def test_a_timer_that_fires_twice_is_handled_once() -> None:
    async def story(it: Scene) -> None:
        await it.mesh.ask("a", "timer T1 1.0")
        timers = it.world.net.server.streams[it.world.subjects.stream("timer")]
        due = it.world.subjects.due("a")
        await it.until(lambda: any(m.subject == due for m in timers.history))
        await asyncio.sleep(1.0)
        await it.killed_servers(lambda: timers.fire_again(lambda: True))
        await it.until(lambda: sum(m.subject == due for m in timers.history) == 2)
        await it.ends(await it.send("add L1", "a.1"))
        log = (await it.mesh.status("a", content=True)).agent_state["log"]
        assert log.count("timer|-|T1") == 1

    play(story)
