"""One agent node: it joins the mesh, answers requests, hands its agents over when it drains, and leaves.

The agents that are placed on it are in `catalog`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from agentmesh import semconv
from agentmesh.control_values import ControlRequest
from agentmesh.edge.address import checked_urls, shown_urls
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.registry import Entry, Registry, View, decode_epoch
from agentmesh.edge.server_time_keeper import ServerTime
from agentmesh.edge.streams import duplicate_window
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Disconnected, RequestTimeout, Transport
from agentmesh.errors import Unavailable
from agentmesh.subjects import EPOCH_KEY, Subjects, spec_key
from agentmesh.wire import encode, parse_time
from agentmesh_node.gateway.gateway import Gateway
from agentmesh_node.host.audit import Audit
from agentmesh_node.host.catalog import Catalog
from agentmesh_node.host.drain import Handover, answers, unless_cut_off
from agentmesh_node.host.heartbeat import Heartbeat
from agentmesh_node.host.late_mail_sweep import LateMailSweep
from agentmesh_node.host.node_stats import AgentGauges, activities, count, first_lease
from agentmesh_node.host.pace import MovePace, Releases
from agentmesh_node.host.stream_health import StreamHealth
from agentmesh_node.liveness_thread import LivenessLoop, LivenessThread
from agentmesh_node.owner.predecessors import tell_all_fenced
from agentmesh_node.services import Services
from agentmesh_node.settings import NodeSettings
from agentmesh_node.store_loss import report_older_mail
from agentmesh_node.telemetry.instruments import own
from agentmesh_node.telemetry.metrics import DroppedNews

log = logging.getLogger("agentmesh.node")

TOLD_EVERY_S = 2.0
"""How often a draining node says what it waits for."""
HANDOVER_S = 5.0
"""How long a draining node waits for its agents to be placed elsewhere."""
TELL_S = 2.0
"""How long a drain may be held up by what is to be told of attempts that another owner has cut off."""


class Node:
    """One agent node. `start`, then `drain` and `close`."""

    def __init__(
        self,
        transport: Transport,
        servers: str | Sequence[str],
        settings: NodeSettings,
        *,
        ambient: Ambient = SYSTEM,
        liveness: LivenessLoop | None = None,
    ) -> None:
        """`servers` are those of `transport`; `liveness` runs the heartbeat (by default a thread with a connection to them)."""
        self.settings = settings
        self._ambient = ambient
        self._liveness = liveness or LivenessThread(servers)
        self.subjects = Subjects(settings.root)
        self.drained = asyncio.Event()
        """Set when an operator asks for a drain, or another process has taken over this node's id: then the process must end."""
        self._t = transport
        self._servers = servers
        self._registry = Registry(transport, self.subjects)
        self._specs = View(self._registry, ["agents.>"], self._on_spec)
        self._services: Services | None = None
        self._catalog: Catalog | None = None
        self._pace = MovePace(partial(answers, transport, self.subjects))
        self._releases: Releases | None = None
        self._gateway: Gateway | None = None
        self._audit: Audit | None = None
        self._server_time = ServerTime(transport, self.subjects, ambient)
        self._stream_health = StreamHealth(transport, self.subjects)
        self._dropped = DroppedNews(settings.node_id, ambient.monotonic)
        self._gauges = AgentGauges()
        self._observed: tuple[Callable[[], None], ...] = ()
        self._heartbeat: Heartbeat | None = None
        self._draining = False
        self._closing = False
        self._counter: asyncio.TimerHandle | None = None
        self._remove_gap: Callable[[], None] = lambda: None

    @property
    def services(self) -> Services:
        assert self._services is not None, "the node has not started"
        return self._services

    @property
    def catalog(self) -> Catalog:
        """The agents placed here."""
        assert self._catalog is not None, "the node has not started"
        return self._catalog

    @property
    def url(self) -> str:
        """The servers that this node uses, as they may be shown."""
        return shown_urls(checked_urls(self._servers))

    def not_ready(self) -> str | None:
        """Why this node takes no work now, or None."""
        if self._draining or self.drained.is_set():
            return "draining"
        if (refusal := self._t.refusal) is not None:
            return str(refusal)
        if not self._t.connected:
            return "no connection to NATS"
        lost = self._catalog.trouble() if self._catalog is not None else None
        return self._stream_health.trouble or lost or (self._heartbeat.refusal if self._heartbeat is not None else None)

    # --- life -------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Join the mesh. Returns when the node's lease is in the registry and asks are served.

        Raises:
            NotPermitted: the server refuses what a node needs.
            Unavailable: the registry cannot be read or written.
        """
        epoch = await self._registry.get(EPOCH_KEY)
        number = decode_epoch(epoch) if epoch is not None else 1
        boot = self._ambient.token(8)
        await self._server_time.start()
        clock = self._server_time.clock
        self._services = Services(
            transport=self._t,
            settings=self.settings,
            registry=self._registry,
            specs=self._specs,
            boot=boot,
            epoch=number,
            ambient=self._ambient._replace(now=clock.now),
            timers_now=self._server_time.timers_now,
            duplicate_window_s=await duplicate_window(self._t, self.subjects),
        )
        self._catalog = Catalog(self._services)
        self._releases = Releases(self._catalog.agents, self._catalog.hand_over, self._pace)
        await self._specs.start()
        self._late_mail = LateMailSweep(self._services)
        self._heartbeat = Heartbeat(
            self._liveness,
            self.subjects,
            self.settings.node_id,
            first_lease(self.settings, boot, clock.now()),
            ttl_s=self.settings.lease_ttl_s,
            stall_limit_s=self.settings.stall_limit_s,
            on_request=self._on_request,
            on_superseded=self._on_superseded,
            on_agents=self._tell_activities,
            server_now=clock.now,
            ambient=self._ambient,
        )
        await self._heartbeat.start()
        await self._services.formats.start()
        await self._catalog.start()
        self._remove_gap = self._t.on_gap(self._on_gap)
        s, catalog = self._services, self._catalog
        self._gateway = Gateway(
            self._t,
            self.subjects,
            self._registry,
            now=s.now,
            token=s.token,
            spawn=s.spawn,
            callers_waiting=self.settings.callers_waiting,
            callers_rate=self.settings.callers_rate,
            formats=s.formats,
            exists=lambda agent: self._specs.get(spec_key(agent)) is not None,
        )
        await self._gateway.start()
        look_behind = catalog.look_behind
        self._audit = Audit(s, catalog.mailboxes, catalog.wake, catalog.acknowledged, catalog.lose_store, newer=look_behind)
        self._audit.start()
        self._stream_health.start()
        self._observed = self._gauges.observed(own())
        own().counter(semconv.DROPPED_COUNTER).add(0, {semconv.NODE: self.settings.node_id})
        s.spawn(report_older_mail(self._t, self.subjects))
        self._count()
        try:
            await self._t.flush()  # then it is known which subscriptions the server refuses
        except (Disconnected, RequestTimeout) as error:
            raise Unavailable("the connection to NATS was lost while the node began; try again") from error
        if (refusal := self._t.refusal) is not None:
            raise refusal

    def _count(self) -> None:
        if self._heartbeat is not None:
            count(self._heartbeat.figures, self.catalog.agents.values(), self._t.dropped)
            if own().on:
                self._gauges.refresh(self._heartbeat.figures, self.catalog.agents.values())
        self._dropped.seen(self._t.dropped)
        self._counter = asyncio.get_running_loop().call_later(0.5, self._count)

    async def close(self) -> None:
        """Leave at once: turns under way are lost here and run again elsewhere."""
        if self._closing:
            return
        self._closing = True
        for end in self._observed:
            end()
        if self._catalog is not None:
            self._catalog.stop_activations()
        self._remove_gap()
        if self._counter is not None:
            self._counter.cancel()
        await self._stream_health.close()
        await self._server_time.close()
        if self._audit is not None:
            await self._audit.close()
        if self._gateway is not None:
            await self._gateway.close()
        if self._releases is not None:
            await self._releases.close()
        await self._pace.close()
        if self._catalog is not None:
            await self._catalog.close()
        await self._specs.close()
        if self._services is not None:
            await self._services.close()
        if self._heartbeat is not None:
            await self._heartbeat.close()

    # --- drain --------------------------------------------------------------------------------------------------------
    async def drain(self) -> None:
        """Leave in order: take nothing new, let running turns end (up to `drain_s`), hand every agent over.

        Returns when the agents have owners elsewhere, if there is an elsewhere. `close` comes next.
        """
        if self._heartbeat is None or self._draining:
            return
        self._draining = True
        log.info("draining", extra={"agents": len(self.catalog.agents), "longest_s": self.settings.drain_s})
        await unless_cut_off(self._leave(self._heartbeat), self._t, self._ambient.monotonic)

    async def _leave(self, heartbeat: Heartbeat) -> None:
        handover = Handover(self.settings.node_id, self._registry, self._specs)
        await handover.start()
        try:
            # The registry must say that this node takes nothing more before its agents are given up.
            await heartbeat.change(msgspec.structs.replace(heartbeat.figures.lease, draining=True))
            if self._gateway is not None:
                await self._gateway.close()
            telling = asyncio.get_running_loop().create_task(self._tell_what_holds_up(), name="what a drain waits for")
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.settings.drain_s + HANDOVER_S):
                        await handover.give_up_all(self.catalog.agents, self.catalog.hand_over, self._pace)
            finally:
                await cancel_and_wait(telling)
            left = await handover.wait(HANDOVER_S)
            if left:
                log.warning("agents were given up and have no owner yet", extra={"agents": len(left)})
            await tell_all_fenced(self.services, TELL_S)
            log.info("drained", extra={"without_owner": len(left)})
        finally:
            await handover.close()

    async def _tell_what_holds_up(self) -> None:
        """Log from time to time for which turns the end of this node waits."""
        while True:
            await asyncio.sleep(TOLD_EVERY_S)
            for one in activities(self.catalog.agents.values()).agents:
                if one.state == "processing":
                    seconds = None if one.since is None else round(self.services.now() - parse_time(one.since), 1)
                    held = {"agent": one.name, "step": one.steps, "tool": one.tool, "seconds": seconds}
                    log.info("the end of this node waits for a turn", extra=held)

    def _on_request(self, request: ControlRequest) -> None:
        assert self._heartbeat is not None
        if request.op == "cordon":
            lease = msgspec.structs.replace(self._heartbeat.figures.lease, cordoned=request.on)
            self.services.spawn(self._heartbeat.change(lease))
        elif request.op == "release":
            if self._releases is not None and not self._closing:
                self._releases.ask(request.agents, any_turn=request.any_turn)
        elif request.op == "sweep":
            self.services.spawn(self._late_mail.sweep(request.agents))
        else:
            self.drained.set()

    def _tell_activities(self, reply: str) -> None:
        self._t.post(reply, encode(activities(self.catalog.agents.values())), though_full=True)

    def _on_superseded(self) -> None:
        self.services.spawn(self._abandon())

    async def _abandon(self) -> None:
        """Stop: another process runs under this node's id and owns its placements now. There is nothing to hand over."""
        self._draining = True
        if self._releases is not None:
            await self._releases.close()
        for placed in list(self.catalog.agents.values()):
            await self.catalog.release(placed)
        self.drained.set()

    def _on_spec(self, entry: Entry) -> None:
        if self._catalog is not None:
            self._catalog.on_spec(entry)

    def _on_gap(self) -> None:
        """Messages may have been missed; and the server may have come back with an older store."""
        if self._audit is not None:
            self.services.spawn(self._audit.check_store())
            self.services.spawn(report_older_mail(self._t, self.subjects))
            self.services.spawn(self._audit.check_lanes())
        self.catalog.catch_up()
