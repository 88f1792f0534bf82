"""The client: one connection to one mesh."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Literal, Unpack

import msgspec

from agentmesh import wire
from agentmesh.control_values import ControlRequest, Status
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.last_reads import LastReads
from agentmesh.edge.permissions import Permissions
from agentmesh.edge.registry import Registry
from agentmesh.edge.transport import Transport
from agentmesh.errors import BadRequest
from agentmesh.names import agent_name, token
from agentmesh.registry_values import Restart, RestartPolicy
from agentmesh.structured import A
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import Outcome
from agentmesh_client.admin import Operator
from agentmesh_client.asks import AskSender, PromptOptions, PromptRequest, key_headers
from agentmesh_client.configuration import Updater, adjustment, checked_labels
from agentmesh_client.control import Control, ControlReply
from agentmesh_client.dead import DeadLetters
from agentmesh_client.directory import Directory
from agentmesh_client.history import Historian
from agentmesh_client.late_prompts import LatePrompts
from agentmesh_client.lifecycle import Starter, new_spec
from agentmesh_client.mailer import Mailer
from agentmesh_client.owes import WaitReader
from agentmesh_client.pending_asks import PendingAsks
from agentmesh_client.polling import Poller
from agentmesh_client.results import (
    AgentEntry,
    AgentInfo,
    AgentUpdate,
    ChangeEntry,
    DeadLetter,
    EndedRequest,
    Interruption,
    NodeEntry,
    PollResult,
    Response,
    Subrequest,
    TimerSet,
    TurnEntry,
    UnclaimedMail,
    WaitGraph,
)
from agentmesh_client.retry import or_absent, patiently
from agentmesh_client.server_time import CallersClock
from agentmesh_client.spec_cache import SpecCache
from agentmesh_client.streaming import LiveTurn
from agentmesh_client.subrequests import Endings
from agentmesh_client.traces import Traces
from agentmesh_client.unclaimed import Unclaimed
from agentmesh_client.validation import answer_type_of, instant, json_bytes, seconds
from agentmesh_client.ways import Ways

CONTROL_S = 10.0
"""Default time-out of control requests, in seconds: long enough for a takeover, or for the election of a stream's leader."""


class Mesh:
    """What a program can do with a mesh. Made by `connect`; safe to share between the tasks of one event loop.

    Every call may raise `Unavailable` when NATS cannot be reached and `BadRequest` for values that make no sense. Each call waits
    through short outages, but no longer than its `timeout`, in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        *,
        inbox: str,
        ambient: Ambient = SYSTEM,
        access: Permissions | None = None,
        secret: Callable[[str], str | None] = lambda purpose: None,
    ) -> None:
        self.transport = transport
        self.inbox = inbox
        """Below this subject answers come to this client."""
        self._ambient = ambient
        self.subjects = subjects
        ways = self._ways = Ways(subjects, ambient, access, secret)
        self._reads = LastReads(transport)
        registry = self._registry = Registry(transport, subjects, reads=self._reads)
        self._specs = SpecCache(registry, lambda agent: ways.may_hear(subjects.registry_change(spec_key(agent))))
        self._asks = PendingAsks(transport, subjects, inbox, reads=self._reads, may_hear=ways.may_hear)
        self._mailer = Mailer(transport, ambient, subjects)
        self._late_prompts = LatePrompts(
            transport, subjects, registry, waiting=self._asks.waiting, look=lambda: self._asks.look_now(at_all=True)
        )
        self._specs.on_spec = self._late_prompts.seen
        self._clock = CallersClock(transport, subjects, ambient)
        self._sender = AskSender(
            subjects, self._specs, self._asks, self._mailer, self._late_prompts, clock=self._clock, ways=ways
        )
        self._directory = Directory(transport, subjects, registry)
        self._starter = Starter(registry, self._specs, self._directory, ambient)
        self._control = Control(transport, subjects, self._specs, access)
        self._endings = Endings(self._control)
        self._updater = Updater(self._control, registry, ambient)
        self._poller = Poller(transport, subjects, self._specs, self._control, ways=ways, reads=self._reads)
        self._historian = Historian(transport, subjects, self._specs)
        self._dead = DeadLetters(transport, subjects, self._specs, self._mailer, self._control)
        self._unclaimed = Unclaimed(transport, subjects, registry)
        self._waits = WaitReader(transport, subjects, self._directory)
        self.traces = Traces(transport, subjects, self._directory, registry, now=ambient.now)
        """Who talks to whom, and what became of requests."""
        self._forget_gaps: Callable[[], None] | None = None

    async def open(self) -> None:
        """Listen for replies. `connect` does this."""
        self._loop = asyncio.get_running_loop()
        await self._asks.start()
        self._forget_gaps = self.transport.on_gap(self._on_gap)

    async def close(self) -> None:
        """End all waits with `Unavailable`. The connection is not closed: `connect`, which calls this, does that."""
        if self._forget_gaps is not None:
            self._forget_gaps()
        await self._asks.close()
        await self._late_prompts.close()
        await self._specs.close()

    def _on_gap(self) -> None:
        self._reads.forget()
        self._specs.doubt()
        self._asks.reconnected()

    # --- prompts --------------------------------------------------------------------------------------------------
    async def ask(
        self,
        agent: str,
        prompt: str,
        *,
        timeout: float = 600.0,
        answer_type: type[A] | None = None,
        **options: Unpack[PromptOptions],
    ) -> Response[A]:
        """Prompt an agent and wait for its answer.

        The prompt is mail: once stored it gets exactly one outcome, whichever process dies meanwhile (case 201).

        Args:
            timeout: seconds until this caller gives up; the turn goes on (case 18).
            answer_type: read the answer as a value of this type, `Response.answer`: a msgspec Struct, a dataclass or a TypedDict.
                It is this caller's own, and may differ from the one that the agent declares (case 767).
            metadata: JSON that the agent sees beside the prompt.
            attachments: files, made by `attachment`.
            deadline: if the turn has not begun by then, the prompt is answered `expired` without a turn. It is a time of this
                machine's clock; if that is wrong by the servers' clock, what is sent is put right.
            end_by: the request ends then, answered or not: its turn, too, if it runs, and what that asks of others (case 358).
            idempotency_key: one token; a second prompt with it, within two minutes, gets the first one's outcome.
            budget: what the answer may cost, including the agents asked on the way: some of `tokens`, `usd`, `wall_s`
                (seconds of the turn) and `tool_calls` (agentmesh.budget).
            key: 16 to 128 random characters: who polls or cancels the request, or takes it up by its `idempotency_key`, needs
                them (case 625). A user that reaches agents by request only has one of its own, for all its clients.

        Raises:
            BadRequest: the prompt is no text or is empty, or the budget cannot be read.
            TypeError: there is no such option.
            NotFound: there is no such agent.
            AgentFailed: it has failed and waits for `resume`.
            MailboxFull, TooLarge, NotPermitted: nothing was stored.
            TurnError: the request ended without an answer; the class follows the code.
            BadAnswer: the answer is not of the type that the agent declares; or not of `answer_type`: then the answer stands.
            AskTimeout: `timeout` ended; `details["ref"]` can be polled.
        """
        known = answer_type_of(answer_type) if answer_type is not None else None
        return Response.of(await self._sender.ask(PromptRequest.of("ask", agent, prompt, timeout, options)), known)

    async def ask_outcome(
        self,
        agent: str,
        prompt: str,
        *,
        timeout: float = 600.0,
        on_accepted: Callable[[str], None] | None = None,
        **options: Unpack[PromptOptions],
    ) -> Outcome:
        """As `ask`, but an error that the agent answered with is returned, not raised: the outcome as it was sent.

        `on_accepted` is called with the ref once the prompt is stored; `cancel` takes that ref. `options` as `ask`.
        """
        return await self._sender.ask(PromptRequest.of("ask_outcome", agent, prompt, timeout, options), on_accepted)

    def stream(
        self, agent: str, prompt: str, *, timeout: float = 600.0, **options: Unpack[PromptOptions]
    ) -> AbstractAsyncContextManager[LiveTurn]:
        """As `ask`, and watch the turn: an `async with` block over its live events, the outcome last (`streaming`, case 243).

        The block begins when the prompt is stored. Leaving it early does not end the turn; `interrupt` does. For a prompt that
        repeats an `idempotency_key` only the outcome comes: the events go to the first sender.

        `options` as `ask` has them.

        Raises:
            As `ask`. Errors that come as the answer are raised by `LiveTurn.response`; when iterating they are the last event.
        """
        return self._sender.stream(PromptRequest.of("stream", agent, prompt, timeout, options))

    async def tell(self, agent: str, prompt: str, *, timeout: float = 30.0, **options: Unpack[PromptOptions]) -> str:
        """Prompt an agent without waiting for its answer. Returns the ref, which `poll` takes. `options` as `ask` has them.

        Raises:
            As `ask`, except errors that come as the answer.
        """
        body, headers = PromptRequest.of("tell", agent, prompt, timeout, options).message()
        key, secret = options.get("idempotency_key"), options.get("key")
        return await self._send("inbox", agent, body, headers, key=key, secret=secret, timeout=seconds(timeout))

    async def notify(
        self,
        agent: str,
        event: Any,
        *,
        timeout: float = 30.0,
        deadline: dt.datetime | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Send an event, any JSON value, to the agent's `handle_event`. It is mail: stored when this returns.

        Raises:
            As `tell`.
        """
        body = json_bytes(event, "the event")
        headers = {} if deadline is None else {wire.DEADLINE: instant(deadline, "deadline")}
        await self._send("notify", agent, body, headers, key=idempotency_key, timeout=seconds(timeout))

    async def poll(
        self,
        agent: str,
        ref: str,
        *,
        idempotency_key: str | None = None,
        key: str | None = None,
        timeout: float = CONTROL_S,
    ) -> PollResult:
        """What became of a request: the stored outcome, or that it is pending.

        While nobody owns the agent, a prompt that lies in its mailbox is pending. `outcome.stored` says when the prompt was
        stored: should mail have been put back to an older state, another prompt may have had this ref.

        Args:
            idempotency_key: the prompt's, if it had one: an outcome of a prompt with another one is refused.
            key: the prompt's, if it had one and this client has not sent it.

        Raises:
            NotPermitted: the prompt had another key, or this user may not ask.
            NotFound: no such request, its result is no longer kept, or what is stored answers another prompt.
            Unavailable: only the owner could tell, and there is none now.
        """
        message_id = None if idempotency_key is None else self._mailer.message_id(agent, idempotency_key)
        return await or_absent(
            lambda: self._poller.poll(agent, ref, message_id=message_id, key=key, timeout=seconds(timeout)), self._registry
        )

    # --- control --------------------------------------------------------------------------------------------------
    async def status(self, agent: str, content: bool = False, *, timeout: float = CONTROL_S) -> Status:
        """What an agent is doing; with `content` also its state.

        Raises:
            NotFound: there is no such agent.
            Unavailable: no node runs it at the moment.
            AskTimeout: its owner does not answer.
        """
        return await self._request(agent, ControlRequest(op="status", content=content), Status, timeout, repeat=True)

    async def interrupt(self, agent: str, ref: str | None = None, *, timeout: float = CONTROL_S) -> bool:
        """Kill the running turn; with `ref` only if it answers that request. If no turn runs, that is no error (case 66).

        Returns the owner's answer: False only if it knows that it killed nothing.

        Raises:
            As `status`.
        """
        return (await self.interruption(agent, ref, timeout=timeout)).interrupted

    async def interruption(self, agent: str, ref: str | None = None, *, timeout: float = CONTROL_S) -> Interruption:
        """As `interrupt`, and tell of the callback that ran, if one did.

        Raises:
            As `status`.
        """
        request = ControlRequest(op="interrupt", ref=None if ref is None else token(ref, "ref"))
        found = await self._request(agent, request, ControlReply, timeout, repeat=ref is not None)
        return Interruption(interrupted=found.interrupted, callback=found.callback, plain=found.plain, withdrawn=found.withdrawn)

    async def cancel(
        self, agent: str, ref: str, *, tree: bool = False, key: str | None = None, timeout: float = CONTROL_S
    ) -> bool:
        """Remove a prompt that waits, or close one that its agent has deferred; its outcome is `cancelled`. False if it neither
        waits nor is open (any more).

        With `tree` the request ends also if its turn runs, or if it is kept open, and with it all that other agents were asked on
        its behalf (case 350). `key` is the prompt's, if it had one and this client has not sent it.

        Raises:
            NotPermitted: the prompt had another key.
            As `status`.
        """
        request = ControlRequest(op="cancel", ref=token(ref, "ref"), tree=tree)
        secret = await self._ways.key_of(agent_name(agent), ref, key)
        return (await self._request(agent, request, ControlReply, timeout, repeat=True, key=secret)).cancelled

    async def reply(self, agent: str, ref: str, text: str, *, timeout: float = CONTROL_S) -> bool:
        """Answer a request that `agent` has deferred, in its place; the agent gets a `Closed` event. False if it is not open.

        Raises:
            As `status`.
        """
        request = ControlRequest(op="reply", ref=token(ref, "ref"), text=text)
        return (await self._request(agent, request, ControlReply, timeout, repeat=True)).replied

    async def see_ended(self, agent: str, withdrawn: Sequence[Subrequest], *, wait: float) -> tuple[Subrequest, ...]:
        """Which of the requests that `agent` has withdrawn have ended: once all have, or after `wait` seconds; with 0 nobody is
        asked."""
        return await self._endings.follow(agent, withdrawn, seconds(wait, "wait") if wait else 0.0)

    async def end(
        self,
        agent: str,
        ref: str | None = None,
        *,
        how: Literal["interrupt", "cancel", "stop"] = "cancel",
        wait: float = 10.0,
        key: str | None = None,
        timeout: float = CONTROL_S,
    ) -> EndedRequest:
        """End a request and see that what was asked on its behalf ends, too: as `interrupt`, as `cancel` with `tree`, or all
        requests of an agent, as `stop` does.

        Args:
            ref: the request; `cancel` needs one.
            wait: seconds to wait until the agents that were asked have ended theirs, which withdraw further.
                `EndedRequest.withdrawn` says which have not been seen to end by then.
            key: as `cancel` has it.

        Raises:
            As `status`, and as `stop`.
        """
        patience = seconds(wait, "wait") if wait else 0.0
        if how == "stop":
            found = await self._endings.asked_by(agent, timeout=seconds(timeout))
            await self.stop(agent, timeout=timeout)
            return EndedRequest(done=True, withdrawn=await self._endings.follow(agent, found, patience))
        named = None if ref is None and how == "interrupt" else token(ref, "ref")
        request = ControlRequest(op=how, ref=named, tree=how == "cancel")
        secret = None if named is None else await self._ways.key_of(agent_name(agent), named, key)
        reply = await self._request(agent, request, ControlReply, timeout, repeat=named is not None, key=secret)
        done = reply.interrupted if how == "interrupt" else reply.cancelled
        return EndedRequest(done=done, withdrawn=await self._endings.follow(agent, reply.withdrawn, patience))

    async def resume(self, agent: str, *, timeout: float = CONTROL_S) -> bool:
        """Let a halted agent go on, or revive a failed one. Durable when this returns; False if there was nothing to resume.

        Raises:
            As `status`.
        """
        resumed = (await self._request(agent, ControlRequest(op="resume"), ControlReply, timeout, repeat=True)).resumed
        if resumed:
            # An ask right after this must not be refused because of an older spec.
            with suppress(TimeoutError):
                await self._specs.wait(agent, lambda spec: spec is None or spec.status != "failed", seconds(timeout))
        return resumed

    async def set_timer(
        self,
        agent: str,
        timer_id: str,
        event: Any,
        *,
        at: dt.datetime | None = None,
        after_s: float | None = None,
        every_s: float | None = None,
        timeout: float = CONTROL_S,
    ) -> TimerSet:
        """Send `event` to the agent later: `at` a time, or in `after_s` seconds; then again every `every_s` seconds.

        A timer of the same id is replaced. Timers are durable (cases 231 to 236).

        Raises:
            As `status`.
        """
        if (at is None) == (after_s is None):
            raise BadRequest("a timer needs one of `at` and `after_s`")
        json_bytes(event, "the event")
        request = ControlRequest(
            op="set_timer",
            id=token(timer_id, "timer id"),
            event=event,
            at=None if at is None else instant(at, "at"),
            after_s=None if after_s is None else seconds(after_s, "after_s"),
            every_s=None if every_s is None else seconds(every_s, "every_s"),
        )
        # Only until the timer is due does a repetition set the same timer: once it has fired, it would set another.
        repeat = at is not None and wire.parse_time(instant(at, "at")) > await self._clock.now() + timeout
        reply = await self._request(agent, request, ControlReply, timeout, repeat=repeat)
        due = None if reply.due is None else dt.datetime.fromtimestamp(wire.parse_time(reply.due), dt.UTC)
        return TimerSet(id=timer_id, due=due)

    async def cancel_timer(self, agent: str, timer_id: str, *, timeout: float = CONTROL_S) -> bool:
        """Remove a timer. False if there was none.

        Raises:
            As `status`.
        """
        request = ControlRequest(op="cancel_timer", id=token(timer_id, "timer id"))
        return (await self._request(agent, request, ControlReply, timeout, repeat=True)).cancelled

    # --- lives ----------------------------------------------------------------------------------------------------
    async def start_agent(
        self,
        name: str,
        *,
        kind: str,
        backend: str | None = None,
        options: Mapping[str, Any] | None = None,
        backend_options: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        restart: Restart | RestartPolicy | None = None,
        watchdog_s: float | None = None,
        budget: Mapping[str, Any] | None = None,
        if_exists: Literal["error", "use"] = "error",
        timeout: float = 30.0,
        wait: bool = True,
    ) -> AgentInfo:
        """Start an agent: write its spec, and wait until a node runs it.

        Args:
            name: 1 to 8 tokens joined by dots.
            kind: the agent's class, as nodes announce it.
            backend: the name of a backend; default: the class's own.
            options: JSON for `init_agent`; journaled, so no secrets.
            backend_options: JSON for the backend, over what `init_agent` chooses; None removes one of its. Journaled, too. With
                `wait`, they are set afterwards, as `update_agent` does, where a node of an older build has started it without.
            labels: what a node must have to run it.
            restart: what happens when the agent's own code crashes; a policy's name, or `Restart`.
            watchdog_s: longest turn, in seconds.
            budget: limits on what the agent may spend.
            if_exists: `use` takes an agent of this kind that has the name already, as it is: its options stay.
            wait: False returns once the spec is written.

        Raises:
            AlreadyStarted: the name is taken, with `use` by an agent of another kind; the message says where it runs.
            InitFailed, BackendStartFailed, PreRunFailed, PreRunCrashed: its own code failed or refused to begin.
            Unavailable: no node took it within `timeout`; the spec stays, and it starts when such a node comes (case 221).
        """
        agent_name(name)
        if if_exists not in ("error", "use"):
            raise BadRequest(f'if_exists is "error" or "use", not {if_exists!r}')
        spec = new_spec(
            kind=kind,
            backend=backend,
            options=options,
            backend_options=backend_options,
            labels=labels,
            restart=restart,
            watchdog_s=watchdog_s,
            budget=budget,
            ambient=self._ambient,
        )
        started = await self._starter.start(name, spec, timeout=seconds(timeout), wait=wait, use=if_exists == "use")
        if backend_options and wait and not started.existed:
            await self._updater.ensure(name, backend_options, timeout=seconds(timeout))
        return started

    async def update_agent(
        self,
        name: str,
        *,
        backend_options: Mapping[str, Any] | None = None,
        labels: Mapping[str, str | None] | None = None,
        budget: Mapping[str, Any] | None = None,
        watchdog_s: float | None = None,
        restart: Restart | RestartPolicy | None = None,
        expect: str | None = None,
        timeout: float = 30.0,
    ) -> AgentUpdate:
        """Change the configuration of an agent that has been started: idle, halted, asleep or failed; one in a turn is changed at
        the turn's end. What is not given stays. It is durable when this returns, and the next turn uses it (cases 340 to 347).

        Args:
            backend_options: merged into those in force, which the backend must accept; None removes one.
            labels: merged into the agent's; None removes one. The agent moves if its node has not got them.
            budget: the bounds of each turn, all of them; empty for none.
            watchdog_s: longest turn, in seconds.
            restart: a policy's name, or `Restart`.
            expect: the tag of the configuration that you want to change (`Status.configuration.tag`).
            timeout: seconds to wait, also for the end of a turn.

        Raises:
            NotFound: there is no such agent.
            Conflict: `expect` is not what is in force; nothing has changed, or the labels have not.
            BackendError: the backend refuses the options; nothing has changed.
            Unavailable: no node runs the agent, or a process of an older build is up; nothing has changed.
            AskTimeout: a turn runs for longer than `timeout`. The change may still be made: asking for it again does no harm.
        """
        change = adjustment(backend_options=backend_options, budget=budget, watchdog_s=watchdog_s, restart=restart)
        given = checked_labels(labels or {})
        return await self._updater.update(agent_name(name), change, given, expect=expect, timeout=seconds(timeout))

    async def stop(self, agent: str, *, wait: bool = True, timeout: float = 30.0) -> None:
        """End an agent's life: its turn is killed, its callers are answered `stopped`, and the name becomes free.

        Raises:
            NotFound: there is no such agent.
            Unavailable: with `wait`, the end did not come within `timeout`; the agent stays marked, and is stopped later.
        """
        await self._starter.stop(agent, timeout=seconds(timeout), wait=wait)

    async def whereis(self, agent: str) -> str | None:
        """The node that runs an agent; None if there is no such agent, or no node for it yet."""
        spec = await self._specs.read(agent)
        return None if spec is None or spec.status == "stopped" else await self._starter.node_of(agent, spec)

    async def list_agents(self, *, stopped: bool = False, activity: bool = False) -> list[AgentEntry]:
        """All agents by name. Stopped ones, whose names are free, only with `stopped`; with `activity` what each is doing, which
        its node is asked for."""
        found = await self._directory.agents(stopped=stopped)
        if not activity:
            return found
        operator = Operator(self.transport, self.subjects)
        doing = await operator.activities(sorted({entry.node for entry in found if entry.node is not None}))
        return [msgspec.structs.replace(entry, activity=doing.get(entry.name)) for entry in found]

    async def nodes(self) -> list[NodeEntry]:
        """All live nodes by id."""
        return await self._directory.nodes()

    async def owes(self, agent: str | None = None, *, timeout: float = 30.0) -> WaitGraph:
        """Who waits for whom now: prompts of clients, agents in the middle of a turn, tagged and deferred requests, each with its
        age, its end and what the agent that owes is doing; and the circles of these (case 500).

        It is read from journals, mail and the registry. No process is asked: a kill changes nothing of it.

        Args:
            agent: only what waits for this one, directly or by way of others, and what it waits for itself.

        Raises:
            NotFound: there is no such agent, and nobody waits for one.
        """
        return await self._read(lambda: self._waits.read(agent), timeout)

    # --- the past -------------------------------------------------------------------------------------------------
    async def history(self, agent: str, content: bool = False, *, timeout: float = CONTROL_S) -> list[TurnEntry]:
        """The turns that an agent has had in this life, oldest first, from its journal; with `content` prompts and answers too.

        Snapshots cut the journal short: of the turns before them only the newest are remembered, 32 or as many as `MESH_HISTORY`
        of the agent's node says (case 246). The turns of a stopped agent are kept, with shorter texts, for seven days or until
        the name is used again.

        Raises:
            NotFound: there is no such agent.
        """
        return await self._read(lambda: self._historian.history(agent, content=content), timeout)

    async def configuration_history(self, agent: str, *, timeout: float = CONTROL_S) -> list[ChangeEntry]:
        """The changes of an agent's configuration in this life, oldest first: the newest 32.

        Raises:
            NotFound: there is no such agent.
        """
        return await patiently(lambda: self._historian.changes(agent), seconds(timeout))

    async def dead_letters(self, agent: str, content: bool = False, *, timeout: float = CONTROL_S) -> list[DeadLetter]:
        """Mail that an agent could not deal with, oldest first; with `content` the bodies too (case 210)."""
        return await self._read(lambda: self._dead.list(agent, content=content), timeout)

    async def unclaimed_mail(self, agent: str | None = None, *, timeout: float = CONTROL_S) -> list[UnclaimedMail]:
        """Mail for names that no agent has, a plain client's for one: by name, the oldest first, 1,000 names at most (case 293).

        Args:
            agent: only that name.
        """
        return await patiently(lambda: self._unclaimed.list(agent), seconds(timeout))

    async def retry_dead_letter(self, agent: str, seq: int, *, timeout: float = 30.0) -> str:
        """Send a dead letter again, without its deadline, and remove it. Returns the new ref.

        A letter from another agent is sent in that agent's name again, by its owner; all others are sent as mail from outside.
        The first caller has got its error already; the new outcome can be polled by the new ref.

        Raises:
            NotFound: there is no such letter, or no such agent.
            MailboxFull, TooLarge, NotPermitted: nothing was sent; the letter stays.
        """
        return await self._dead.retry(agent, seq, timeout=seconds(timeout))

    async def purge_dead_letters(self, agent: str, seq: int | None = None, *, timeout: float = CONTROL_S) -> int:
        """Remove one dead letter, or all that an agent has now. Returns how many.

        Raises:
            NotFound: there is no such letter.
        """
        return await patiently(lambda: self._dead.purge(agent, seq), seconds(timeout))

    # --- inside ---------------------------------------------------------------------------------------------------
    async def _send(
        self,
        lane: Literal["inbox", "notify"],
        agent: str,
        body: bytes,
        headers: dict[str, str],
        *,
        key: str | None,
        secret: str | None = None,
        timeout: float,
    ) -> str:
        by_request = self._ways.access is not None and await self._ways.by_request(agent_name(agent), lane, timeout=timeout)
        if by_request:
            subject = self.subjects.tell(agent) if lane == "inbox" else self.subjects.event_to(agent)
        else:
            subject = self.subjects.lane(lane, agent)
            life = self._specs.lives.get(agent)
            if life is None:
                life, timeout = await self._sender.life(agent, timeout)
            headers[wire.FOR] = life
        if lane == "inbox":
            secret = self._ways.key_for(agent, secret, by_request=by_request)
            headers.update(key_headers(secret, by_request=by_request))
        await self._clock.put_right(headers)
        message_id = self._mailer.message_id(agent, key)
        stored = await self._mailer.put(subject, body, headers, message_id=message_id, timeout=timeout, by_request=by_request)
        self._ways.remember(agent, str(stored.seq), secret)
        return str(stored.seq)

    async def _read[T](self, call: Callable[[], Awaitable[T]], timeout: float) -> T:
        """The result of a read that any replica answers."""
        return await patiently(lambda: or_absent(call, self._registry), seconds(timeout))

    async def _request[T](
        self,
        agent: str,
        request: ControlRequest,
        reply: type[T],
        timeout: float,
        *,
        repeat: bool,
        key: str | None = None,
    ) -> T:
        return await self._control.ask(agent_name(agent), request, reply, timeout=seconds(timeout), repeat=repeat, key=key)
