"""The owner of one agent: takes its mail and all else that comes in, and performs what the turn machine wants.

Dull on purpose: what is to be done is decided in `agentmesh.turn`, and `loop` keeps the order. The prompt task runs beside the
inputs, so that it can be killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from agentmesh import wire
from agentmesh.edge.transport import Message
from agentmesh.ownership import Claim
from agentmesh.records import Ledger
from agentmesh.subjects import LANES
from agentmesh.turn import new_core
from agentmesh.turn.step_values import StepTaken, WaitOver
from agentmesh.turn.values import (
    AnswerControl,
    Arrived,
    AwaitLeave,
    Backoff,
    BackoffOver,
    Cleared,
    Core,
    EffectsDone,
    Emit,
    GaveUp,
    Input,
    Perform,
    ReturnLeave,
    RunTurn,
    SetStatus,
    Start,
    Stop,
    Sweep,
    Swept,
    Tick,
    Wake,
)
from agentmesh.wire import ErrorBody, Mail, Spec
from agentmesh_node.owner import control_requests
from agentmesh_node.owner.claim import OwnershipLost, claim_ownership
from agentmesh_node.owner.cycle_probes import CycleProber
from agentmesh_node.owner.effect_handlers import EffectHandlers
from agentmesh_node.owner.effect_queue import EffectQueue
from agentmesh_node.owner.idle import IdleTracker
from agentmesh_node.owner.loop import STOP_GRACE_S, OwnerLoop
from agentmesh_node.owner.mail_purge import MailPurger
from agentmesh_node.owner.mailbox import Mailbox
from agentmesh_node.owner.spec_status import StatusWriter
from agentmesh_node.owner.suspect_permit import SuspectPermit
from agentmesh_node.services import Services
from agentmesh_node.turns.agent_factory import AgentFactory
from agentmesh_node.turns.runner import Runner
from agentmesh_node.turns.turn_run import TurnRun
from agentmesh_node.turns.turn_steps import TurnSteps

log = logging.getLogger("agentmesh.node")

LOOK_S = 0.01
"""How often something that gives no sign is looked at."""


class Owner:
    """One agent, owned by this process."""

    def __init__(
        self,
        services: Services,
        factory: AgentFactory,
        name: str,
        spec: Spec,
        claim: Claim,
        *,
        on_end: Callable[[Owner, OwnershipLost | None], None],
    ) -> None:
        self.name = name
        self.spec = spec
        self.claim = claim
        self._s = services
        self.factory = factory
        self._on_end = on_end
        self._driver = OwnerLoop(self, services, _PERFORM)
        self._emit_fact = services.events.emit
        self._begun = False
        self._closed = False
        self._leave: SuspectPermit | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._resting = IdleTracker(self, services)
        self._sweeper: asyncio.Task[None] | None = None
        self._replies: dict[str, str] = {}
        self._turn = TurnRun(self, services)
        self.runner: Runner | None = factory.runner(name, spec)
        self.mailbox: Mailbox | None = None
        self.trimmer: MailPurger | None = None
        self._performer: EffectQueue | None = None
        self._shown: SetStatus | None = None
        self._status = StatusWriter(services, name, claim.incarnation)

    # --- life of the owner ------------------------------------------------------------------------------------------
    async def activate(self) -> None:
        """Become the owner by a record, and go on with what the journal says.

        Raises:
            OwnershipLost: this process may not act.
            StoreLost: the store has lost committed records; nothing was written.
            Unavailable: it cannot be told now.
        """
        taken = await claim_ownership(self._s, self.name, self.spec, self.claim)
        if taken.ledger.phase == "over":
            if self.spec.status != "stopping":  # the last owner died before it could say so
                self._status.set("stopping", taken.ledger.failed)
            self._status.set("stopped", taken.ledger.failed)
            await self._status.settled()
            raise OwnershipLost("this life is over", final=True)
        self._driver.appender.committed = taken.fence
        await self._begin(taken.ledger, taken.died)

    async def _begin(self, ledger: Ledger, died: bool) -> None:
        s = self._s
        s.awake += 1
        self._driver.core = new_core(self.factory.config(self.name, self.spec, self.runner), ledger)
        deeds = EffectHandlers(
            agent=self.name,
            life=self.claim.incarnation,
            transport=s.transport,
            subjects=s.subjects,
            registry=s.registry,
            specs=s.specs,
            journal=s.journal,
            token=s.token,
            now=s.now,
            emit=self._emit,
            live=self._turn.tell_outcome,
            is_gone=lambda ref: control_requests.is_gone(self, s, ref),
        )
        self._performer = EffectQueue(
            deeds,
            lambda origins: self.feed(EffectsDone(origins)),
            lambda origin, error: self.feed(GaveUp(origin, error)),
            now=s.now,
            window_s=s.duplicate_window_s,
        )
        self.mailbox = Mailbox(s.transport, s.subjects, self.name, ledger.positions, self._arrived)
        self.trimmer = MailPurger(self, s, ledger.positions)
        self._emit("activated", {"generation": self.claim.generation})
        self._performer.add(ledger.effects.items(), doubtful=True)
        # First what waits: a chained prompt must not overtake events, nor an event's prompt the mail before it.
        await self.mailbox.caught_up()
        self._begun = True
        if self.spec.status == "stopping" and (self.runner is None or ledger.phase == "new") and ledger.phase != "stopped":
            self.feed(Stop(self._stop_reason()))
        elif self.runner is None and ledger.phase != "stopped":
            raise OwnershipLost(f"this node does not serve the kind {self.spec.kind}", final=True)
        else:
            self.feed(Start(died))
            if self.spec.status == "stopping":
                self.stop(self.spec)
        self._resting.arm()

    def _stop_reason(self) -> ErrorBody:
        return self.spec.reason or ErrorBody(code="stopped", message="")

    async def close(self) -> None:
        """Stop acting, at once and without a word: the journal has all that counts."""
        if self._closed:
            return
        self._closed = True
        if self.core is not None:
            self._s.awake -= 1
        for handle in self._timers:
            handle.cancel()
        for task in (self._driver.task, self._sweeper):
            if task is not None and task is not asyncio.current_task() and not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=STOP_GRACE_S)
        if self.runner is not None:
            await self._turn.kill()
            self.runner.end_span("lost")
            await self.runner.release()
        if self.mailbox is not None:
            await self.mailbox.close()
        if self._performer is not None:
            await self._performer.close()
        await self._status.close()
        if self._leave is not None:
            await self._leave.give_back()

    @property
    def core(self) -> Core | None:
        """What the turn machine knows of the agent; None until this owner has made itself the owner."""
        return self._driver.core

    @property
    def begun(self) -> bool:
        """Whether what waits for the agent is known, so that its state can be told."""
        return self._begun

    @property
    def committed(self) -> int:
        """The sequence of the newest record that this owner knows to be stored."""
        return self._driver.appender.committed

    def end(self, lost: OwnershipLost | None) -> None:
        """This owner can do no more: why, or None where the agent's life is over."""
        self._on_end(self, lost)

    def lose_store(self) -> None:
        """The store does not have all that was committed any more: stop, and write nothing."""
        if not self._closed:
            self._on_end(self, OwnershipLost("the store ends before what was committed or consumed", final=False, broken=True))

    @property
    def closed(self) -> bool:
        """Whether this owner acts no more."""
        return self._closed

    # --- inputs -----------------------------------------------------------------------------------------------------
    def feed(self, item: Input) -> None:
        """Take an input: at once, in the step in which it arrived, or behind what is being handled."""
        if not self._closed:
            self._driver.feed(item)

    def stir(self) -> None:
        """Something has come in, so the agent is not at rest."""
        self._resting.stir()

    def live(self, lane: str, message: Message) -> None:
        """Take what came on the agent's one subscription."""
        if lane == "control":
            control_requests.handle(self, self._s, message)
        elif lane in LANES and self.mailbox is not None:
            self.mailbox.live(lane, message)

    def ask_later(self, item: Input, token: str, reply: str) -> None:
        """Feed a control request whose answer goes to `reply` when the machine gives it."""
        self._replies[token] = reply
        self.feed(item)

    def stop(self, spec: Spec) -> None:
        """The registry says `stopping`."""
        self.spec = spec
        if self._begun:  # else `_begin` sees it: where the agent stands must be known before it is stopped
            self.feed(Stop(self._stop_reason()))
            self.later(STOP_GRACE_S, self._driver.hurry)

    def _arrived(self, mail: tuple[Mail, ...]) -> None:
        self.feed(Arrived(mail))
        if self.trimmer is not None:
            self.trimmer.arrived(mail)

    def later(self, seconds: float, action: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `action` after so many seconds, unless the owner is closed by then."""

        def fire() -> None:
            self._timers.discard(handle)
            if not self._closed:
                action()

        handle = asyncio.get_running_loop().call_later(max(0.0, seconds), fire)
        self._timers.add(handle)
        return handle

    def call_off(self, handle: asyncio.TimerHandle) -> None:
        """Cancel what `later` has returned."""
        handle.cancel()
        self._timers.discard(handle)

    # --- commands ---------------------------------------------------------------------------------------------------
    def _add_effects(self, command: Perform) -> None:
        assert self._performer is not None
        self._performer.add(command.effects)

    def _answer(self, command: AnswerControl) -> None:
        if command.token.startswith("trim-"):
            assert self.trimmer is not None
            self._s.spawn(self.trimmer.remembered(command.token))
        else:
            self._s.spawn(control_requests.answer(self._s, self._replies.pop(command.token, ""), wire.encode_reply(command.body)))

    def _tell_fact(self, command: Emit) -> None:
        core, turn = self.core, command.turn
        assert core is not None
        if turn is None:
            turn = core.active.number if core.active is not None else core.ledger.turn
        self._emit_fact(self.name, command.kind, turn, command.fields)

    def _wake_at(self, command: Wake) -> None:
        self.later(command.at - self._s.now() + 0.001, lambda: self.feed(Tick()))

    def _back_off(self, command: Backoff) -> None:
        if self.runner is not None:
            self.runner.end_span("crash")
            self._s.spawn(self.runner.release())
            self.runner.renew()
        self.later(command.seconds, lambda: self.feed(BackoffOver()))

    def _await_leave(self, command: AwaitLeave) -> None:
        if self._leave is None:
            self._leave = SuspectPermit(self._s.suspects, lambda: self.feed(Cleared()))

    def _return_leave(self, command: ReturnLeave) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            self._s.spawn(leave.give_back())

    def _begin_sweep(self, command: Sweep) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name=f"sweep {self.name}")

    # --- turns ------------------------------------------------------------------------------------------------------
    async def kill_turn(self) -> None:
        """End the prompt task; nothing of it runs on."""
        await self._turn.kill()

    @property
    def steps(self) -> TurnSteps | None:
        """The steps of the running turn."""
        return self._turn.steps

    @property
    def prober(self) -> CycleProber:
        """What finds circles of agents that wait for one another."""
        return self._turn.prober

    # --- registry and telemetry ---------------------------------------------------------------------------------------
    def _set_status(self, command: SetStatus) -> None:
        if command.status == "stopping":
            self.spec = msgspec.structs.replace(self.spec, status="stopping", reason=command.reason)
        self._shown = command
        self._status.set(command.status, command.reason)

    def reassert(self, spec: Spec) -> None:
        """Say again in the registry how the agent is, if its spec says otherwise: the leader made it `wanted` while this node
        was thought lost, or a former owner that was frozen has written late (docs/architecture.md#the-registry)."""
        shown = self._shown
        if shown is not None and shown.status in ("running", "failed") and spec.status != shown.status:
            self._status.again(shown.status, shown.reason)

    async def settled(self) -> None:
        """Return when the registry shows what this owner last said."""
        await self._status.settled()

    def _emit(self, kind: str, fields: dict[str, Any]) -> None:
        self._tell_fact(Emit(kind, fields))

    async def _sweep(self) -> None:
        """Feed in what the lanes hold up to their last sequences, read after the `stopped` record was committed."""
        assert self.mailbox is not None
        await self.mailbox.caught_up(proven=True)
        self.feed(Swept())

    # --- rest ---------------------------------------------------------------------------------------------------------
    @property
    def idle(self) -> bool:
        """Whether no turn runs and no record is in flight."""
        core = self.core
        return core is not None and core.active is None and not self._driver.busy

    @property
    def settled_down(self) -> bool:
        """Whether nothing is left to say or to do for which the agent would have to stay loaded."""
        core = self.core
        return core is not None and not self._status.busy and not any(m.deadline is not None for m in core.prompts)

    def sleep(self) -> None:
        """Leave the agent asleep: only its subscription is kept."""
        self._on_end(self, None)

    async def retire(self) -> None:
        """Begin nothing more, and return when the running turn is over (see `IdleTracker.retire`)."""
        await self._resting.retire()

    async def pause(self) -> None:
        """Return when something of what runs has ended, or soon, if nothing does."""
        turn = self.runner.turn_task if self.runner is not None else None
        waiting = [task for task in (self._driver.task, turn) if task is not None and not task.done()]
        if waiting:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(LOOK_S)


_PERFORM: dict[type, Callable[[Owner, Any], None]] = {
    RunTurn: lambda owner, command: owner._turn.start(command),
    Emit: Owner._tell_fact,
    Perform: Owner._add_effects,
    AnswerControl: Owner._answer,
    SetStatus: Owner._set_status,
    Wake: Owner._wake_at,
    Backoff: Owner._back_off,
    Sweep: Owner._begin_sweep,
    AwaitLeave: Owner._await_leave,
    ReturnLeave: Owner._return_leave,
    StepTaken: lambda owner, command: owner._turn.step_taken(command),
    WaitOver: lambda owner, command: owner._turn.wait_over(command),
}
"""The commands that are performed at once; the others are awaited."""
