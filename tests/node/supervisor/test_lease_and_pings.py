"""A supervisor whose own loop is busy: it keeps the lead and hears of its nodes; one that hangs is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from agentmesh.edge.connection import connect
from agentmesh.edge.transport import RequestTimeout
from agentmesh.subjects import SUPERVISOR_KEY, Subjects
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.failure_detector import PingState
from agentmesh_node.supervisor.lease_and_pings import LeaseAndPings
from agentmesh_node.supervisor.supervisor import Supervisor
from supervised import Mesh, RecordingLivenessThread, running
from support import Faulty, Server, eventually, run

BOUND_S = 60.0
PATIENCE_S = 120.0
LONG_S = 600.0


class StallingConnection(Faulty):
    """A connection that carries nothing for a while, and does not end."""

    held = False

    async def flush(self, timeout: float = 5.0) -> None:
        if self.held:
            raise RequestTimeout
        await super().flush(timeout)


class SupervisorThread:
    """A supervisor on a loop and a thread of its own, so that a test can hold that loop up and look on."""

    def __init__(self, mesh: Mesh, name: str, settings: SupervisorSettings) -> None:
        self.supervisor: Supervisor
        self.transport: StallingConnection
        self.liveness = RecordingLivenessThread(mesh.url)
        self._mesh = mesh
        self._name = name
        self._settings = settings
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._released = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name=f"loop of {name}")

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        transport = await connect(self._mesh.url, name=self._name)
        try:
            self.transport = StallingConnection(transport)
            self.supervisor = Supervisor(self.transport, self._mesh.subjects, self._name, self._settings, liveness=self.liveness)
            await self.supervisor.start()
            self._started.set()
            await self.supervisor.run_until_stopped()
        finally:
            await transport.close()

    async def start(self) -> None:
        self._thread.start()
        assert await asyncio.to_thread(self._started.wait, PATIENCE_S)
        await eventually(lambda: self.supervisor.leads)

    async def block(self) -> None:
        """Hold the loop up, as a long computation on it does, until `release`."""
        blocked = threading.Event()

        def hold() -> None:
            blocked.set()
            assert self._released.wait(BOUND_S)

        self._loop.call_soon_threadsafe(hold)
        assert await asyncio.to_thread(blocked.wait, PATIENCE_S)

    def release(self) -> None:
        self._released.set()

    async def close(self) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self.supervisor.stop)
        await asyncio.to_thread(self._thread.join, PATIENCE_S)
        assert not self._thread.is_alive()


@contextlib.asynccontextmanager
async def beside(mesh: Mesh, name: str, **settings: Any) -> AsyncIterator[SupervisorThread]:
    leader = SupervisorThread(mesh, name, SupervisorSettings(**settings))
    await leader.start()
    try:
        yield leader
    finally:
        await leader.close()


def test_a_leader_whose_loop_is_busy_for_longer_than_its_lease_lasts_keeps_the_lead(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh, beside(mesh, "s1", lease_ttl_s=1, hang_s=LONG_S) as leader:
            standby = await mesh.supervisor("s2")
            await mesh.node("n1")
            await leader.block()
            before = mesh.view.entries[SUPERVISOR_KEY].revision
            renewals = set[int]()

            def renewed_for_three_seconds() -> bool:
                entry = mesh.view.get(SUPERVISOR_KEY)
                assert entry is not None, "the lease lapsed"
                renewals.add(entry.revision)
                return len(renewals - {before}) >= 9  # every third of its second

            await eventually(renewed_for_three_seconds, PATIENCE_S, "the lease being renewed")
            assert standby.leader == "s1"
            assert not standby.leads
            assert leader.supervisor.leads
            await mesh.want("a")
            leader.release()
            await mesh.placed("a", "n1")
            assert not standby.leads

    run(scenario(), BOUND_S)


def test_a_leader_whose_loop_hangs_is_replaced_although_its_lease_would_last(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh, beside(mesh, "s1", lease_ttl_s=60, hang_s=0.5) as leader:
            standby = await mesh.supervisor("s2", lease_ttl_s=60)
            await mesh.node("n1")
            await leader.block()
            await eventually(lambda: standby.leads, PATIENCE_S, "the standby leading")
            assert not leader.supervisor.leads
            await mesh.want("a")
            await mesh.placed("a", "n1")
            generation = mesh.generation("n1", "a")
            leader.release()
            await eventually(lambda: leader.supervisor.leader == "s2")
            assert not leader.supervisor.leads
            await mesh.want("b")
            await mesh.placed("b", "n1")
            assert mesh.generation("n1", "a") == generation

    run(scenario(), BOUND_S)


def test_a_leader_that_hung_with_nobody_to_replace_it_leads_again(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh, beside(mesh, "s1", hang_s=0.5) as leader:
            await mesh.node("n1")
            await leader.block()
            await mesh.until(lambda: mesh.view.get(SUPERVISOR_KEY) is None, what="the lease given back")
            assert not leader.supervisor.leads
            await mesh.want("a")
            leader.release()
            await mesh.placed("a", "n1")
            assert leader.supervisor.leads

    run(scenario(), BOUND_S)


def test_a_leader_whose_own_connection_carries_nothing_is_replaced(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh, beside(mesh, "s1", lease_ttl_s=60, hang_s=1.0) as leader:
            standby = await mesh.supervisor("s2", lease_ttl_s=60)
            leader.transport.held = True
            await eventually(lambda: standby.leads, PATIENCE_S, "the standby leading")
            assert not leader.supervisor.leads
            leader.transport.held = False
            await standby.close()
            await eventually(lambda: leader.supervisor.leads, PATIENCE_S, "the former leader leading again")

    run(scenario(), BOUND_S)


def test_pings_go_on_while_the_leaders_loop_is_busy_and_nobody_is_suspected_afterwards(
    server: Server, subjects: Subjects
) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh, beside(mesh, "s1", hang_s=LONG_S) as leader:
            gone: list[str] = []
            await mesh.transport.subscribe(subjects.event("_supervisor", "node_gone"), lambda m: gone.append(m.subject))
            await mesh.transport.flush()
            node = await mesh.node("n1")
            await mesh.want("a")
            await mesh.placed("a", "n1")
            await eventually(lambda: node.pings > 0)
            generation = mesh.generation("n1", "a")
            await leader.block()
            begun = node.pings
            await eventually(lambda: node.pings >= begun + 20, PATIENCE_S, "pings")
            leader.release()
            await mesh.want("b")
            await mesh.placed("b", "n1")
            assert mesh.generation("n1", "a") == generation
            assert gone == []

    run(scenario(), BOUND_S)


def test_a_loop_that_hangs_for_good_ends_its_process(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with running(server, subjects) as mesh, beside(mesh, "s1", hang_s=0.3, stall_limit_s=0.6) as leader:
            assert not leader.liveness.ended.is_set()
            await leader.block()
            assert await asyncio.to_thread(leader.liveness.ended.wait, PATIENCE_S)

    run(scenario(), BOUND_S)


# --- orders and news ----------------------------------------------------------------------------------------------
class Nobody:
    """Stands for the detector."""

    def watch(self, ids: object) -> None: ...
    def forget(self, node: str) -> None: ...
    def forget_all(self) -> None: ...
    def busy(self, node: str) -> tuple[str, ...]:
        return ()


def test_what_was_heard_before_an_order_was_carried_out_does_not_count() -> None:
    async def scenario() -> None:
        told: list[tuple[str, PingState]] = []
        parts = LeaseAndPings(
            LivenessThread("nats://127.0.0.1:1"),  # never started
            Subjects(),
            "s1",
            SupervisorSettings(),
            may_claim=lambda: True,
            on_led=lambda leads, reason: None,
            on_heard=lambda node, ping_state: told.append((node, ping_state)),
            on_gap=lambda: None,
        )
        parts._loop, parts._detector = asyncio.get_running_loop(), Nobody()  # type: ignore[assignment]

        async def hear(ping_state: PingState) -> PingState:
            parts._heard("n1", ping_state)
            await asyncio.sleep(0)
            return parts.ping_state("n1")

        assert await hear(PingState.DEAD) is PingState.UNKNOWN, "it is not watched"
        parts.watch({"n1"})
        await asyncio.sleep(0)
        assert await hear(PingState.DEAD) is PingState.DEAD

        def watch_anew() -> None:
            parts.watch(set())
            parts.watch({"n1"})

        orders: list[Callable[[], None]] = [partial(parts.forget, "n1"), parts.forget_all, watch_anew]
        for forget in orders:
            parts._heard("n1", PingState.DEAD)  # on its way when the order is given
            forget()
            await asyncio.sleep(0)
            assert parts.ping_state("n1") is PingState.UNKNOWN
            assert await hear(PingState.ANSWERS) is PingState.ANSWERS
        assert told == [("n1", PingState.DEAD)] + [("n1", PingState.ANSWERS)] * 3

        parts._heard("n1", PingState.SILENT)
        parts._heard("n1", PingState.DEAD)
        parts._heard("n1", PingState.ANSWERS)
        await asyncio.sleep(0)
        assert told[-2:] == [("n1", PingState.ANSWERS)] * 2, "only the newest counts for a loop that comes late"

    run(scenario())
