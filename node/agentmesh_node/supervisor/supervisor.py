"""The supervisor: places agents on nodes, and moves them when a node dies (docs/architecture.md#supervisors).

Any number of supervisors may run. One leads (`leader_lease`): it finds out which nodes are alive (`membership`, by what the
`failure_detector` finds; that one and the lease run in `lease_and_pings`), keeps an index of the registry (`registry_index`),
asks the pure planner what to do about each change, and does it (`placement_writer`). The others keep the same index, so that they
can take over at once.

    registry change, ping, lease ->  registry index  ->  planner.plan  ->  placement writer  ->  registry

Work on all agents is done in parts, and between two parts the loop turns: each plan is made from the index as it is at that
moment and carried out by compare-and-set, so changes meanwhile do no harm.

After its connection was lost, a supervisor first loads its view again and pings all nodes anew (case 226). It holds no state that
the registry does not have: any other supervisor can take its place at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from agentmesh import semconv
from agentmesh.control_values import ControlRequest, NodeStats
from agentmesh.edge.batches import in_parts
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.failures import EDGE_ERRORS
from agentmesh.edge.journal import Journal
from agentmesh.edge.journal_reader import JournalReader
from agentmesh.edge.registry import Entry, Registry, View
from agentmesh.edge.replies import usable_reply
from agentmesh.edge.retry import UPKEEP_RETRY
from agentmesh.edge.server_time_keeper import ServerTime
from agentmesh.edge.tasks import cancel_and_wait, first_of, wait_for
from agentmesh.edge.transport import Disconnected, Message, RequestTimeout, Subscription, Transport
from agentmesh.errors import BadRequest, MeshError, Unavailable
from agentmesh.formats import SECOND
from agentmesh.names import node_id
from agentmesh.planner import explain, plan
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import encode, encode_failure, encode_reply, format_time
from agentmesh_node.formats import Formats
from agentmesh_node.gateway.gateway import Gateway
from agentmesh_node.liveness_thread import LivenessLoop
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.decision_log import DecisionLog
from agentmesh_node.supervisor.failure_detector import PingState
from agentmesh_node.supervisor.journal_check import JournalCheck
from agentmesh_node.supervisor.late_mail import LateMailFinder
from agentmesh_node.supervisor.lease_and_pings import LeaseAndPings, keep
from agentmesh_node.supervisor.membership import Membership
from agentmesh_node.supervisor.moves import Moves
from agentmesh_node.supervisor.placement_writer import PlacementWriter, needs_reason
from agentmesh_node.supervisor.registry_index import RegistryIndex
from agentmesh_node.supervisor.spec_repair import SpecRepair
from agentmesh_node.supervisor.unclaimed_mail import UnclaimedMailFinder
from agentmesh_node.telemetry.instruments import own

PATTERNS = ("agents.>", "nodes.*", "placements.>")
"""Registry keys that a supervisor follows."""
_OF_NODES = ("drain", "cordon", "release", "sweep")
"""Requests that only nodes carry out."""
_ASKS_S = 2.0
"""How long asks that were taken may still be served when the supervisor ends."""
_REASONS_AT_ONCE = 256
_AGENTS_AT_ONCE = 1024
"""Most agents of one plan: its placements take a quarter of a second, and then more urgent agents can come first."""
_BREATH_S = 0.001
"""Pause between two plans of a backlog: the loop turns, and the liveness thread gets the interpreter."""


class Supervisor:
    """One supervisor on a transport that its caller owns. The streams must exist (`mesh setup`).

    Args:
        supervisor_id: one token; differs from the ids of all other supervisors and of all nodes.
        liveness: the loop for its lease and its pings, apart from the loop that plans and places.

    Raises:
        BadRequest: `supervisor_id` is not a valid id.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        supervisor_id: str,
        settings: SupervisorSettings | None = None,
        *,
        liveness: LivenessLoop,
        ambient: Ambient = SYSTEM,
    ) -> None:
        self.id = node_id(supervisor_id)
        self.settings = settings if settings is not None else SupervisorSettings()
        self._own_clock = ambient.now
        self._server_time = ServerTime(transport, subjects, ambient)
        ambient = ambient._replace(now=self._server_time.clock.now)
        now = ambient.now
        self.boot = ambient.token(8)
        self._transport = transport
        self._subjects = subjects
        registry = Registry(transport, subjects)
        self._registry = registry
        self._view = View(registry, PATTERNS, self._observe)
        self._index = RegistryIndex()
        self._wake = asyncio.Event()
        self._decisions = DecisionLog(transport, subjects, self.id, now)
        self._lease_and_pings = LeaseAndPings(
            liveness,
            subjects,
            self.id,
            self.settings,
            may_claim=lambda: self._view.fresh,
            on_led=self._led,
            on_heard=self._heard,
            on_gap=self._cut_off,
            ambient=ambient,
        )
        self._members = Membership(registry, self._index, self._lease_and_pings, self._decisions, self.settings)
        self._writer = PlacementWriter(
            registry,
            self._index,
            self._decisions,
            in_flight=self.settings.writes_in_flight,
            may_act=lambda: self._lease_and_pings.leads,
            wall_clock=now,
        )
        self._moves = Moves(
            transport,
            subjects,
            self._index,
            self._writer,
            self._decisions,
            may_act=lambda: self._lease_and_pings.leads and not self._stale,
            wake=self._wake.set,
        )
        self._late_mail = LateMailFinder(
            transport,
            subjects,
            lambda: {name: spec for name, spec in self._index.specs.items() if spec.status == "stopped"},
            self._index.readers,
            lambda: self._lease_and_pings.leads and not self._stale,
        )
        self._journals = JournalCheck(
            Journal(transport, subjects),
            self._index.behind,
            self._writer.require,
            lambda: self._lease_and_pings.leads and not self._stale,
        )
        self.repair = SpecRepair(
            registry,
            JournalReader(transport, subjects),
            self._index,
            lambda: self._lease_and_pings.leads and not self._stale,
            now,
            sees=lambda: self._view.fresh,
            doubt=self._view.doubt,
            monotonic=ambient.monotonic,
        )
        self._formats = Formats(registry, ambient.monotonic)
        self._unclaimed = UnclaimedMailFinder(
            transport,
            subjects,
            registry,
            self._decisions,
            self.settings,
            is_known=lambda agent: self._index.revision(spec_key(agent)) > 0 or agent in self._index.dropped,
            may_act=lambda: self._lease_and_pings.leads and not self._stale,
            reads_all=lambda: self._formats.writes >= SECOND,
            ambient=ambient,
        )
        self._stop = asyncio.Event()
        self._instruments = own()
        self._observed: list[Callable[[], None]] = []
        self._stale = True
        self._replan_at = 0.0
        self._retry_at: float | None = None
        self._pauses = iter(UPKEEP_RETRY)
        self._waiting_since: dict[str, float] = {}
        self._asks = Gateway(
            transport,
            subjects,
            registry,
            now=now,
            token=partial(ambient.token, 8),
            spawn=self._serve_ask,
            callers_waiting=self.settings.callers_waiting,
            callers_rate=self.settings.callers_rate,
            formats=self._formats,
            exists=lambda agent: agent in self._index.specs,
        )
        self._serving: set[asyncio.Task[Any]] = set()
        self._subscriptions: list[Subscription] = []
        self._forget_gap: Callable[[], None] = lambda: None
        self._main: asyncio.Task[None] | None = None

    # --- life -----------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Begin: follow the registry, answer pings, stand for election. Returns when it takes part.

        Raises:
            NotPermitted: the server refuses what a supervisor needs.
            Unavailable: the registry cannot be read now.
        """
        try:
            await self._server_time.start()
            await self._view.start()
            await self._formats.start()
            await self._reconcile()
            for subject in (self._subjects.node(self.id), self._subjects.supervisors()):
                self._subscriptions.append(await self._transport.subscribe(subject, self._answer))
            self._forget_gap = self._transport.on_gap(self._cut_off)
            await self._asks.start()
            await self._transport.flush()  # before that, others could find no subscription and take its lease
            if (refusal := self._transport.refusal) is not None:
                raise refusal
            await self._lease_and_pings.start()
        except (Disconnected, RequestTimeout) as error:
            await self.close()
            raise Unavailable("the connection to NATS was lost while the supervisor began; try again") from error
        except BaseException:
            await self.close()
            raise
        self._main = asyncio.create_task(self._serve(), name=f"supervisor {self.id}")
        observed = self._instruments.observed
        self._instruments.tally(semconv.LEADER_CHANGES_COUNTER)
        self._observed = [
            observed(semconv.LEADING_GAUGE, lambda: ((float(self.leads), {}),)),
            observed(semconv.WAITING_GAUGE, lambda: ((len(self._index.waits) if self.leads else 0, {}),)),
        ]

    async def run_until_stopped(self) -> None:
        """Serve until `stop` is called, then `close`. An error that ends the supervisor is raised here."""
        assert self._main is not None, "start it first"
        try:
            await first_of(self._stop, self._main)
        finally:
            await self.close()

    def stop(self) -> None:
        """Let `run_until_stopped` return."""
        self._stop.set()

    async def close(self) -> None:
        """End in order: a standby takes over at once. Idempotent; the transport stays open.

        Raises:
            Exception: the error that ended the supervisor before, if there was one.
        """
        main, self._main = self._main, None
        while self._observed:
            self._observed.pop()()
        await cancel_and_wait(main)
        await self._lease_and_pings.close()
        if main is not None:
            await self._decisions.flush()
        self._forget_gap()
        await self._server_time.close()
        await self._asks.close()
        if self._serving:
            await asyncio.wait(self._serving, timeout=_ASKS_S)
        while self._subscriptions:
            await self._subscriptions.pop().unsubscribe()
        await self._formats.close()
        await self._view.close()
        if main is not None and main.done() and not main.cancelled():
            main.result()

    def _serve_ask(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            looks = (self._late_mail.run, self._journals.run, self.repair.run, self._unclaimed.run, self._moves.run)
            for part in (self._decisions.run, self._lead, *looks, self._prove):
                group.create_task(keep(part))

    async def _prove(self) -> None:
        await self._lease_and_pings.prove(self._transport)

    # --- queries --------------------------------------------------------------------------------------------------
    @property
    def leads(self) -> bool:
        """Whether this supervisor leads."""
        return self._lease_and_pings.leads

    @property
    def leader(self) -> str | None:
        """Id of the leader, as far as this supervisor knows."""
        return self._lease_and_pings.leader

    def explain(self, agent: str) -> str:
        """Where `agent` runs, or why it does not."""
        return explain(self._index.world(), agent)

    # --- inputs ---------------------------------------------------------------------------------------------------
    async def _answer(self, message: Message) -> None:
        """Answer a request to `mesh.node.<id>`. By a ping standbys see that the leader is there."""
        reply = usable_reply(message, self._subjects.root)
        if reply is None:
            return
        try:
            request = msgspec.json.decode(message.data, type=ControlRequest)
        except (msgspec.DecodeError, RecursionError):
            request = ControlRequest()
        op = request.op
        if op == "agents" or (op in _OF_NODES and self._index.is_live(self.id)):
            return  # the node of this id answers, as in `mesh up`; a supervisor has no agents
        try:
            if op in ("ping", "stats"):
                body = encode(self._stats(op == "stats"))
            elif message.subject == self._subjects.supervisors():
                # Observers may ask all supervisors; what one of them is to do is asked of it, by its own subject.
                raise BadRequest("all supervisors together are asked ping and stats; ask one by its id for more")
            elif op == "rebalance":
                self._must_lead()
                body = encode_reply({"moving": await self._moves.rebalance()})
            elif op == "move":
                body = encode_reply({"moving": await self._move(request)})
            else:
                raise BadRequest("a supervisor knows the requests ping, stats, rebalance and move")
        except MeshError as error:
            body = encode_failure(error)
        except EDGE_ERRORS as error:
            body = encode_failure(Unavailable(f"the registry does not take it now: {error}; ask again"))
        with contextlib.suppress(Disconnected):
            await self._transport.publish(reply, body)

    def _stats(self, full: bool) -> NodeStats:
        return NodeStats(
            node=self.id,
            boot=self.boot,
            agents=0,
            running=0,
            lag_ms=0.0,
            draining=False,
            time=format_time(self._own_clock()) if full else None,
            server_time=format_time(self._server_time.clock.now()) if full else None,
        )

    def _must_lead(self) -> None:
        """Raises: Unavailable: another supervisor leads, or this one is not sure of its view."""
        if not self._lease_and_pings.leads or self._stale:
            raise Unavailable(f"{self.leader or 'no supervisor'} leads, not {self.id}; ask again")

    async def _move(self, request: ControlRequest) -> int:
        """Returns how many agents are on their way. Raises: as `Moves.order`."""
        if len(request.agents) != 1 or request.node is None:
            raise BadRequest("move takes one agent in `agents`, and `node`")
        self._must_lead()
        return int(await self._moves.order(request.agents[0], request.node))

    def _observe(self, entry: Entry) -> None:
        """Note a registry change, from the view."""
        self._index.observe(entry)
        role, _, name = entry.key.partition(".")
        if role == "nodes" and self._lease_and_pings.leads:
            self._members.judge(name)
        self._wake.set()

    def _heard(self, node: str, ping_state: PingState) -> None:
        """Note that the result of a node's pings has changed."""
        self._members.on_pings(node, ping_state)
        if self._lease_and_pings.leads:
            self._members.judge(node)
            self._wake.set()

    def _cut_off(self) -> None:
        """Messages may have been missed, and our own connection may explain silence: trust nothing."""
        self._stale = True
        self._lease_and_pings.forget_all()
        self._lease_and_pings.wake()
        self._wake.set()

    def _led(self, leads: bool, reason: str) -> None:
        self._decisions.add("leading" if leads else "standing_by", reason)
        if leads:
            self._instruments.tally(semconv.LEADER_CHANGES_COUNTER).value += 1
        self._stale = True
        if not leads:
            self._lease_and_pings.watch(set())
        self._wake.set()

    # --- leading --------------------------------------------------------------------------------------------------
    async def _lead(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await wait_for(self._wake, self._pause(loop.time()))
            if not self._lease_and_pings.leads:
                continue
            if not self._view.fresh:
                self._stale = True  # no connection, or messages were missed
            if self._stale and not await self._regain_trust():
                continue
            await self._members.drop_leases()
            await self._pass(loop.time())
            await self._tidy()
            await self._write_reasons(loop.time())

    def _pause(self, now: float) -> float:
        """Seconds until something is due even without a change."""
        if not self._lease_and_pings.leads:
            return self.settings.replan_s
        if self._stale:
            return self.settings.ping_period_s
        due = [self._replan_at]
        if self._members.settles_at:
            due.append(self._members.settles_at)
        if self._retry_at is not None:
            due.append(self._retry_at)
        if self._waiting_since:
            due.append(next(iter(self._waiting_since.values())) + self.settings.reason_delay_s)
        return max(0.0, min(due) - now)

    async def _regain_trust(self) -> bool:
        """Load the registry and ping every node before anything is concluded from silence (case 226)."""
        try:
            await self._view.wait_for(lambda: self._view.fresh, self.settings.replan_s)
        except TimeoutError:
            return False
        self._stale = False
        await self._reconcile()
        self._members.begin_anew()
        self._writer.forget()
        self._moves.forget()
        self._lease_and_pings.forget_all()
        self._lease_and_pings.watch(self._index.nodes())
        await self._lease_and_pings.heard_all(2 * self.settings.ping_period_s)
        self._members.judge_all()
        return self._sure

    @property
    def _sure(self) -> bool:
        """Whether this supervisor may conclude something from absence or silence: it leads, and has missed nothing."""
        return self._lease_and_pings.leads and self._view.fresh and not self._stale

    async def _reconcile(self) -> None:
        """Bring the index in line with the view, and mark all agents. In parts, because the view goes on meanwhile."""
        async for entries in in_parts(list(self._view.entries.values())):
            for entry in entries:
                self._index.observe(entry)
        await self._drop_missing()
        self._index.all_dirty()

    async def _drop_missing(self) -> None:
        async for keys in in_parts(self._index.keys()):
            self._index.drop_missing(keys, self._view.entries, self._view.floor)

    async def _pass(self, now: float) -> None:
        """Make one plan over the agents that must be looked at, and carry it out."""
        # Everything is planned anew only while there is no backlog, which that would lengthen.
        if now >= self._replan_at and self._index.dirty <= _AGENTS_AT_ONCE:
            self._replan_at = now + self.settings.replan_s
            self._index.forget_buried()
            # Writes of our own are in the index at once, but a message about a later deletion of such a key may have been lost.
            await self._drop_missing()
            self._index.all_dirty()
            self._members.judge_all()
        elif self._members.settles_at and now >= self._members.settles_at:
            self._members.settles_at = 0.0
            self._members.judge_all()
        if not self._sure:
            return
        self._lease_and_pings.watch(self._index.nodes())
        looked_at = self._index.take_dirty(_AGENTS_AT_ONCE)
        self._retry_at = None
        if not looked_at:
            return
        made = plan(self._index.world(), looked_at)
        self._index.note_waits(looked_at, made)
        self._moves.note(looked_at, made)
        self._note_waits(looked_at, now)
        self._done(await self._writer.carry_out(made))
        if len(looked_at) == _AGENTS_AT_ONCE:
            self._wake.set()  # there may be more agents
            await asyncio.sleep(_BREATH_S)

    async def _tidy(self) -> None:
        """Delete placements on dead nodes, while few agents wait to be placed."""
        if self._writer.untidy and self._index.dirty <= _AGENTS_AT_ONCE:
            self._done(await self._writer.tidy(_AGENTS_AT_ONCE))
            if self._writer.untidy and self._retry_at is None:
                self._wake.set()

    def _done(self, all_of_it: bool) -> None:
        """Note how writes went: after failures they are tried again, with growing pauses while they go on failing."""
        if all_of_it:
            self._pauses = iter(UPKEEP_RETRY)
            return
        self._retry_at = asyncio.get_running_loop().time() + next(self._pauses)

    # --- reasons --------------------------------------------------------------------------------------------------
    def _note_waits(self, looked_at: set[str], now: float) -> None:
        """Keep the agents whose spec must get the reason why they wait, in the order in which they began to wait."""
        for agent in looked_at:
            wait = self._index.waits.get(agent)
            if wait is None or not needs_reason(self._index.specs.get(agent), wait):
                self._waiting_since.pop(agent, None)
            else:
                self._waiting_since.setdefault(agent, now)

    async def _write_reasons(self, now: float) -> None:
        """Write the reasons that are due, a bounded number of them: placing goes first."""
        due: list[str] = []
        for agent, since in self._waiting_since.items():
            if since + self.settings.reason_delay_s > now or len(due) == _REASONS_AT_ONCE:
                break
            due.append(agent)
        for agent in due:
            del self._waiting_since[agent]
        if due:
            self._done(await self._writer.write_reasons([w for a in due if (w := self._index.waits.get(a)) is not None]))
