"""`mesh.ask.<agent>`: a plain NATS request, answered with the agent's outcome; durable underneath.

Every node and supervisor serves every agent: it puts the prompt into the agent's mailbox with the requester's inbox as the reply
subject, and the agent's owner answers there. Where the asker names a `Mesh-Reply-To`, the owner answers that one, and the process
that took the ask sends the stored outcome on to the requester's inbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from agentmesh import names, semconv, wire
from agentmesh.budget import limits_from
from agentmesh.edge.failures import EDGE_ERRORS, ApiError, Uncertain, WrongLastSequence
from agentmesh.edge.publish import Stored, store
from agentmesh.edge.read import get_next
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.replies import report_unanswerable
from agentmesh.edge.results import is_answer, read_outcome
from agentmesh.edge.transport import Disconnected, Headers, Message, Subscription, Transport
from agentmesh.errors import AgentFailed, BadRequest, MeshError, NotFound, Stopped, StoreLost, Unavailable
from agentmesh.headers import CONTENT_TYPE, content_type_in, legible, message_id, readable, trace_in
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import ErrorBody, Outcome
from agentmesh_node.telemetry.instruments import own

log = logging.getLogger("agentmesh.node")

_PASSED_ON = (wire.STREAM_TO, wire.DEADLINE, wire.TIMEOUT, wire.END_BY, wire.BUDGET, wire.MSG_ID, wire.FOR)
TRIES = 3
AGAIN_S = 0.5
"""Pause before the same message is tried again: while the first try is still being stored, the server says so at once."""

REPEAT_WAIT_S = 600.0
"""How long a repeated ask waits for the first one's outcome, unless its deadline is sooner: as long as the default
watchdog lets a turn run."""
LOOK_S = 5.0
"""Time between two reads of the stored results while an outcome is waited for: its copy may be missed."""


class AskGateway:
    """Serves `mesh.ask.>` in the queue group of the mesh."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        registry: Registry,
        *,
        now: Callable[[], float],
        token: Callable[[], str],
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        """`now` is the servers' time, `token` makes ids, `spawn` runs work beside the caller."""
        self._t = transport
        self._subjects = subjects
        self._registry = registry
        self._now = now
        self._token = token
        self._spawn = spawn
        self._subscription: Subscription | None = None
        self._waits: set[asyncio.Queue[None]] = set()
        self._instruments = own()
        self._taken = self._instruments.tally(semconv.ASKS_COUNTER)
        self._closed = False

    async def start(self) -> None:
        """Begin to serve."""
        self._subscription = await self._t.subscribe(self._subjects.ask_all(), self._on_ask, queue=self._subjects.ask_queue)

    async def close(self) -> None:
        """Take no more asks. Asks that this process has got are still served."""
        if self._subscription is not None:
            await self._subscription.drain()
            self._subscription = None
        self._closed = True
        for woken in self._waits:
            woken.put_nowait(None)  # the prompt is stored: the caller asks again, and another process answers

    def _on_ask(self, message: Message) -> None:
        self._spawn(self._serve(message))

    async def _serve(self, message: Message) -> None:
        agent = self._subjects.parse_ask(message.subject)
        addresses, problem = self._addresses(message)
        if not addresses:
            return
        try:
            if problem is not None:
                raise problem
            await self._put(names.agent_name(agent), addresses, message)
            self._taken.value += 1
        except MeshError as error:
            self._count(error.code)
            await self._refuse(addresses, agent, error, message.headers.get(wire.STREAM_TO))
        except (Uncertain, ApiError, WrongLastSequence) as error:
            self._count(Unavailable.code)
            await self._refuse(addresses, agent, Unavailable(f"the prompt may not have been stored: {error}; ask again"))
        except Disconnected:
            # Without a connection the caller gets no answer: it repeats the ask, and a connected process answers.
            log.debug("an ask was left: no connection", extra={"agent": agent})

    def _count(self, code: str) -> None:
        self._instruments.tally(semconv.ASKS_COUNTER, {semconv.ERROR_TYPE: code}).value += 1

    def _addresses(self, message: Message) -> tuple[tuple[str, ...], BadRequest | None]:
        """Where the outcome goes (`Mesh-Reply-To`, which the owner answers as for all mail, and the request's reply subject), and
        what is wrong with an address that was given."""
        found: list[str] = []
        problem: BadRequest | None = None
        for address in (message.headers.get(wire.REPLY_TO), message.reply or None):
            try:
                if address is not None and names.reply_subject(address, self._subjects.root) not in found:
                    found.append(address)
            except BadRequest as error:
                problem = error
        if not found or (problem is not None and message.reply not in found):
            report_unanswerable(message.subject, "it has no reply subject" if problem is None else problem.message)
        return tuple(found), problem

    async def _put(self, agent: str, addresses: tuple[str, ...], message: Message) -> None:
        first, *others = addresses
        entry = await self._registry.get(spec_key(agent))
        spec = decode_spec(entry) if entry is not None else None
        if spec is None or spec.status == "stopped":
            ended = spec.reason if spec is not None else None
            why = "" if ended is None or ended.code == Stopped.code else f" (it has ended with {ended.code}: {ended.message})"
            raise NotFound(f"no agent {agent} exists{why}; start it with `mesh start {agent} --kind KIND`")
        if spec.status == "failed":
            why = spec.reason.message if spec.reason else "it failed"
            if spec.reason is not None and spec.reason.code == StoreLost.code:
                raise StoreLost(f"{agent} does not run: {why}; or give up what is lost: `mesh stop {agent}`")
            raise AgentFailed(f"{agent} has failed ({why}); revive it with `mesh resume {agent}`")
        wire.decode_prompt(message.data, message.headers)
        headers = self._passed_on(message.headers, first)
        self._patience(headers)  # what cannot be read is refused before anything is stored
        if wire.BUDGET in headers:
            limits_from(headers[wire.BUDGET])
        own_id = wire.MSG_ID in headers
        headers.setdefault(wire.FOR, spec.incarnation)
        headers.setdefault(wire.MSG_ID, f"{agent}.{self._token()}")
        stored = await self._store(agent, message.data, headers)
        if stored.duplicate and own_id:
            await self._repeat(agent, addresses, stored.seq, headers)
        elif others:
            await self._tell(agent, others, stored.seq, headers)

    def _passed_on(self, given: Headers, reply_to: str) -> dict[str, str]:
        """The headers of the mail that an ask becomes: those of its headers that mean something, as every client can read them.

        Raises:
            BadRequest: an address or the id is not fit for it.
        """
        headers = {name: legible(given[name]) for name in _PASSED_ON if given.get(name)}
        if wire.STREAM_TO in given:
            names.reply_subject(given[wire.STREAM_TO], self._subjects.root)
        for address in (reply_to, given.get(wire.STREAM_TO, "")):
            if not readable(address):
                raise BadRequest(f"the reply subject {address!a} is not printable ASCII, which a header of mail is")
        if wire.MSG_ID in headers:
            headers[wire.MSG_ID] = message_id(given[wire.MSG_ID])
        if (declared := content_type_in(given)) is not None:
            headers[CONTENT_TYPE] = legible(declared)
        headers.update(trace_in(given))
        headers[wire.REPLY_TO] = reply_to
        return headers

    def _patience(self, headers: Headers) -> float:
        """How long a repeated ask waits, in seconds.

        Raises:
            BadRequest: its deadline, its end or its time-out cannot be read.
        """
        patience_s = REPEAT_WAIT_S
        for bound in (wire.DEADLINE, wire.END_BY):
            if bound in headers:
                patience_s = min(patience_s, wire.parse_time(headers[bound]) - self._now())
        if wire.TIMEOUT in headers:
            patience_s = min(patience_s, wire.parse_timeout(headers[wire.TIMEOUT]))
        return max(LOOK_S, patience_s)

    async def _store(self, agent: str, body: bytes, headers: dict[str, str]) -> Stored:
        for attempt in range(TRIES):
            try:
                return await store(self._t, self._subjects.inbox(agent), body, headers=headers)
            except Uncertain:
                # With the same id, so that it cannot be stored twice.
                if attempt == TRIES - 1:
                    raise
            await asyncio.sleep(AGAIN_S)
        raise AssertionError("the last try returns or raises")

    # --- a repeated ask -------------------------------------------------------------------------------------------
    async def _repeat(self, agent: str, addresses: tuple[str, ...], seq: int, headers: Headers) -> None:
        """Answer a repeated ask with the first one's outcome: the owner answers only the first one's `Mesh-Reply-To`.

        Args:
            seq: where the first one is stored.
            headers: those of the repetition.

        Raises:
            BadRequest: the id belongs to other mail.
        """
        first = await get_next(self._t, self._subjects.stream("mail"), f"{self._subjects.root}.>", seq)
        if first is not None and first.seq == seq:
            if first.subject != self._subjects.inbox(agent):
                raise BadRequest(
                    f"this {wire.MSG_ID} was used for other mail; begin an id with the agent's name, and use it once"
                )
            known = first.headers.get(wire.REPLY_TO)
            if known in addresses and not await self._is_answered(agent, str(seq), headers[wire.MSG_ID]):
                # The owner answers there. If it has done so already, the caller that asks again has missed it.
                addresses = tuple(address for address in addresses if address != known)
        await self._tell(agent, addresses, seq, headers)

    async def _tell(self, agent: str, addresses: Sequence[str], seq: int, headers: Headers) -> None:
        """Send the outcome of the stored prompt `seq`, once it is there, to addresses that its owner does not know.

        Args:
            headers: those of the prompt, or of one that repeats its id.
        """
        if not addresses:
            return
        try:
            outcome = await self._outcome(agent, str(seq), headers[wire.MSG_ID], self._patience(headers))
        except Disconnected:
            raise
        except EDGE_ERRORS as error:
            text = f"the prompt {seq} is stored; its outcome cannot be read now ({error}); poll it, or ask again with the same id"
            shown = error if isinstance(error, MeshError) else Unavailable(text)
            await self._refuse(addresses, agent, shown)
            return
        if outcome is not None:
            for address in addresses:
                await self._t.publish(address, outcome)

    async def _is_answered(self, agent: str, ref: str, msg_id: str) -> bool:
        stored = await read_outcome(self._t, self._subjects, agent, ref)
        return stored is not None and await is_answer(self._t, self._subjects, stored, msg_id)

    async def _outcome(self, agent: str, ref: str, msg_id: str, wait_s: float) -> bytes | None:
        """The stored outcome of a request, as soon as it is there; None if this gateway closes first."""
        woken: asyncio.Queue[None] = asyncio.Queue()
        self._waits.add(woken)
        end = asyncio.get_running_loop().time() + wait_s
        subscription = await self._t.subscribe(self._subjects.done(agent, ref), lambda _: woken.put_nowait(None))
        try:
            while asyncio.get_running_loop().time() < end and not self._closed:
                stored = await read_outcome(self._t, self._subjects, agent, ref)
                if stored is not None and await is_answer(self._t, self._subjects, stored, msg_id):
                    return stored.body
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.get(), LOOK_S)
        finally:
            self._waits.discard(woken)
            await subscription.unsubscribe()
        if self._closed:
            return None
        raise Unavailable(f"this repeats the prompt {ref}, which has no outcome that is kept; poll it, or ask again later")

    async def _refuse(self, addresses: Sequence[str], agent: str, error: MeshError, stream_to: str | None = None) -> None:
        """Answer the caller with an error, and end the turn's live events with it (docs/protocol.md#live-events)."""
        outcome = Outcome(agent=agent[:128], ref="", ok=False, error=ErrorBody.of(error))
        try:
            for address in addresses:
                await self._t.publish(address, wire.encode_outcome(outcome))
            if stream_to is not None:
                with contextlib.suppress(BadRequest):
                    self._t.post(names.reply_subject(stream_to, self._subjects.root), _last_event(outcome), though_full=True)
        except Disconnected:
            log.debug("an ask could not be refused: no connection", extra={"agent": agent})


def _last_event(outcome: Outcome) -> bytes:
    """The only live event of a request without a turn: its outcome."""
    event = {"type": "outcome", "outcome": msgspec.Raw(wire.encode_outcome(outcome)), "agent": outcome.agent, "ref": outcome.ref}
    return msgspec.json.encode({"v": wire.VERSION, **event, "seq": 1, "owner": 0})
