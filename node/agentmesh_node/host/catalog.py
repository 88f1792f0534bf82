"""The agents placed on this node: listened to when they are placed, activated when there is work, released when they are no
longer placed here.

A placed agent is one subscription while it sleeps, and has an `Owner` while it is awake. Placements come from the registry.
`node` has the rest: start, drain and end of the node, and requests to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from functools import partial

from msgspec import structs

from agentmesh.control_operations import CONTROL, is_control
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.registry import Entry, View, decode_epoch, decode_placement, decode_spec, readable_spec
from agentmesh.edge.retry import UPKEEP_RETRY, ExponentialBackoff
from agentmesh.edge.tasks import Background, cancel_and_wait
from agentmesh.edge.transport import Message
from agentmesh.errors import BadRequest, StoreLost, UnreadableRecord
from agentmesh.ledger import fold
from agentmesh.ownership import Claim, restored_spec
from agentmesh.registry_values import Spec
from agentmesh.subjects import EPOCH_KEY, node_key, placement_key, spec_key
from agentmesh.turn.values import Phase
from agentmesh.wire import RELAYED, encode, format_time, parse_time
from agentmesh_node.host.drain import give_up, prefer_code
from agentmesh_node.host.linked_agents import end_children
from agentmesh_node.host.placed_agent import PlacedAgent
from agentmesh_node.host.stuck import UNREADABLE_RETRY, StuckAgents
from agentmesh_node.host.work_scan import agents_with_work
from agentmesh_node.owner.claim import OwnershipLost
from agentmesh_node.owner.mailbox import Mailbox
from agentmesh_node.owner.owner import Owner
from agentmesh_node.services import Services
from agentmesh_node.store_loss import Acknowledged
from agentmesh_node.turns.agent_factory import AgentFactory

log = logging.getLogger("agentmesh.node")

YIELD_RETRY = ExponentialBackoff(0.05, 15.0)
"""Pauses before a placement is given up that is worth nothing, once the agent's last ones here were not either: the leader would
place it here again at once, and so on for ever."""
YIELDS_AT_ONCE = 3
"""So many are given up without a pause."""
MOST_YIELDED = 10_000
WRITES = 64
"""Most placements that are given up at the same time."""


class Catalog:
    """The agents placed on one node. `start`, then `close`."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._node = services.settings.node_id
        self._prefix = placement_key(self._node, "")
        self._factory = AgentFactory(services)
        self._stuck = StuckAgents(services, self._factory.backend_name)
        self._placements = View(services.registry, [self._prefix + ">"], self._on_placement)
        self.agents: dict[str, PlacedAgent] = {}
        """The placed agents, by name."""
        self._fresh: list[PlacedAgent] = []
        self._unreadable: set[str] = set()
        """Agents placed here whose specs are malformed: tried again when the specs change."""
        self._yielded: dict[str, int] = {}
        """Agents whose newest placements here were worth nothing, and how many."""
        self._taking = Background("take up placements")
        self._slots = asyncio.Semaphore(services.settings.activations)
        self._writes = asyncio.Semaphore(WRITES)
        self._closing = False

    # --- life -------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Follow this node's placements.

        Raises:
            Unavailable: the registry cannot be read.
        """
        await self._placements.start()

    def stop_activations(self) -> None:
        """Activate no more agents: the node leaves."""
        self._closing = True

    async def close(self) -> None:
        """Release all agents, at once: turns under way are lost here and run again elsewhere."""
        self._closing = True
        await self._placements.close()
        await self._taking.close()
        for placed in self.agents.values():
            if placed.owner is not None:
                placed.owner.leave()
        await asyncio.gather(*(self.release(placed) for placed in list(self.agents.values())))

    async def hand_over(self, placed: PlacedAgent) -> None:
        """Give up a placement by revision once no turn runs: the leader places the agent elsewhere. Idempotent."""
        if placed.leaving:
            return
        placed.leaving = True
        try:
            owner = placed.owner
            if owner is not None and owner.core is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._s.settings.drain_s):
                        await owner.retire()
                owner.leave()
            async with self._writes:
                if owner is not None and (code := owner.turn_code):
                    others = [entry for entry in self._s.formats.leases if entry.key != node_key(self._node)]
                    known = self._s.specs.get(spec_key(placed.name))
                    await prefer_code(self._s.registry, others, known, placed.incarnation, code)
                await self._give_up(placed)
        finally:
            placed.leaving = False
        log.info("agent handed over", extra={"agent": placed.name})

    async def release(self, placed: PlacedAgent) -> None:
        """Stop acting for a placement, at once: the journal has all that is needed."""
        placed.gone = True
        if self.agents.get(placed.name) is placed:
            del self.agents[placed.name]
            self._unreadable.discard(placed.name)
        if placed.subscription is not None:
            await placed.subscription.unsubscribe()
        await cancel_and_wait(placed.activation)
        owner, placed.owner = placed.owner, None
        if owner is not None:
            await owner.close()

    async def _give_up(self, placed: PlacedAgent) -> None:
        await self.release(placed)
        key = placement_key(self._node, placed.name)
        await give_up(self._s.registry, key, placed.generation, lambda: self._closing)

    # --- placements -------------------------------------------------------------------------------------------------
    def _on_placement(self, entry: Entry) -> None:
        name = entry.key[len(self._prefix) :]
        known = self.agents.get(name)
        if entry.value is None:
            if known is not None and known.generation < entry.revision:
                self._s.spawn(self.release(known))
            return
        if known is not None:
            if known.generation >= entry.revision:
                return
            self._s.spawn(self.release(known))
        try:
            placement = decode_placement(entry)
        except BadRequest as error:  # the supervisor removes it
            log.error("placement skipped: %s", error.message, extra={"agent": name})
            return
        placed = PlacedAgent(name, entry.revision, placement.incarnation, placement.since)
        self.agents[name] = placed
        self._fresh.append(placed)
        self._begin_listening()

    def _begin_listening(self) -> None:
        if not self._taking.running:
            self._taking.begin(self._listen_to_new())

    async def _listen_to_new(self) -> None:
        """Subscribe for newly placed agents, then wake those that have work: first those with waiting callers."""
        while self._fresh:
            fresh, self._fresh = self._fresh, []
            for placed in fresh:
                await self._listen(placed)
            asleep = {p.name: p for p in fresh if not p.gone and p.owner is None and not self._activate_at_once(p)}
            try:
                names = await agents_with_work(self._s, list(asleep), self.wake)
            except EDGE_ERRORS as error:
                log.warning("cannot tell who has work; waking all: %s", error)
                names = set(asleep)
            for name in sorted(names):
                self._activate(asleep[name])

    def _activate_at_once(self, placed: PlacedAgent) -> bool:
        entry = self._s.specs.get(spec_key(placed.name))
        spec = readable_spec(entry)
        if spec is not None and spec.status == "running":
            return False
        self._activate(placed)
        return True

    async def _listen(self, placed: PlacedAgent) -> None:
        if placed.gone or placed.subscription is not None:
            return
        on_message = partial(self._on_copy, placed)
        placed.subscription = await self._s.transport.subscribe(self._s.subjects.copies(placed.name), on_message)
        if self.agents.get(placed.name) is not placed:
            await placed.subscription.unsubscribe()

    def _on_copy(self, placed: PlacedAgent, message: Message) -> None:
        """Handle a message to an agent: a copy of its stored mail, or a control request."""
        lane, _ = self._s.subjects.parse_copy(message.subject) or ("", "")
        owner = placed.owner
        if lane == CONTROL and RELAYED in message.headers:
            return  # it has come in the form that names its operation, too
        # Until the lanes are read an owner's answers could be wrong: control requests wait until then, mail does not.
        if owner is not None and owner.core is not None and (owner.begun or not is_control(lane)):
            owner.on_copy(lane, message)
        elif placed.stuck is not None:
            if is_control(lane) and message.reply:
                self._stuck.answer(placed, message)
        elif not placed.gone and (not is_control(lane) or message.reply):  # a probe, which has no reply, wakes no agent
            if is_control(lane):
                placed.waiting = (*placed.waiting, (lane, message))
            self._s.ends.heard(lane, message)
            self._activate(placed)

    # --- activation -------------------------------------------------------------------------------------------------
    def wake(self, name: str) -> None:
        """Activate an agent, if it is placed here."""
        placed = self.agents.get(name)
        if placed is not None:
            self._activate(placed)

    def _activate(self, placed: PlacedAgent) -> None:
        if placed.gone or placed.broken or placed.owner is not None or self._closing:
            return
        if placed.name in self._unreadable:
            return  # reported already; tried again when its spec changes
        if placed.activation is None or placed.activation.done():
            placed.activation = asyncio.get_running_loop().create_task(self._bring_up(placed), name=f"activate {placed.name}")

    async def _bring_up(self, placed: PlacedAgent) -> None:
        looks = iter(UNREADABLE_RETRY)
        for pause in UPKEEP_RETRY:
            if placed.gone:
                return
            try:
                async with self._slots:
                    owner = await self._own(placed)
            except OwnershipLost as lost:
                if await self._yields(placed, lost):
                    return
                continue
            except StoreLost as error:
                self._stuck.lost(placed, error.message, error.details.get("record"))
                return
            except UnreadableRecord as error:
                self._stuck.unreadable(placed, error)
                await asyncio.sleep(next(looks))
                continue
            except EDGE_ERRORS as error:
                if isinstance(error, BadRequest) and readable_spec(self._s.specs.get(spec_key(placed.name))) is None:
                    log.error("not activated: %s", error.message, extra={"agent": placed.name})
                    self._unreadable.add(placed.name)
                    placed.activation = None
                    return
                log.warning("activation is tried again: %s", error, extra={"agent": placed.name})
            except Exception:
                log.exception("activation failed", extra={"agent": placed.name})
            else:
                if await self._is_up(placed, owner):
                    return
                # Its owner ended while it was being activated; this task makes the next try.
            await asyncio.sleep(pause)

    async def _is_up(self, placed: PlacedAgent, owner: Owner) -> bool:
        """Note that the agent has an owner. Returns whether nothing more is to be done."""
        self._yielded.pop(placed.name, None)
        self._stuck.runs(placed)
        released = self.agents.get(placed.name) is not placed
        if released:
            await owner.close()
        if released or not owner.closed:
            placed.activation = None  # a finished task would double the memory of a sleeping agent
            return True
        return False

    async def _yields(self, placed: PlacedAgent, lost: OwnershipLost) -> bool:
        """Give up a placement that is worth nothing. Returns False if the agent may be claimed again."""
        if lost.epoch is not None and await self._follow_epoch(placed, lost.epoch):
            return False
        log.info("not the owner", extra={"agent": placed.name, "reason": lost.reason})
        if len(self._yielded) >= MOST_YIELDED:
            self._yielded.clear()
        count = self._yielded[placed.name] = self._yielded.get(placed.name, 0) + 1
        if count > YIELDS_AT_ONCE:
            await asyncio.sleep(next(itertools.islice(YIELD_RETRY, min(count, 100) - YIELDS_AT_ONCE, None)))
        if not placed.gone:
            await self._give_up(placed)
        return True

    async def _follow_epoch(self, placed: PlacedAgent, epoch: int) -> bool:
        """A journal bears a newer epoch than this node. Take that over, if the placement stands, and see that the registry does
        not have an older one: under it every node that begins would yield for ever.

        Returns: whether the agent may be claimed again.
        """
        try:
            entry = await self._s.registry.get(EPOCH_KEY)
            number = decode_epoch(entry) if entry is not None else 0
            if number < epoch:
                if entry is None:
                    await self._s.registry.create(EPOCH_KEY, encode(epoch))
                else:
                    await self._s.registry.update(EPOCH_KEY, encode(epoch), entry.revision)
                log.error(
                    "the epoch was older than what journals bear, and is put back",
                    extra={"agent": placed.name, "was": number, "epoch": epoch},
                )
        except EDGE_ERRORS as error:
            log.warning("the epoch cannot be followed now: %s", error, extra={"agent": placed.name})
            return False
        if not await self._still_placed(placed):
            return False
        if max(number, epoch) > self._s.epoch:
            log.warning("this node follows a newer epoch", extra={"was": self._s.epoch, "epoch": max(number, epoch)})
            self._s.epoch = max(number, epoch)
        return True

    async def _own(self, placed: PlacedAgent) -> Owner:
        spec = await self._spec(placed)
        claim = Claim(
            node=self._node,
            boot=self._s.boot,
            epoch=self._s.epoch,
            generation=placed.generation,
            incarnation=placed.incarnation,
            placed=_moment(placed.since),
        )
        if spec is None:
            raise OwnershipLost("no such agent is wanted", final=True)
        owner = Owner(self._s, self._factory, placed.name, spec, claim, on_end=partial(self._owner_ended, placed))
        try:
            placed.owner = owner
            await owner.activate()
        except BaseException:
            placed.owner = None
            await owner.close()
            raise
        waiting, placed.waiting = placed.waiting, ()
        for lane, message in waiting:
            owner.on_copy(lane, message)
        return owner

    async def _spec(self, placed: PlacedAgent) -> Spec | None:
        """The spec, from the registry's copy if that shows this life, else from the leader."""
        entry = self._s.specs.get(spec_key(placed.name))
        spec = readable_spec(entry)
        if spec is None or spec.incarnation != placed.incarnation:
            entry = await self._s.registry.get(spec_key(placed.name))
        if entry is None:
            return None
        return readable_spec(entry) or await self._restore_spec(placed, entry)

    async def _restore_spec(self, placed: PlacedAgent, entry: Entry) -> Spec:
        """Put back a spec of foreign form, as the journal has it.

        Raises:
            BadRequest: the journal has none of this life.
            WrongLastSequence: somebody else has written it meanwhile.
            StoreLost, UnreadableRecord, Unavailable: as `Journal.read`.
        """
        ledger, _ = fold((await self._s.journal.read(placed.name)).records)
        spec = restored_spec(ledger)
        if spec is None or spec.incarnation != placed.incarnation:
            return decode_spec(entry)  # which says what is wrong with it
        restored = structs.replace(spec, since=format_time(self._s.now()))
        await self._s.registry.update(entry.key, encode(restored), entry.revision)
        log.warning("the spec was not the mesh's any more, and is put back", extra={"agent": placed.name})
        return restored

    # --- the end of an owner ----------------------------------------------------------------------------------------
    def _owner_ended(self, placed: PlacedAgent, owner: Owner, lost: OwnershipLost | None) -> None:
        self._s.spawn(self._after_owner(placed, owner, lost))

    async def _after_owner(self, placed: PlacedAgent, owner: Owner, lost: OwnershipLost | None) -> None:
        over = owner.core is not None and owner.core.phase is Phase.OVER
        if over:
            await owner.settled()
            await end_children(self._s.registry, self._s.specs, placed.name, placed.incarnation, self._s.now)
            log.info("agent ended", extra={"agent": placed.name, "reason": _why(owner.spec)})
        if placed.owner is owner:
            placed.owner = None
        await owner.close()
        if lost is not None and lost.broken:
            self._stuck.lost(placed, lost.reason, owner.committed)
        elif over or (lost is not None and lost.final):
            await self._give_up(placed)
        elif lost is not None and not placed.gone:
            log.info("owner ended", extra={"agent": placed.name, "reason": lost.reason})
            await asyncio.sleep(UPKEEP_RETRY.first_s)
            if await self._still_placed(placed):
                self._activate(placed)
        elif placed.waiting:
            self._activate(placed)

    async def _still_placed(self, placed: PlacedAgent) -> bool:
        """Re-read the registry: an owner that was fenced while its placement stands activates again."""
        try:
            entry = await self._s.registry.get(placement_key(self._node, placed.name))
        except EDGE_ERRORS:
            return True  # unknown: the activation will find out
        if entry is not None and entry.revision == placed.generation:
            return True
        await self.release(placed)
        return False

    # --- specs ------------------------------------------------------------------------------------------------------
    def on_spec(self, entry: Entry) -> None:
        """A spec has changed. If its agent is placed here, activate it, stop it, or write its status again."""
        placed = self.agents.get(entry.key[len(spec_key("")) :])
        if placed is None or entry.value is None:
            return
        spec = readable_spec(entry)
        if spec is None:
            self._on_foreign_spec(placed)
            return
        if spec.incarnation != placed.incarnation or spec.status == "stopped":
            return
        if placed.broken and spec.status == "stopping" and (spec.reason is None or spec.reason.code != StoreLost.code):
            placed.stuck = None  # an operator gives up what is lost
        if placed.owner is None:
            if spec.status != "running" or placed.name in self._unreadable:
                self._unreadable.discard(placed.name)
                self._activate(placed)
        elif spec.status != "stopping":
            placed.owner.saw(spec)
            placed.owner.reassert(spec)
        elif placed.owner.spec.status != "stopping":
            placed.owner.stop(spec)

    def _on_foreign_spec(self, placed: PlacedAgent) -> None:
        """The spec is of foreign form: its agent's owner puts it back, or one that begins for this."""
        log.warning("a spec is not the mesh's", extra={"agent": placed.name})
        if placed.owner is not None and placed.owner.core is not None:
            placed.owner.put_spec_back()
        else:
            self._unreadable.discard(placed.name)
            self._activate(placed)

    def trouble(self) -> str | None:
        """What the store has lost of the agents here, and what to do about it; None if nothing is known to be lost."""
        return self._stuck.trouble(self.agents.values())

    # --- for the audit ----------------------------------------------------------------------------------------------
    def mailboxes(self) -> list[tuple[str, Mailbox | None]]:
        """Each agent and its mailbox; None while it sleeps."""
        return [(p.name, p.owner.mailbox if p.owner is not None else None) for p in self.agents.values()]

    def acknowledged(self) -> dict[str, Acknowledged]:
        """What the store has acknowledged of each loaded agent."""
        owners = [p.owner for p in self.agents.values() if p.owner is not None]
        return {owner.name: known for owner in owners if (known := owner.acknowledged) is not None}

    def lose_store(self, name: str) -> None:
        """The store has lost committed data of this agent: stop its owner."""
        placed = self.agents.get(name)
        if placed is not None and placed.owner is not None:
            placed.owner.lose_store()

    def look_behind(self, name: str, seq: int) -> None:
        """The agent's journal goes on, up to `seq`. An owner that has nothing to write would not notice: another one begins, and
        reads that."""
        placed = self.agents.get(name)
        if placed is not None and placed.owner is not None:
            placed.owner.yield_to(seq)

    def catch_up(self) -> None:
        """Messages may have been missed: read every lane again."""
        for placed in self.agents.values():
            if placed.owner is not None and placed.owner.mailbox is not None:
                placed.owner.mailbox.catch_up()
            else:
                self._fresh.append(placed)
        if self._fresh:
            self._begin_listening()


def _why(spec: Spec) -> str:
    """Why an agent ends, as its spec says."""
    reason = spec.reason
    return "it was stopped" if reason is None else reason.message or reason.code


def _moment(text: str) -> float | None:
    """Seconds since the epoch of a time in the registry; None if it is none."""
    try:
        return parse_time(text)
    except BadRequest:
        return None
