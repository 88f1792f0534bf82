"""What the simulation has found, each as a small world of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import msgspec
import pytest

from agentmesh import wire
from agentmesh.backend import Event, Turn
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.errors import MeshError
from agentmesh.records import Ledger, decode_record
from agentmesh.registry_values import Restart, Spec
from agentmesh.subjects import spec_key
from agentmesh.turn import advance, new_core
from agentmesh.turn.values import Config, Stop
from agentmesh.wire import ErrorBody
from agentmesh_client.client import Mesh
from sim.agents import Cell
from sim.faults import Chances, ServerFaults
from sim.loop import SimLoop, run_sim
from sim.run import registry_of
from sim.server import Faults
from sim.world import World

type Play = Callable[[World, Mesh], Awaitable[None]]


def _play(play: Play, *, mailbox_limit: int = 1000, **node: Any) -> None:
    """Run `play` in a world of one supervisor, one node and one client."""

    async def main(loop: SimLoop) -> None:
        world = World(loop, play.__name__, mailbox_limit=mailbox_limit)
        Cell.dice, Cell.slowness, Cell.crashed = world.dice("agents"), 0.0, set()
        await world.prepare()
        world.supervisor("s1")
        world.node("n1", **node)

        async def client() -> None:
            async with world.client("c1") as mesh:
                await play(world, mesh)

        await world.process("c1").spawn(client())
        assert loop.defects == []

    run_sim(main)


def _spec(world: World, name: str) -> Spec:
    return decode_spec(registry_of(world)[spec_key(name)])


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the world is looked at from outside
            await asyncio.sleep(0.05)


def _records(world: World, name: str) -> list[str]:
    stream = world.net.server.streams[world.subjects.stream("journal")]
    return [decode_record(m.data).kind for m in stream.history if m.subject == world.subjects.journal(name)]


def test_a_node_thought_lost_that_goes_on_shows_its_agents_as_running_again() -> None:
    async def play(world: World, mesh: Mesh) -> None:
        await mesh.start_agent("a", kind="Cell")
        world.net.cut_off("mesh-heartbeat-n1")
        shown = world.net.server.streams[world.subjects.stream("registry")].history
        key = world.subjects.registry_key(spec_key("a"))
        before = len(shown)
        # The owner, which goes on, puts that right within a millisecond.
        await _until(lambda: any(b'"status":"wanted"' in m.data for m in shown[before:] if m.subject == key), 20)
        world.net.heal("mesh-heartbeat-n1")
        await _until(lambda: _spec(world, "a").status == "running", 10)

    _play(play)


def test_an_agent_is_not_put_to_sleep_before_the_registry_shows_it_as_running() -> None:
    async def play(world: World, mesh: Mesh) -> None:
        faults = ServerFaults(world.dice("faults"), Chances())
        world.net.server.faults = faults
        await mesh.start_agent("a", kind="Cell", wait=False)
        await _until(lambda: "activated" in _records(world, "a"), 10)
        faults.leaderless.add(world.subjects.stream("registry"))
        await asyncio.sleep(10)
        faults.leaderless.clear()
        await _until(lambda: _spec(world, "a").status == "running", 10)

    _play(play, passivate_s=1.0)


def test_a_status_that_a_former_owner_writes_late_is_put_right() -> None:
    async def play(world: World, mesh: Mesh) -> None:
        await mesh.start_agent("a", kind="Cell", restart=Restart(max=0))
        await mesh.tell("a", "boom L1")
        await _until(lambda: _spec(world, "a").status == "failed", 10)
        registry = Registry(mesh.transport, world.subjects)
        entry = await registry.get(spec_key("a"))
        assert entry is not None
        false = msgspec.structs.replace(decode_spec(entry), status="running", reason=None)
        await registry.update(spec_key("a"), wire.encode(false), entry.revision)
        await _until(lambda: _spec(world, "a").status == "failed", 10)
        assert await mesh.resume("a")

    _play(play)


def test_an_agent_gets_an_owner_although_the_leader_missed_both_its_placement_and_the_end_of_that() -> None:
    class Deaf(Faults):
        def copies(self, subject: str) -> int:
            return 0 if subject.startswith("mesh.registry.placements.") else 1

    async def play(world: World, mesh: Mesh) -> None:
        world.net.server.faults = Deaf()
        await mesh.start_agent("a", kind="Cell", wait=False)
        key = "placements.n1.a"
        await _until(lambda: key in registry_of(world), 10)
        assert await Registry(mesh.transport, world.subjects).delete(key, registry_of(world)[key].revision)
        world.net.server.faults = Faults()
        await _until(lambda: _spec(world, "a").status == "running", 60)

    _play(play)


@pytest.mark.case(101)
def test_a_stop_sweeps_what_lagging_replicas_do_not_show_yet() -> None:
    class Lagging(Faults):
        def lag(self) -> float:
            return 0.5

    async def play(world: World, mesh: Mesh) -> None:
        await mesh.start_agent("a", kind="Cell")
        await mesh.tell("a", "halt L1")
        world.net.server.faults = Lagging()
        ref = await mesh.tell("a", "add L2")
        await mesh.stop("a")
        results = world.net.server.streams[world.subjects.stream("result")]
        stored = results.last_on(world.subjects.result("a", ref))
        assert stored is not None
        outcome = wire.decode_outcome(stored.data)
        assert outcome.error is not None and outcome.error.code == "stopped"

    _play(play)


def test_a_stop_that_the_journal_says_already_is_not_said_again() -> None:
    ledger = Ledger(incarnation="i", phase="stopped")
    core = new_core(Config(name="a", kind="Cell"), ledger, record="stopped")
    after, commands = advance(core, Stop(ErrorBody(code="stopped")), 0.0)
    assert commands == []
    assert after.inflight is None


def test_mail_for_a_life_that_has_ended_is_answered_although_it_comes_behind_the_last_sweep() -> None:
    async def play(world: World, mesh: Mesh) -> None:
        started = await mesh.start_agent("a", kind="Cell")
        await mesh.stop("a")
        headers = {wire.FOR: started.incarnation}
        late = await store(mesh.transport, world.subjects.inbox("a"), b"add L1", headers=headers)
        results = world.net.server.streams[world.subjects.stream("result")]
        await _until(lambda: results.last_on(world.subjects.result("a", str(late.seq))) is not None, 100)
        await _until(lambda: _records(world, "a")[-2:] == ["swept", "tombstone"], 10)
        await mesh.start_agent("a", kind="Cell")  # the next life knows that this mail is gone
        assert (await mesh.ask("a", "add L2")).text == "add L2"
        with pytest.raises(MeshError):
            await mesh.stop("b")

    _play(play)


def test_a_node_whose_second_connection_breaks_while_it_starts_tries_again() -> None:
    """Seed 5065: its start had ended with a raw error."""

    async def play(world: World, mesh: Mesh) -> None:
        world.node("n2")

        def asked() -> bool:  # the heartbeat waits for the server to have its subscription
            links = world.net._links_named("mesh-heartbeat-n2")
            return any(key.startswith("pong ") for link in links for key in link.transport._waiting)

        async with asyncio.timeout(10):
            while not asked():  # noqa: ASYNC110 - the world is looked at from outside, and this does not take long
                await asyncio.sleep(0.0001)
        begun = world.nodes["n2"]
        world.net.reset("mesh-heartbeat-n2")
        async with asyncio.timeout(20):
            while [node.id for node in await mesh.nodes()] != ["n1", "n2"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert world.nodes["n2"] is begun, "it had to be started again"

    _play(play)


class Held(Cell):
    """A cell whose turns wait for their gate. `quick L` asks `b` three times, with too little time, and `c` then."""

    gates: ClassVar[dict[str, asyncio.Event]] = {}

    async def script(prompt: str, turn: Turn) -> AsyncIterator[Event]:  # type: ignore[misc]
        if prompt.startswith("quick "):
            asks = [turn.steps.ask(f"b{n}", "b", f"add b{n}", timeout_s=2.0) for n in range(3)]
            for outcome in await asyncio.gather(*asks):
                assert outcome.error is not None and outcome.error.code == "timeout"
            yield Event.result(f"{prompt} {(await turn.steps.ask('c', 'c', 'add c', timeout_s=600.0)).text}")
        else:
            await Held.gates[turn.agent].wait()
            yield Event.result(prompt)


@pytest.mark.case(581)
def test_answers_that_come_too_late_do_not_fill_the_lane_of_the_one_that_a_turn_waits_for() -> None:
    """Seeds 100555 and 102001: they waited for the end of the turn, and the turn for the answer that found no room."""

    async def play(world: World, mesh: Mesh) -> None:
        Held.gates = {name: asyncio.Event() for name in ("b", "c")}
        for name in ("a", "b", "c"):
            await mesh.start_agent(name, kind="Held")
        asking = asyncio.create_task(mesh.ask("a", "quick L1", timeout=60))
        mail = world.net.server.streams[world.subjects.stream("mail")]
        await _until(lambda: sum(m.subject == world.subjects.lane("peer-answer", "a") for m in mail.history) == 3, 30)
        Held.gates["c"].set()
        assert (await asking).text == "quick L1 add c"

    _play(play, mailbox_limit=3, agents={"Held": Held})


@pytest.mark.case(582)
def test_the_caller_whose_request_to_set_comes_twice_is_told_when_the_agent_is_changed() -> None:
    """Seed 101563: told at once that it waits for the turn's end, the client took that for the change; then the node died."""

    class Doubling(Faults):
        def copies(self, subject: str) -> int:
            return 2 if subject == "mesh.live.control.a" else 1

    async def play(world: World, mesh: Mesh) -> None:
        Held.gates = {"a": asyncio.Event()}
        await mesh.start_agent("a", kind="Held")
        world.net.server.faults = Doubling()
        asking = asyncio.create_task(mesh.ask("a", "add L1"))
        setting = asyncio.create_task(mesh.update_agent("a", watchdog_s=50.0))
        await asyncio.sleep(5)
        assert not setting.done()
        Held.gates["a"].set()
        update = await setting
        assert update.changed and update.configuration is not None and update.configuration.watchdog_s == 50.0
        assert (await asking).text == "add L1" and _records(world, "a").count("set") == 1

    _play(play, agents={"Held": Held})
