"""The owner of one agent: feeds its mail and all other inputs to the turn machine, and performs the machine's commands.

Dull on purpose: decisions are made in `agentmesh.turn`, and `loop` keeps the order. The prompt task runs beside the inputs, so
that it can be killed. Each of the other files here is one part: it gets the loop, or nothing of an owner at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from agentmesh.configuration import shown_in
from agentmesh.control_operations import is_control
from agentmesh.control_values import Activity, Probe
from agentmesh.edge.read import TIME_STAMP, StoredMessage
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Message
from agentmesh.errors import BadRequest
from agentmesh.formats import required
from agentmesh.ledger_entries import TurnInfo
from agentmesh.message_ids import MessageIds
from agentmesh.outcomes import AnsweredMessage, answered_by
from agentmesh.ownership import Claim
from agentmesh.records import Ledger
from agentmesh.registry_values import Spec
from agentmesh.subjects import LANES
from agentmesh.trace.spans import Began
from agentmesh.turn import new_core
from agentmesh.turn.step_values import StepTaken, WaitOver
from agentmesh.turn.tracing import began_of
from agentmesh.turn.values import (
    AnswerControl,
    Arrived,
    AwaitPermit,
    Backoff,
    BackoffOver,
    Cleared,
    Core,
    EffectsDone,
    Emit,
    GaveUp,
    Input,
    Perform,
    Phase,
    Retire,
    ReturnPermit,
    RunTurn,
    SetStatus,
    Start,
    Stop,
    Sweep,
    Swept,
    Tick,
    TurnAttempt,
    Wake,
)
from agentmesh.wire import MSG_ID, ORIGIN, ErrorBody, Mail, parse_time, withdrawal_in
from agentmesh_node.owner.activity import activity_of
from agentmesh_node.owner.claim import OwnershipLost, claim_ownership
from agentmesh_node.owner.control_requests import ControlRequests
from agentmesh_node.owner.cycle_probes import CycleProber
from agentmesh_node.owner.effect_handlers import EffectHandlers
from agentmesh_node.owner.effect_queue import EffectQueue
from agentmesh_node.owner.idle import IdleTracker
from agentmesh_node.owner.journal_writer import JournalWriter
from agentmesh_node.owner.loop import STOP_GRACE_S, Handlers, OwnerLoop
from agentmesh_node.owner.mail_purge import MailPurger
from agentmesh_node.owner.mailbox import Mailbox
from agentmesh_node.owner.predecessors import LOOKED_BACK_S, look_back, tell_if_fenced
from agentmesh_node.owner.spec_status import StatusWriter
from agentmesh_node.owner.suspect_permit import SuspectPermit
from agentmesh_node.owner.wait_watch import WaitWatch
from agentmesh_node.services import Services
from agentmesh_node.store_loss import Acknowledged
from agentmesh_node.turns.agent_factory import AgentFactory
from agentmesh_node.turns.runner import Runner
from agentmesh_node.turns.turn_run import TurnRun

log = logging.getLogger("agentmesh.node")

AT_ONCE_S = 10.0
"""An agent that is activated so soon after its placement has not slept here meanwhile: its takeover began with the placement."""


class Owner:
    """One agent, owned by this process. `activate`, then `close`.

    All inputs go through `OwnerLoop`; the other parts get that loop, and callbacks of this object.
    """

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
        """`on_end` is called when this owner ends: with the reason, or with None if the agent's life is over or it may sleep."""
        self.name = name
        self.spec = spec
        self.claim = claim
        self._s = services
        self._factory = factory
        self._on_end = on_end
        self._emit_fact = services.events.emit
        self._begun = False
        self._made = services.now()
        self._measured = factory.metrics.of(spec.kind, name)
        self._permit: SuspectPermit | None = None
        self._sweep_task: asyncio.Task[None] | None = None
        self._shown: SetStatus | None = None
        self.mailbox: Mailbox | None = None
        self.runner: Runner | None = factory.runner(name, spec)
        self._status = StatusWriter(services, name, claim.incarnation, lambda: self.spec, self._configured)
        self._loop = OwnerLoop(
            name,
            writer=JournalWriter(services, name, committed=0, kind=spec.kind, written=self._measured.journal_bytes),
            work=services.run_queue.share(name),
            now=services.now,
            user_code=self.runner,
            formats=services.formats,
            on_turn=self._turn_ended if self._measured.on else None,
            on_lasting=self._watch_attempt,
        )
        self._turn = TurnRun(
            services,
            name,
            claim.generation,
            feed=self._loop.feed,
            runner=self.runner,
            begin_to_wait=self._begin_to_wait,
            on_lasting=self._watch_attempt,
        )
        self._purger = MailPurger(self._loop, services)
        self._ids = MessageIds(services.remember_s)
        self._looks_back: asyncio.Task[None] | None = None
        """What tells of the owners before, from the moment at which the agent is taken."""
        self._rests_by = 0.0
        """On the process's own clock: when the agent may rest although that is not over."""
        self._idle = IdleTracker(
            self._loop,
            services,
            self._purger,
            may_rest=self._may_rest,
            may_sleep=self._may_sleep,
            on_sleep=lambda: self._report_end(None),
        )
        self._control = ControlRequests(
            self._loop,
            services,
            claim.incarnation,
            spec=lambda: self.spec,
            backend_name=factory.backend_name,
            spent=self._turn.spent,
            turn=lambda: self._turn.number,
            tool=self._turn.tool,
            ran=self._turn.ran,
            inner=self._turn.inner,
            on_probe=self._on_probe,
            answer_type=self.runner.answer_type if self.runner is not None else None,
        )
        handlers = EffectHandlers(
            services,
            name,
            claim.incarnation,
            emit=self._emit,
            end_stream=self._turn.end_live_events,
            is_gone=self._control.is_gone,
            sampled=services.traces.ratio if services.traces.traced else None,
        )
        self._answered: AnsweredMessage | None = None
        self._effects = EffectQueue(
            handlers,
            lambda origins: self.feed(EffectsDone(origins)),
            lambda origin, error: self.feed(GaveUp(origin, error)),
            now=services.now,
            window_s=services.duplicate_window_s,
        )

    def _watch_attempt(self, attempt: TurnAttempt) -> None:
        """See to it that the attempt says that it began, if it still runs in a moment: what runs for it has not ended at once."""
        if self._s.traces.facts != "off" and not attempt.watched:
            attempt.watched = True
            self._s.attempts.watch(functools.partial(self._running, attempt))

    def _running(self, attempt: TurnAttempt) -> Began | None:
        """The fact that this attempt began, if it still runs."""
        core = self._loop.core
        active = core.active if core is not None else None
        if core is None or active is None or active.attempt is not attempt or self.closed:
            return None  # as of most
        if core.inflight is not None and not core.inflight.side:
            return None  # it has run, and its record is on its way
        return began_of(core)

    def leave(self) -> None:
        """The agent is given up in order: say so of the attempt that runs, for the next owner to tell."""
        core = self.core
        if self._s.traces.facts == "off" or self.closed or core is None or core.active is None or core.inflight is not None:
            return
        if (fact := began_of(core)) is not None:
            self._s.traces.left(msgspec.structs.replace(fact, left=self._s.now()), self._turn.inner(), self.claim.epoch)

    def _configured(self, spec: Spec) -> Spec:
        """`spec` as it shows the configuration in force, and what the class declares of its answers."""
        shown = spec if self.core is None else shown_in(spec, self.core.ledger)
        if self.runner is None or shown.answer_schema == self.runner.answer_schema:
            return shown
        return msgspec.structs.replace(shown, answer_schema=self.runner.answer_schema)

    @functools.cached_property
    def _prober(self) -> CycleProber:
        """Made at its first use: most agents never wait in mid-turn."""
        return CycleProber(self._loop, self._s, waiting=lambda: self._turn.waiting)

    @functools.cached_property
    def _watch(self) -> WaitWatch:
        return WaitWatch(self._loop, self._s, waiting=lambda: self._turn.waiting, for_halted=self._turn.waits_for_halted)

    def _begin_to_wait(self) -> None:
        self._prober.arm()
        self._watch.arm()

    def _on_probe(self, probe: Probe) -> None:
        self._prober.received(probe)

    # --- life of the owner ------------------------------------------------------------------------------------------
    async def activate(self) -> None:
        """Become the owner by a record, and go on with what the journal says.

        Raises:
            OwnershipLost: this process may not act.
            StoreLost: the store has lost committed records; nothing was written.
            Unavailable: the store cannot be read or written now.
        """
        claimed = await claim_ownership(self._s, self.name, self.spec, self.claim)
        if claimed.left is not None:
            self._looks_back = look_back(self._s, claimed.left)
            self._rests_by = self._s.monotonic() + LOOKED_BACK_S
        if claimed.ledger.phase == "over":
            if self.spec.status != "stopping":  # the last owner died before it could write this
                self._status.set("stopping", claimed.ledger.failed)
            self._status.set("stopped", claimed.ledger.failed)
            await self._status.settled()
            raise OwnershipLost("this life is over", final=True)
        self._answered = claimed.answered
        self._loop.writer.begin(claimed.fence, claimed.version, required(self.spec.labels))
        await self._begin(claimed.ledger, claimed.died, claimed.taken)

    async def _begin(self, ledger: Ledger, died: bool, taken: bool) -> None:
        s = self._s
        s.awake += 1
        self._loop.begin(
            new_core(self._factory.config(self.name, self.spec, self.runner), ledger),
            self._command_handlers(),
            kill_turn=self._turn.kill,
            on_input=self._idle.on_input,
            on_end=self._report_end,
        )
        self.mailbox = Mailbox(s.transport, s.subjects, self.name, ledger.positions, self._on_mail, stored=self._on_stored)
        self._s.traces.owns(self.name, self.claim.generation, owned=True)
        self._emit("activated", {"generation": self.claim.generation})
        self._effects.add(ledger.effects.items(), doubtful=True)
        # Waiting mail comes first: a chained prompt must not overtake events, nor an event's prompt the mail before it.
        await self.mailbox.caught_up()
        self._begun = True
        self._measured.activations.value += 1
        if taken:
            placed = self.claim.placed
            at_once = placed is not None and self._made - placed < AT_ONCE_S
            self._measured.taken_over(s.now() - (placed if placed is not None and at_once else self._made))
        if self.spec.status == "stopping" and (self.runner is None or ledger.phase == "new") and ledger.phase != "stopped":
            self.feed(Stop(self._stop_reason()))
        elif self.runner is None and ledger.phase != "stopped":
            raise OwnershipLost(f"this node does not serve the kind {self.spec.kind}", final=True)
        else:
            self.feed(Start(died))
            if self.spec.status == "stopping":
                self.stop(self.spec)
        self._idle.arm()

    def _stop_reason(self) -> ErrorBody:
        return self.spec.reason or ErrorBody(code="stopped", message="")

    async def close(self) -> None:
        """Stop acting at once, without writing anything: the journal has all that is needed."""
        if self.closed:
            return
        if self.core is not None:
            self._s.awake -= 1
            self._s.traces.owns(self.name, self.claim.generation, owned=False)
            tell_if_fenced(self._s, self.name, self.claim.generation)
        await self._loop.close()
        await cancel_and_wait(self._sweep_task, within_s=STOP_GRACE_S)
        if self.runner is not None:
            await self._turn.kill()
            await self.runner.release()
        if self.mailbox is not None:
            await self.mailbox.close()
        await self._effects.close()
        await self._status.close()
        if self._permit is not None:
            await self._permit.give_back()

    def _report_end(self, lost: OwnershipLost | None) -> None:
        self._on_end(self, lost)

    # --- seen from outside ------------------------------------------------------------------------------------------
    @property
    def core(self) -> Core | None:
        """The turn machine's state of the agent; None until the `activated` record is committed."""
        return self._loop.core

    @property
    def begun(self) -> bool:
        """Whether the waiting mail has been read, so that the agent's status can be given."""
        return self._begun

    @property
    def committed(self) -> int:
        """The sequence of the newest record that this owner knows to be stored."""
        return self._loop.writer.committed

    @property
    def acknowledged(self) -> Acknowledged | None:
        """What the store has acknowledged of the agent; None while that is not known."""
        if self.core is None or not self.begun:
            return None
        given = answered_by(self._effects.outcome) if self._effects.outcome is not None else None
        return Acknowledged(self.committed, self.core.ledger.positions, given or self._answered)

    @property
    def idle(self) -> bool:
        """Whether no turn runs and no record is in flight."""
        return self._loop.idle

    @property
    def movable(self) -> bool:
        """Whether nothing runs that another node could not go on with."""
        return self.idle or self._turn.movable

    @property
    def turn_code(self) -> str:
        """The version of the code with which the turn began that is open now, or was handed on; empty if that is not known."""
        turning = self.core.ledger.turning if self.core is not None else None
        return "" if turning is None else turning.code

    @property
    def closed(self) -> bool:
        """Whether this owner has stopped acting."""
        return self._loop.closed

    async def settled(self) -> None:
        """Return when the registry shows the status that this owner set last."""
        await self._status.settled()

    async def retire(self) -> None:
        """Begin nothing more, and return when the running turn is over, or handed on (see `IdleTracker.retire`)."""
        self.feed(Retire())
        self._turn.leave()  # behind that: what it feeds counts only for an owner that retires
        await self._idle.retire()
        if self.core is not None and self.core.phase is Phase.HANDED_ON:
            self._turn.tell_handed_on()
            self._control.handed_on()

    def lose_store(self) -> None:
        """The store has lost committed data: stop, and write nothing."""
        if not self.closed:
            self._report_end(OwnershipLost("the store ends before what was committed or consumed", final=False, broken=True))

    def yield_to(self, seq: int) -> None:
        """A record that this owner has not written stands in the journal, at `seq` or before: stop, as its next append would."""
        if not self.closed and self.idle and self.committed < seq:
            self._report_end(OwnershipLost(f"the journal goes on behind record {self.committed}", final=False))

    # --- inputs -----------------------------------------------------------------------------------------------------
    def feed(self, item: Input) -> None:
        """Feed an input to the turn machine (see `OwnerLoop.feed`)."""
        self._loop.feed(item)

    def on_copy(self, lane: str, message: Message) -> None:
        """Handle a message of the agent's one subscription: a copy of stored mail, or a control request."""
        if lane in LANES:
            if self.mailbox is not None:
                self.mailbox.on_copy(lane, message)
        elif is_control(lane):
            self._control.handle(message)

    def _on_mail(self, mail: tuple[Mail, ...]) -> None:
        mail = self._ids.marked(mail)
        withdrawn = any(LANES[m.lane].kind == "answer" and withdrawal_in(m) is not None for m in mail)
        self._loop.feed(Arrived(mail, self._turn.spent(), self._turn.number) if withdrawn else Arrived(mail))
        self._purger.arrived(mail)

    def _on_stored(self, lane: str, messages: list[StoredMessage]) -> None:
        """Note what a lane holds of mail that has been seen, most of it by former owners."""
        if LANES[lane].stream == "mail":
            for message in messages:
                # On trusted lanes, too: of a user that the gateway knows. Mail of agents is known by its origin.
                if (msg_id := message.headers.get(MSG_ID)) and ORIGIN not in message.headers:
                    self._ids.note(lane, message.seq, msg_id, message.headers.get(TIME_STAMP))
        self._purger.stored(lane, messages)

    def stop(self, spec: Spec) -> None:
        """The registry says `stopping`."""
        self.spec = spec
        if self._begun:  # else `_begin` sees the new spec: the waiting mail must be read before the agent is stopped
            self.feed(Stop(self._stop_reason()))
            self._loop.later(STOP_GRACE_S, self._loop.limit_callbacks)

    def reassert(self, spec: Spec) -> None:
        """Write the agent's status to the registry again if its spec differs: the leader made it `wanted` while this node
        was thought lost, or a former owner that was frozen has written late (docs/architecture.md#the-registry). So, too, if the
        spec shows another configuration than the one in force."""
        shown = self._shown
        if shown is None or shown.status not in ("running", "failed"):
            return
        if spec.status != shown.status or self._configured(spec) is not spec:
            self._status.again(shown.status, shown.reason)

    def saw(self, spec: Spec) -> None:
        """Keep a spec that was seen: should a message that is not the mesh's replace it, this one is put back."""
        if self.spec.status != "stopping":
            self.spec = spec

    def put_spec_back(self) -> None:
        """Write the spec again, which is of foreign form now."""
        shown = self._shown
        if shown is not None:
            self._status.again(shown.status, shown.reason)
        else:
            self._status.again(self.spec.status, self.spec.reason)

    # --- commands ---------------------------------------------------------------------------------------------------
    def _command_handlers(self) -> Handlers:
        """The handlers of commands that are performed at once; the loop awaits the other commands."""
        return {
            RunTurn: self._run_turn if self._measured.on else self._turn.start,
            StepTaken: self._turn.step_taken,
            WaitOver: self._turn.wait_over,
            Emit: self._publish_fact,
            Perform: self._add_effects,
            AnswerControl: self._answer,
            SetStatus: self._set_status,
            Wake: self._wake_at,
            Backoff: self._back_off,
            Sweep: self._begin_sweep,
            AwaitPermit: self._await_permit,
            ReturnPermit: self._return_permit,
        }

    def _add_effects(self, command: Perform) -> None:
        self._effects.add(command.effects)

    def _run_turn(self, command: RunTurn) -> None:
        core = self.core
        active = core.active if core is not None else None
        if core is not None and active is not None and active.mail is not None and active.mail.stored is not None:
            tried = active.key in core.ledger.attempts or active.key in core.ledger.takeovers
            if not tried:
                with contextlib.suppress(BadRequest):  # it is the server's word, as far as anybody knows
                    self._measured.waited(active.started - parse_time(active.mail.stored))
        self._turn.start(command)

    def _turn_ended(self, turn: TurnInfo) -> None:
        self._measured.turn(turn.ended - turn.started, turn.error.code if turn.error is not None else None)

    def _answer(self, command: AnswerControl) -> None:
        if self._purger.asked_for(command.token):
            self._s.spawn(self._purger.remembered(command.token))
        else:
            self._control.answer(command)

    def _publish_fact(self, command: Emit) -> None:
        core, turn = self._loop.core, command.turn
        assert core is not None
        if turn is None:
            turn = core.active.number if core.active is not None else core.ledger.turn
        self._emit_fact(self.name, command.kind, turn, command.fields, core.now)

    def _emit(self, kind: str, fields: dict[str, Any]) -> None:
        self._publish_fact(Emit(kind, fields))

    def _wake_at(self, command: Wake) -> None:
        left = command.at - self._s.now()
        # The servers' time may go slower than the loop's for a while (`ServerClock`): then it is not time yet.
        self._loop.later(left + 0.001, lambda: self._wake_at(command) if self._s.now() < command.at else self._tick())

    def _tick(self) -> None:
        self.feed(Tick(self._turn.spent(), self._turn.number))

    def _back_off(self, command: Backoff) -> None:
        if self.runner is not None:
            self._s.spawn(self.runner.release())
            self.runner.renew()
        self._loop.later(command.seconds, lambda: self.feed(BackoffOver()))

    def _await_permit(self, command: AwaitPermit) -> None:
        if self._permit is None:
            self._permit = SuspectPermit(self._s.suspects, lambda: self.feed(Cleared()))

    def _return_permit(self, command: ReturnPermit) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            self._s.spawn(permit.give_back())

    def activity(self) -> Activity | None:
        """What the agent is doing; None while it is being activated."""
        return None if self.core is None else activity_of(self.name, self.core, self._turn.spent, self._turn.tool)

    def _begin_sweep(self, command: Sweep) -> None:
        self._sweep_task = asyncio.get_running_loop().create_task(self._sweep(), name=f"sweep {self.name}")

    async def _sweep(self) -> None:
        """Feed in what the lanes hold up to their last sequences, read after the `stopped` record was committed."""
        assert self.mailbox is not None
        await self.mailbox.caught_up(proven=True)
        self.feed(Swept())

    def _set_status(self, command: SetStatus) -> None:
        if command.status == "stopping":
            self.spec = msgspec.structs.replace(self.spec, status="stopping", reason=command.reason)
        self._shown = command
        if command.status == "failed" and command.reason is not None:
            log.error("agent failed: %s", command.reason.message, extra={"agent": self.name})
        self._status.set(command.status, command.reason)

    def _may_rest(self) -> bool:
        """Whether the owners before are told of, or that takes too long to keep the agent loaded."""
        looks = self._looks_back
        return looks is None or looks.done() or self._s.monotonic() >= self._rests_by

    def _may_sleep(self) -> bool:
        """Whether nothing is left to do for which the agent must stay loaded."""
        core = self.core
        return core is not None and not self._status.busy and not any(m.deadline is not None for m in core.prompts)
