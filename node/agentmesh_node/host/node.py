"""The agent node: takes up what is placed on it, wakes it when there is work, hands it over when it drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.jetstream import ApiError, Uncertain, WrongLastSequence
from agentmesh.edge.registry import Entry, Registry, View, decode_epoch, decode_placement, decode_spec, readable_spec
from agentmesh.edge.streams import duplicate_window
from agentmesh.edge.transport import Message, Transport
from agentmesh.errors import BadRequest, MeshError, StoreLost
from agentmesh.ownership import Claim
from agentmesh.subjects import EPOCH_KEY, Subjects, placement_key, spec_key
from agentmesh.turn.values import Phase
from agentmesh.wire import ControlRequest, Spec
from agentmesh_node.ask_gateway import AskGateway
from agentmesh_node.host.audit import Audit
from agentmesh_node.host.drain import Handover, give_up, unless_cut_off
from agentmesh_node.host.heartbeat import Heartbeat
from agentmesh_node.host.late_mail_sweep import LateMailSweep
from agentmesh_node.host.linked_agents import end_children
from agentmesh_node.host.node_stats import count, first_lease
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.host.stream_health import StreamHealth
from agentmesh_node.host.work_scan import agents_with_work
from agentmesh_node.liveness_thread import LivenessLoop, LivenessThread
from agentmesh_node.owner.claim import OwnershipLost
from agentmesh_node.owner.mailbox import Mailbox
from agentmesh_node.owner.owner import Owner
from agentmesh_node.services import Services
from agentmesh_node.settings import NodeSettings
from agentmesh_node.store_loss import Acknowledged
from agentmesh_node.turns.agent_factory import AgentFactory

log = logging.getLogger("agentmesh.node")

RETRY_S = 0.05
MAX_RETRY_S = 2.0
HANDOVER_S = 5.0
"""How long a draining node waits for its agents to be placed elsewhere."""
WRITES = 64
"""Placements that are given up at the same time, at most."""


class Node:
    """One agent node. `start`, then `drain` and `close`."""

    def __init__(
        self,
        transport: Transport,
        servers: str | Sequence[str],
        settings: NodeSettings,
        *,
        ambient: Ambient = SYSTEM,
        carrier: LivenessLoop | None = None,
    ) -> None:
        """`servers` are those of `transport`; `liveness_thread` runs the heartbeat (by default a thread, connected to them)."""
        self.settings = settings
        self._ambient = ambient
        self._carrier = carrier or LivenessThread(servers)
        self.subjects = Subjects(settings.root)
        self.drained = asyncio.Event()
        """Set when an operator asks for a drain, or another process has taken over this node's id: end the process."""
        self._t = transport
        self._servers = servers
        self._registry = Registry(transport, self.subjects)
        self._prefix = placement_key(settings.node_id, "")
        self._specs = View(self._registry, ["agents.>"], self._on_spec)
        self._placements = View(self._registry, [self._prefix + ">"], self._on_placement)
        self._residents: dict[str, PlacedAgent] = {}
        self._fresh: list[PlacedAgent] = []
        self._unreadable: set[str] = set()
        """Agents placed here whose specs are malformed: tried again when those change."""
        self._taking: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(settings.activations)
        self._writes = asyncio.Semaphore(WRITES)
        self._services: Services | None = None
        self._gateway: AskGateway | None = None
        self._selfcheck: Audit | None = None
        self._watch = StreamHealth(transport, self.subjects)
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
    def url(self) -> str:
        """The servers that this node uses."""
        return self._servers if isinstance(self._servers, str) else ",".join(self._servers)

    def not_ready(self) -> str | None:
        """Why this node takes no work now, or None."""
        if self._draining or self.drained.is_set():
            return "draining"
        if not self._t.connected:
            return "no connection to NATS"
        return self._watch.trouble or (self._heartbeat.refusal if self._heartbeat is not None else None)

    # --- life -------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Join the mesh. Returns when the node's lease is in the registry and asks are served.

        Raises:
            Unavailable: the registry cannot be read or written.
        """
        epoch = await self._registry.get(EPOCH_KEY)
        number = decode_epoch(epoch) if epoch is not None else 1
        boot = self._ambient.token(8)
        self._services = Services(
            transport=self._t,
            settings=self.settings,
            registry=self._registry,
            specs=self._specs,
            boot=boot,
            epoch=number,
            ambient=self._ambient,
            duplicate_window_s=await duplicate_window(self._t, self.subjects),
        )
        self._factory = AgentFactory(self._services)
        await self._specs.start()
        self._sweeper = LateMailSweep(self._services)
        self._heartbeat = Heartbeat(
            self._carrier,
            self.subjects,
            self.settings.node_id,
            first_lease(self.settings, boot, self._ambient.now()),
            ttl_s=self.settings.lease_ttl_s,
            stall_limit_s=self.settings.stall_limit_s,
            on_request=self._on_request,
            on_superseded=self._on_superseded,
            ambient=self._ambient,
        )
        await self._heartbeat.start()
        await self._placements.start()
        self._remove_gap = self._t.on_gap(self._on_gap)
        s = self._services
        self._gateway = AskGateway(self._t, self.subjects, self._registry, token=s.token, spawn=s.spawn)
        await self._gateway.start()
        self._selfcheck = Audit(s, self._checkable, self._wake, self._loaded, self._lost)
        self._selfcheck.start()
        self._watch.start()
        self._count()

    def _count(self) -> None:
        if self._heartbeat is not None:
            count(self._heartbeat.facts, len(self._residents), self._residents.values())
        self._counter = asyncio.get_running_loop().call_later(0.5, self._count)

    async def close(self) -> None:
        """Leave at once: turns under way are lost here and run again elsewhere."""
        if self._closing:
            return
        self._closing = True
        self._remove_gap()
        if self._counter is not None:
            self._counter.cancel()
        await self._watch.close()
        if self._selfcheck is not None:
            await self._selfcheck.close()
        if self._gateway is not None:
            await self._gateway.close()
        await self._placements.close()
        if self._taking is not None and not self._taking.done():
            self._taking.cancel()
            await asyncio.wait((self._taking,))
        residents = list(self._residents.values())
        await asyncio.gather(*(self._release(r) for r in residents))
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
        await unless_cut_off(self._leave(self._heartbeat), self._t, self._ambient.monotonic)

    async def _leave(self, heartbeat: Heartbeat) -> None:
        handover = Handover(self.settings.node_id, self._registry, self._specs)
        await handover.start()
        try:
            # First the registry must say that this node takes nothing more; then its agents are given up.
            await heartbeat.change(msgspec.structs.replace(heartbeat.facts.lease, draining=True))
            if self._gateway is not None:
                await self._gateway.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.drain_s + HANDOVER_S):
                    await handover.give_up_all(self._residents, self._hand_over)
            left = await handover.wait(HANDOVER_S)
            if left:
                log.warning("agents were given up and have no owner yet", extra={"agents": len(left)})
        finally:
            await handover.close()

    async def _hand_over(self, resident: PlacedAgent) -> None:
        """Give up a placement by revision once no turn runs: the leader places the agent elsewhere."""
        owner = resident.owner
        if owner is not None and owner.core is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.drain_s):
                    await owner.retire()
        async with self._writes:
            await self._drop(resident)

    def _on_request(self, request: ControlRequest) -> None:
        assert self._heartbeat is not None
        if request.op == "cordon":
            lease = msgspec.structs.replace(self._heartbeat.facts.lease, cordoned=request.on)
            self.services.spawn(self._heartbeat.change(lease))
        elif request.op == "release":
            for name in request.agents:
                resident = self._residents.get(name)
                if resident is not None and (resident.owner is None or resident.owner.idle):
                    self.services.spawn(self._hand_over(resident))
        elif request.op == "sweep":
            self.services.spawn(self._sweeper.sweep(request.agents))
        else:
            self.drained.set()

    def _on_superseded(self) -> None:
        self.services.spawn(self._abandon())

    async def _abandon(self) -> None:
        """Another process runs under this node's id and owns its placements now."""
        for resident in list(self._residents.values()):
            await self._release(resident)
        self.drained.set()

    # --- placements ---------------------------------------------------------------------------------------------------
    def _on_placement(self, entry: Entry) -> None:
        name = entry.key[len(self._prefix) :]
        known = self._residents.get(name)
        if entry.value is None:
            if known is not None and known.generation < entry.revision:
                self.services.spawn(self._release(known))
            return
        if known is not None:
            if known.generation >= entry.revision:
                return
            self.services.spawn(self._release(known))
        try:
            placement = decode_placement(entry)
        except BadRequest as error:  # the supervisor removes it
            log.error("placement skipped: %s", error.message, extra={"agent": name})
            return
        resident = PlacedAgent(name, entry.revision, placement.incarnation)
        self._residents[name] = resident
        self._fresh.append(resident)
        if self._taking is None or self._taking.done():
            self._taking = asyncio.get_running_loop().create_task(self._take_up(), name="take up placements")

    async def _take_up(self) -> None:
        """Listen for what is newly placed, then wake those that have work: first those that somebody waits for."""
        while self._fresh:
            fresh, self._fresh = self._fresh, []
            for resident in fresh:
                await self._listen(resident)
            asleep = {r.name: r for r in fresh if not r.gone and r.owner is None and not self._activate_at_once(r)}
            try:
                names = await agents_with_work(self.services, list(asleep), self._wake)
            except (MeshError, ApiError) as error:
                log.warning("cannot tell who has work; waking all: %s", error)
                names = set(asleep)
            for name in sorted(names):
                self._activate(asleep[name])

    def _activate_at_once(self, resident: PlacedAgent) -> bool:
        entry = self._specs.get(spec_key(resident.name))
        spec = readable_spec(entry)
        if spec is not None and spec.status == "running":
            return False
        self._activate(resident)
        return True

    async def _listen(self, resident: PlacedAgent) -> None:
        if resident.gone or resident.subscription is not None:
            return
        on_message = partial(self._on_live, resident)
        resident.subscription = await self._t.subscribe(self.subjects.live(resident.name), on_message)
        if self._residents.get(resident.name) is not resident:
            await resident.subscription.unsubscribe()

    def _on_live(self, resident: PlacedAgent, message: Message) -> None:
        lane, _ = self.subjects.parse_live(message.subject) or ("", "")
        owner = resident.owner
        # Until the lanes are read an owner's answers could be wrong: control requests wait for that, mail does not.
        if owner is not None and owner.core is not None and (owner.begun or lane != "control"):
            owner.live(lane, message)
        elif not resident.gone and (lane != "control" or message.reply):  # a probe, which has no reply, wakes nobody
            if lane == "control":
                resident.waiting = (*resident.waiting, (lane, message))
            self.services.ends.heard(lane, message)
            self._activate(resident)

    async def _release(self, resident: PlacedAgent) -> None:
        """Stop acting for a placement: nothing more is done here, and the journal has all that counts."""
        resident.gone = True
        if self._residents.get(resident.name) is resident:
            del self._residents[resident.name]
            self._unreadable.discard(resident.name)
        if resident.subscription is not None:
            await resident.subscription.unsubscribe()
        activation = resident.activation
        if activation is not None and not activation.done() and activation is not asyncio.current_task():
            activation.cancel()
            await asyncio.wait((activation,))
        owner, resident.owner = resident.owner, None
        if owner is not None:
            await owner.close()

    # --- activation -----------------------------------------------------------------------------------------------------
    def _activate(self, resident: PlacedAgent) -> None:
        if resident.gone or resident.broken or resident.owner is not None or self._closing:
            return
        if resident.name in self._unreadable:
            return  # reported, and tried again when its spec changes
        if resident.activation is None or resident.activation.done():
            resident.activation = asyncio.get_running_loop().create_task(
                self._bring_up(resident), name=f"activate {resident.name}"
            )

    async def _bring_up(self, resident: PlacedAgent) -> None:
        wait = RETRY_S
        while not resident.gone:
            try:
                async with self._slots:
                    owner = await self._own(resident)
            except OwnershipLost as lost:
                log.info("not the owner", extra={"agent": resident.name, "reason": lost.reason})
                await self._drop(resident)
                return
            except StoreLost as error:
                self._raise_alarm(resident, str(error))
                return
            except (MeshError, ApiError, Uncertain, WrongLastSequence) as error:
                if isinstance(error, BadRequest) and readable_spec(self._specs.get(spec_key(resident.name))) is None:
                    log.error("not activated: %s", error.message, extra={"agent": resident.name})
                    self._unreadable.add(resident.name)
                    resident.activation = None
                    return
                log.warning("activation is tried again: %s", error, extra={"agent": resident.name})
            except Exception:
                log.exception("activation failed", extra={"agent": resident.name})
            else:
                released = self._residents.get(resident.name) is not resident
                if released:
                    await owner.close()
                if released or not owner.closed:
                    resident.activation = None  # a finished task is half of what a sleeping agent would take
                    return
                # It was lost while it came up, and whoever saw that left the next try to this task.
            await asyncio.sleep(wait)
            wait = min(MAX_RETRY_S, wait * 2)

    async def _own(self, resident: PlacedAgent) -> Owner:
        spec = await self._spec(resident)
        claim = Claim(
            node=self.settings.node_id,
            boot=self.services.boot,
            epoch=self.services.epoch,
            generation=resident.generation,
            incarnation=resident.incarnation,
        )
        if spec is None:
            raise OwnershipLost("no such agent is wanted", final=True)
        on_end = partial(self._owner_ended, resident)
        owner = Owner(self.services, self._factory, resident.name, spec, claim, on_end=on_end)
        try:
            resident.owner = owner
            await owner.activate()
        except BaseException:
            resident.owner = None
            await owner.close()
            raise
        waiting, resident.waiting = resident.waiting, ()
        for lane, message in waiting:
            owner.live(lane, message)
        return owner

    async def _spec(self, resident: PlacedAgent) -> Spec | None:
        """The spec, from the live copy if that shows this life, else from the leader."""
        entry = self._specs.get(spec_key(resident.name))
        spec = readable_spec(entry)
        if spec is None or spec.incarnation != resident.incarnation:
            entry = await self._registry.get(spec_key(resident.name))
        return decode_spec(entry) if entry is not None else None

    def _raise_alarm(self, resident: PlacedAgent, reason: str) -> None:
        """Write nothing more: what the store has lost, nobody may paint over."""
        resident.broken = True
        log.critical("the store has lost data: the agent stops here", extra={"agent": resident.name, "error": reason})

    def _owner_ended(self, resident: PlacedAgent, owner: Owner, lost: OwnershipLost | None) -> None:
        self.services.spawn(self._after(resident, owner, lost))

    async def _after(self, resident: PlacedAgent, owner: Owner, lost: OwnershipLost | None) -> None:
        over = owner.core is not None and owner.core.phase is Phase.OVER
        if over:
            await owner.settled()
            await end_children(self._registry, self._specs, resident.name, resident.incarnation, self.services.now)
        if resident.owner is owner:
            resident.owner = None
        await owner.close()
        if lost is not None and lost.broken:
            self._raise_alarm(resident, lost.reason)
        elif over or (lost is not None and lost.final):
            await self._drop(resident)
        elif lost is not None and not resident.gone:
            log.info("owner ended", extra={"agent": resident.name, "reason": lost.reason})
            await asyncio.sleep(RETRY_S)
            if await self._still_placed(resident):
                self._activate(resident)
        elif resident.waiting:
            self._activate(resident)

    async def _still_placed(self, resident: PlacedAgent) -> bool:
        """Re-read the registry: an owner that was fenced while its placement stands activates again."""
        try:
            entry = await self._registry.get(placement_key(self.settings.node_id, resident.name))
        except (MeshError, ApiError):
            return True  # unknown: the activation finds out
        if entry is not None and entry.revision == resident.generation:
            return True
        await self._release(resident)
        return False

    async def _drop(self, resident: PlacedAgent) -> None:
        await self._release(resident)
        key = placement_key(self.settings.node_id, resident.name)
        await give_up(self._registry, key, resident.generation, lambda: self._closing)

    # --- what may have been missed ------------------------------------------------------------------------------------
    def _checkable(self) -> list[tuple[str, Mailbox | None]]:
        return [(r.name, r.owner.mailbox if r.owner is not None else None) for r in self._residents.values()]

    def _loaded(self) -> dict[str, Acknowledged]:
        owners = [r.owner for r in self._residents.values() if r.owner is not None and r.owner.begun]
        return {o.name: Acknowledged(o.committed, o.core.ledger.positions) for o in owners if o.core is not None}

    def _lost(self, name: str) -> None:
        resident = self._residents.get(name)
        if resident is not None and resident.owner is not None:
            resident.owner.lose_store()

    def _wake(self, name: str) -> None:
        resident = self._residents.get(name)
        if resident is not None:
            self._activate(resident)

    # --- specs and gaps -------------------------------------------------------------------------------------------------
    def _on_spec(self, entry: Entry) -> None:
        resident = self._residents.get(entry.key[len(spec_key("")) :])
        if resident is None or entry.value is None:
            return
        spec = readable_spec(entry)
        if spec is None or spec.incarnation != resident.incarnation or spec.status == "stopped":
            return
        if resident.owner is None:
            if spec.status != "running" or resident.name in self._unreadable:
                self._unreadable.discard(resident.name)
                self._activate(resident)
        elif spec.status != "stopping":
            resident.owner.reassert(spec)
        elif resident.owner.spec.status != "stopping":
            resident.owner.stop(spec)

    def _on_gap(self) -> None:
        """Messages may have been missed: look again, at every lane. And the server may have come back with an older store."""
        if self._selfcheck is not None:
            self.services.spawn(self._selfcheck.check_store())
        for resident in self._residents.values():
            if resident.owner is not None and resident.owner.mailbox is not None:
                resident.owner.mailbox.catch_up()
            else:
                self._fresh.append(resident)
        if self._fresh and (self._taking is None or self._taking.done()):
            self._taking = asyncio.get_running_loop().create_task(self._take_up(), name="re-check after a gap")


__all__ = ["Node", "NodeSettings"]
