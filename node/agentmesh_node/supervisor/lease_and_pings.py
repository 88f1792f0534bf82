"""A supervisor's lease and its pings, on a thread and a connection of their own, like a node's heartbeat
(docs/architecture.md#failure-detection).

Reading a hundred thousand keys, or planning for as many agents, keeps a loop busy. Meanwhile the lease must be renewed, pings of
the leader must be answered, and the silence of a node must be measured without delay. So all that runs here, on a `LivenessLoop`;
the supervisor's loop gets the results, and asks whether it leads.

If the supervisor's loop has not turned for `hang_s`, or its own connection has carried nothing for so long, the lead is given
back (`LeaderLease`). A loop that has not turned for `stall_limit_s` ends its process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Set
from typing import Any, NamedTuple

from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.registry import Registry, View
from agentmesh.edge.transport import Disconnected, RequestTimeout, Transport
from agentmesh.subjects import SUPERVISOR_KEY, Subjects
from agentmesh_node.liveness_thread import CHECK_S, LivenessLoop, begin
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.failure_detector import FailureDetector, PingState
from agentmesh_node.supervisor.leader_lease import LeaderLease

log = logging.getLogger("agentmesh.supervisor")

RESTART_S = 0.5
"""Pause before a part of the supervisor that failed begins again."""
PROOFS = 5
"""How many times a healthy supervisor proves that it can act within the time after which it would be replaced."""
_END_S = 10.0


async def keep(part: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a part of the supervisor, again if it fails: no defect in one may end the others, or the process."""
    while True:
        try:
            await part()
            return
        except Exception:
            log.exception("a part of the supervisor failed and begins again", extra={"part": part.__qualname__})
        await asyncio.sleep(RESTART_S)


class PingReport(NamedTuple):
    """The result of a node's pings. `command` numbers the supervisor's newest command at that time."""

    command: int
    ping_state: PingState
    busy: tuple[str, ...]


class LeaseAndPings:
    """The supervisor's side of the lease and the pings. The last three callbacks are called on the supervisor's loop.

    Args:
        may_claim: whether the supervisor's view can be trusted now. Called on the liveness loop, so it must only read.
        on_led: `(leads, reason)`, when this supervisor begins or ceases to lead.
        on_heard: `(node, state)`, when the state of a watched node changes.
        on_gap: when this object's own connection was lost, which may explain the silence of others (case 226).
    """

    def __init__(
        self,
        liveness: LivenessLoop,
        subjects: Subjects,
        supervisor_id: str,
        settings: SupervisorSettings,
        *,
        may_claim: Callable[[], bool],
        on_led: Callable[[bool, str], None],
        on_heard: Callable[[str, PingState], None],
        on_gap: Callable[[], None],
        ambient: Ambient = SYSTEM,
    ) -> None:
        self._liveness = liveness
        self._subjects = subjects
        self._id = supervisor_id
        self._settings = settings
        self._may_claim = may_claim
        self._on_led = on_led
        self._on_heard = on_heard
        self._on_gap = on_gap
        self._ambient = ambient
        # Used on the supervisor's loop.
        self._main = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._main.create_future()
        self._ticker: asyncio.TimerHandle | None = None
        self._term: int | None = None
        """The term for which `on_led` has said that this supervisor leads."""
        self._commands = 0
        self._since: dict[str, int] = {}
        """Watched node -> number of the command before which reports of it no longer count."""
        self._known: dict[str, PingReport] = {}
        self._heard_of = asyncio.Event()
        # Written on one loop and read on the other, each whole.
        self._ticked = self._reached = ambient.monotonic()
        self._leaving = False
        self._reports: dict[str, PingReport] = {}
        """The newest report of each node: put in on the liveness loop, taken out on the supervisor's."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leader_lease: LeaderLease | None = None
        # Used on the liveness loop.
        self._leave: asyncio.Event
        self._detector: FailureDetector
        self._command_done = 0

    # --- on the supervisor's loop -----------------------------------------------------------------------------------
    async def start(self) -> None:
        """Return when it has a connection and knows the leader. Nothing is watched before.

        Raises:
            Unavailable: the registry cannot be read now.
        """
        self._tick()
        await begin(self._liveness, f"lease-and-pings {self._id}", self._run, self._started, "the leader's lease cannot be read")

    async def close(self) -> None:
        """Give the lead back, if this supervisor has it, and end."""
        self._leaving = True
        if self._loop is not None:
            self._command(self._leave.set)
        await self._liveness.join(_END_S)
        if self._ticker is not None:
            self._ticker.cancel()

    @property
    def leads(self) -> bool:
        """Whether this supervisor leads: it has the lease, renewed it within its TTL by its own clock, and knows of it.

        After a loss it is True again only once `on_led` has reported both the loss and the new lead.
        """
        leader_lease = self._leader_lease
        return leader_lease is not None and leader_lease.term == self._term and leader_lease.leads

    @property
    def leader(self) -> str | None:
        """Id of the supervisor that holds the lease, as last seen."""
        return self._leader_lease.leader if self._leader_lease is not None else None

    async def prove(self, transport: Transport) -> None:
        """Prove repeatedly, until cancelled, that the supervisor can act: its own connection reaches a server."""
        pause = self._settings.hang_s / PROOFS
        while True:
            try:
                await transport.flush(timeout=self._settings.hang_s)
                self._reached = self._ambient.monotonic()
            except (Disconnected, RequestTimeout):
                log.debug("the supervisor's connection reaches no server")
            await asyncio.sleep(pause)

    def watch(self, nodes: Set[str]) -> None:
        """Ping exactly these nodes from now on."""
        if nodes == self._since.keys():
            return
        wanted = frozenset(nodes)
        command = self._command(lambda: self._detector.watch(wanted))
        self._since = {node: self._since.get(node, command) for node in sorted(wanted)}
        self._known = {node: report for node, report in self._known.items() if node in wanted}

    def ping_state(self, node: str) -> PingState:
        """The state of a node; `UNKNOWN` if it is not watched."""
        report = self._known.get(node)
        return PingState.UNKNOWN if report is None else report.ping_state

    def busy(self, node: str) -> tuple[str, ...]:
        """Agents of a node that were in a turn at its last answer. Many of them still are, because turns are long."""
        report = self._known.get(node)
        return () if report is None else report.busy

    def forget(self, node: str) -> None:
        """Forget what is known of a node, because another process has taken its id. A ping in flight no longer counts."""
        if node in self._since:
            self._since[node] = self._command(lambda: self._detector.forget(node))
            self._known.pop(node, None)

    def forget_all(self) -> None:
        """Forget what is known of all nodes: our own connection was lost, which may explain their silence."""
        command = self._command(self._forget_all)
        self._since = dict.fromkeys(self._since, command)
        self._known.clear()

    async def heard_all(self, timeout: float) -> bool:
        """Wait until pings of all watched nodes have a result. False if that takes longer than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while any(self.ping_state(node) is PingState.UNKNOWN for node in self._since):
                    self._heard_of.clear()
                    await self._heard_of.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Check again whether this supervisor should lead: its view has become fresh, or stale."""
        self._command(lambda: self._leader_lease.wake() if self._leader_lease is not None else None)

    def _command(self, action: Callable[[], object]) -> int:
        """Run `action` on the liveness loop. Returns the command's number: reports after it bear that number or a higher one."""
        self._commands += 1
        number = self._commands

        def act() -> None:
            self._command_done = number
            action()

        if self._loop is not None:
            _post(self._loop, act)
        return number

    def _tick(self) -> None:
        self._ticked = self._ambient.monotonic()
        self._ticker = self._main.call_later(CHECK_S, self._tick)

    def _take_reports(self) -> None:
        while self._reports:
            node, report = self._reports.popitem()
            if node in self._since and report.command >= self._since[node]:
                self._known[node] = report
                self._heard_of.set()
                self._on_heard(node, report.ping_state)

    def _led(self, leads: bool, reason: str, term: int) -> None:
        self._term = term if leads else None
        self._on_led(leads, reason)

    def _report_start(self, error: Exception | None) -> None:
        if self._started.done():
            return
        if error is None:
            self._started.set_result(None)
        else:
            self._started.set_exception(error)

    # --- on the liveness loop ---------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            await self._connect_and_run()
        except Exception as failure:
            level = logging.ERROR if self._started.done() else logging.DEBUG  # else `start` raises it
            log.log(level, "lease and pings ended", exc_info=failure)
            self._post_to_main(self._report_start, failure)

    async def _connect_and_run(self) -> None:
        settings = self._settings
        transport = await self._liveness.connect(f"mesh-lease-and-pings-{self._id}")
        try:
            ping = {"period_s": settings.ping_period_s, "grace_s": settings.grace_s}
            self._detector = FailureDetector(transport, self._subjects, **ping, on_change=self._heard)
            registry = Registry(transport, self._subjects)
            leader = FailureDetector(transport, self._subjects, **ping, on_change=lambda _leader, _hearing: leader_lease.wake())
            leader_lease = LeaderLease(
                registry,
                leader,
                supervisor_id=self._id,
                ttl_s=settings.lease_ttl_s,
                may_claim=self._may_claim,
                at_work=self._at_work,
                on_change=lambda leads, reason: self._post_to_main(self._led, leads, reason, leader_lease.term),
                ambient=self._ambient,
            )
            view = View(registry, (SUPERVISOR_KEY,), leader_lease.observe)
            await view.start()
            try:
                leader_lease.observe(view.get(SUPERVISOR_KEY))
                transport.on_gap(lambda: self._cut_off(leader, leader_lease))
                await self._serve(leader, leader_lease)
            finally:
                await view.close()
        finally:
            await transport.close()

    async def _serve(self, leader: FailureDetector, leader_lease: LeaderLease) -> None:
        self._leave = asyncio.Event()
        self._leader_lease = leader_lease
        self._loop = asyncio.get_running_loop()
        self._post_to_main(self._report_start, None)
        parts = (self._detector.run, leader.run, leader_lease.run, self._watch_main_loop)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(keep(part)) for part in parts]
            if not self._leaving:
                await self._leave.wait()
            for task in tasks:
                task.cancel()
        await leader_lease.resign()

    async def _watch_main_loop(self) -> None:
        """Check regularly whether the supervisor's loop turns."""
        while True:
            await asyncio.sleep(CHECK_S)
            stalled = self._stalled()
            if stalled > self._settings.stall_limit_s:
                log.critical("the loop hangs; the process ends", extra={"seconds": round(stalled, 1)})
                self._liveness.end_process()
            elif self._leader_lease is not None and not self._at_work():
                self._leader_lease.wake()

    def _stalled(self) -> float:
        """Seconds for which the supervisor's loop has not turned."""
        return self._ambient.monotonic() - self._ticked

    def _at_work(self) -> bool:
        """Whether the supervisor has recently proved that it can act."""
        silent = self._ambient.monotonic() - self._reached
        return max(self._stalled(), silent) <= self._settings.hang_s

    def _heard(self, node: str, ping_state: PingState) -> None:
        self._reports[node] = PingReport(self._command_done, ping_state, self._detector.busy(node))
        self._post_to_main(self._take_reports)

    def _forget_all(self) -> None:
        self._detector.forget_all()

    def _cut_off(self, leader: FailureDetector, leader_lease: LeaderLease) -> None:
        self._forget_all()
        leader.forget_all()
        leader_lease.wake()
        self._post_to_main(self._on_gap)

    def _post_to_main[*Ts](self, action: Callable[[*Ts], object], *args: *Ts) -> None:
        _post(self._main, action, *args)


def _post[*Ts](loop: asyncio.AbstractEventLoop, action: Callable[[*Ts], object], *args: *Ts) -> None:
    try:
        loop.call_soon_threadsafe(action, *args)
    except RuntimeError:
        log.debug("the other side has ended")
