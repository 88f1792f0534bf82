"""A supervisor's lease and its pings, on a thread and a connection of their own, as a node's heartbeat
(docs/architecture.md#failure-detection).

To read a hundred thousand keys or to plan for as many agents keeps a loop busy. Meanwhile the lease must be renewed, the leader
must be heard, and the silence of a node must be judged by what was really heard when. So all that runs here, on a `LivenessLoop`;
the supervisor's loop is told of the results, and asks whether it leads.

The supervisor may be late, not gone: when its loop has not turned for `hang_s`, or its own connection has carried nothing for so
long, it gives the lead back (`LeaderLease`). A loop that has not turned for `stall_limit_s` ends its process.
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

logger = logging.getLogger("agentmesh.supervisor")

RESTART_S = 0.5
"""Pause before a part of the supervisor that failed begins again."""
PROOFS = 5
"""How often a supervisor that is well shows so, in the time after which it would be replaced."""
_END_S = 10.0


async def keep(part: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a part of the supervisor, again if it fails: no defect in one may end the others, or the process."""
    while True:
        try:
            await part()
            return
        except Exception:
            logger.exception("a part of the supervisor failed and begins again", extra={"part": part.__qualname__})
        await asyncio.sleep(RESTART_S)


class PingReport(NamedTuple):
    """What was heard of a node. `order` numbers the supervisor's newest order at that time."""

    order: int
    hearing: PingState
    busy: tuple[str, ...]


class LeaseAndPings:
    """Used on the supervisor's loop, where the three callbacks are called too.

    Args:
        may_claim: whether the supervisor's view can be trusted now. Called on the carrier: it only reads.
        on_led: `(leads, reason)`, when this supervisor begins or ceases to lead.
        on_heard: `(node, hearing)`, when something else is heard of a node that is watched.
        on_gap: when the lookout's own connection was lost, so that silence was perhaps its own (case 226).
    """

    def __init__(
        self,
        carrier: LivenessLoop,
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
        self._carrier = carrier
        self._subjects = subjects
        self._id = supervisor_id
        self._settings = settings
        self._may_claim = may_claim
        self._on_led = on_led
        self._on_heard = on_heard
        self._on_gap = on_gap
        self._ambient = ambient
        # Of the supervisor's loop.
        self._main = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._main.create_future()
        self._ticker: asyncio.TimerHandle | None = None
        self._term: int | None = None
        """The term in which this supervisor has been told that it leads."""
        self._orders = 0
        self._since: dict[str, int] = {}
        """Node that is watched -> the order behind which news of it count."""
        self._known: dict[str, PingReport] = {}
        self._heard_of = asyncio.Event()
        # Written on one side and read on the other, each whole.
        self._ticked = self._reached = ambient.monotonic()
        self._leaving = False
        self._news: dict[str, PingReport] = {}
        """The newest of each node. The carrier puts in, the supervisor's loop takes out."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leadership: LeaderLease | None = None
        # Of the carrier.
        self._leave: asyncio.Event
        self._pinger: FailureDetector
        self._order_done = 0

    # --- on the supervisor's loop -----------------------------------------------------------------------------------
    async def start(self) -> None:
        """Return when it has a connection and knows who leads. Nothing is watched before.

        Raises:
            Unavailable: the registry cannot be read now.
        """
        self._tick()
        await begin(self._carrier, f"lookout {self._id}", self._run, self._started, "the leader's lease cannot be read")

    async def close(self) -> None:
        """Give the lead back, if this supervisor has it, and end."""
        self._leaving = True
        if self._loop is not None:
            self._order(self._leave.set)
        await self._carrier.join(_END_S)
        if self._ticker is not None:
            self._ticker.cancel()

    @property
    def leads(self) -> bool:
        """Whether this supervisor leads: it has the lease, renewed it within its TTL by its own clock, and knows of it.

        Once lost it is not had again before `on_led` has told of both.
        """
        leadership = self._leadership
        return leadership is not None and leadership.term == self._term and leadership.leads

    @property
    def leader(self) -> str | None:
        """Id of the supervisor that holds the lease, as last seen."""
        return self._leadership.leader if self._leadership is not None else None

    async def prove(self, transport: Transport) -> None:
        """Show again and again, until cancelled, that the supervisor can act: its own connection reaches a server."""
        pause = self._settings.hang_s / PROOFS
        while True:
            try:
                await transport.flush(timeout=self._settings.hang_s)
                self._reached = self._ambient.monotonic()
            except (Disconnected, RequestTimeout):
                logger.debug("the supervisor's connection reaches no server")
            await asyncio.sleep(pause)

    def watch(self, nodes: Set[str]) -> None:
        """Ping exactly these nodes from now on."""
        if nodes == self._since.keys():
            return
        wanted = frozenset(nodes)
        order = self._order(lambda: self._pinger.watch(wanted))
        self._since = {node: self._since.get(node, order) for node in sorted(wanted)}
        self._known = {node: news for node, news in self._known.items() if node in wanted}

    def hearing(self, node: str) -> PingState:
        """What is known of a node; `UNKNOWN` if it is not watched."""
        news = self._known.get(node)
        return PingState.UNKNOWN if news is None else news.hearing

    def busy(self, node: str) -> tuple[str, ...]:
        """Agents of a node that were in a turn when it last said so: many of them still are, for turns are long."""
        news = self._known.get(node)
        return () if news is None else news.busy

    def forget(self, node: str) -> None:
        """Judge a node anew: another process has taken its id. A ping on its way no longer counts."""
        if node in self._since:
            self._since[node] = self._order(lambda: self._pinger.forget(node))
            self._known.pop(node, None)

    def forget_all(self) -> None:
        """Judge everybody anew: our own connection was lost, so silence was ours."""
        order = self._order(self._forget_all)
        self._since = dict.fromkeys(self._since, order)
        self._known.clear()

    async def heard_all(self, timeout: float) -> bool:
        """Wait until a ping of everyone watched has come to a result; False if that took longer than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while any(self.hearing(node) is PingState.UNKNOWN for node in self._since):
                    self._heard_of.clear()
                    await self._heard_of.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Look again whether this supervisor should lead: its view is fresh again, or no longer."""
        self._order(lambda: self._leadership.wake() if self._leadership is not None else None)

    def _order(self, action: Callable[[], object]) -> int:
        """Have `action` done on the carrier. Returns its number: what is heard behind it bears that, or a higher one."""
        self._orders += 1
        order = self._orders

        def act() -> None:
            self._order_done = order
            action()

        if self._loop is not None:
            _post(self._loop, act)
        return order

    def _tick(self) -> None:
        self._ticked = self._ambient.monotonic()
        self._ticker = self._main.call_later(CHECK_S, self._tick)

    def _take_news(self) -> None:
        while self._news:
            node, news = self._news.popitem()
            if node in self._since and news.order >= self._since[node]:
                self._known[node] = news
                self._heard_of.set()
                self._on_heard(node, news.hearing)

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

    # --- on the carrier -----------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            await self._live()
        except Exception as failure:
            level = logging.ERROR if self._started.done() else logging.DEBUG  # else `start` raises it
            logger.log(level, "the lookout ended", exc_info=failure)
            self._tell(self._report_start, failure)

    async def _live(self) -> None:
        settings = self._settings
        transport = await self._carrier.connect(f"mesh-lookout-{self._id}")
        try:
            ping = {"period_s": settings.ping_period_s, "grace_s": settings.grace_s}
            self._pinger = FailureDetector(transport, self._subjects, **ping, on_change=self._heard)
            registry = Registry(transport, self._subjects)
            leader = FailureDetector(transport, self._subjects, **ping, on_change=lambda _leader, _hearing: leadership.wake())
            leadership = LeaderLease(
                registry,
                leader,
                supervisor_id=self._id,
                ttl_s=settings.lease_ttl_s,
                may_claim=self._may_claim,
                at_work=self._at_work,
                on_change=lambda leads, reason: self._tell(self._led, leads, reason, leadership.term),
                ambient=self._ambient,
            )
            view = View(registry, (SUPERVISOR_KEY,), leadership.observe)
            await view.start()
            try:
                leadership.observe(view.get(SUPERVISOR_KEY))
                transport.on_gap(lambda: self._cut_off(leader, leadership))
                await self._serve(leader, leadership)
            finally:
                await view.close()
        finally:
            await transport.close()

    async def _serve(self, leader: FailureDetector, leadership: LeaderLease) -> None:
        self._leave = asyncio.Event()
        self._leadership = leadership
        self._loop = asyncio.get_running_loop()
        self._tell(self._report_start, None)
        parts = (self._pinger.run, leader.run, leadership.run, self._mind)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(keep(part)) for part in parts]
            if not self._leaving:
                await self._leave.wait()
            for task in tasks:
                task.cancel()
        await leadership.resign()

    async def _mind(self) -> None:
        """Look whether the supervisor's loop turns."""
        while True:
            await asyncio.sleep(CHECK_S)
            stalled = self._stalled()
            if stalled > self._settings.stall_limit_s:
                logger.critical("the loop hangs; the process ends", extra={"seconds": round(stalled, 1)})
                self._carrier.end_process()
            elif self._leadership is not None and not self._at_work():
                self._leadership.wake()

    def _stalled(self) -> float:
        """Seconds for which the supervisor's loop has not turned."""
        return self._ambient.monotonic() - self._ticked

    def _at_work(self) -> bool:
        """Whether the supervisor can act, as far as it has shown that of late."""
        silent = self._ambient.monotonic() - self._reached
        return max(self._stalled(), silent) <= self._settings.hang_s

    def _heard(self, node: str, hearing: PingState) -> None:
        self._news[node] = PingReport(self._order_done, hearing, self._pinger.busy(node))
        self._tell(self._take_news)

    def _forget_all(self) -> None:
        self._pinger.forget_all()

    def _cut_off(self, leader: FailureDetector, leadership: LeaderLease) -> None:
        self._forget_all()
        leader.forget_all()
        leadership.wake()
        self._tell(self._on_gap)

    def _tell[*Ts](self, action: Callable[[*Ts], object], *args: *Ts) -> None:
        _post(self._main, action, *args)


def _post[*Ts](loop: asyncio.AbstractEventLoop, action: Callable[[*Ts], object], *args: *Ts) -> None:
    try:
        loop.call_soon_threadsafe(action, *args)
    except RuntimeError:
        logger.debug("the other side has ended")
