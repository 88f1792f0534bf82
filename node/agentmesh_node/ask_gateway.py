"""`mesh.ask.<agent>`: a plain NATS request, answered with the agent's outcome; durable underneath.

Every node and supervisor serves every agent: it puts the prompt into the agent's mailbox with the requester's inbox as the reply
subject, and the agent's owner answers there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from agentmesh import names, wire
from agentmesh.budget import limits_from
from agentmesh.edge import clock
from agentmesh.edge.failures import ApiError, Uncertain, WrongLastSequence
from agentmesh.edge.publish import Stored, store
from agentmesh.edge.read import get_last, get_next
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.transport import Disconnected, Message, Subscription, Transport
from agentmesh.errors import AgentFailed, BadRequest, MeshError, NotFound, StoreLost, Unavailable
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import ErrorBody, Outcome

log = logging.getLogger("agentmesh.node")

_PASSED_ON = (wire.STREAM_TO, wire.DEADLINE, wire.BUDGET, wire.MSG_ID, wire.FOR, "Content-Type", *wire.TRACE_HEADERS)
TRIES = 3
AGAIN_S = 0.5
"""Pause before the same message is tried again: while the first try is still being stored, the server says so at once."""

REPEAT_WAIT_S = 600.0
"""How long a repeated ask waits for the first one's outcome, unless its `Mesh-Deadline` is sooner: as long as the default
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
        token: Callable[[], str],
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._t = transport
        self._subjects = subjects
        self._registry = registry
        self._token = token
        self._spawn = spawn
        self._subscription: Subscription | None = None
        self._waits: set[asyncio.Queue[bytes | None]] = set()
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
        for found in self._waits:
            found.put_nowait(None)  # the prompt is stored: the caller asks again, and another process answers

    def _on_ask(self, message: Message) -> None:
        self._spawn(self._serve(message))

    async def _serve(self, message: Message) -> None:
        agent = self._subjects.parse_ask(message.subject)
        try:
            reply = names.reply_subject(message.reply, self._subjects.root)
        except BadRequest as error:
            if len(message.reply.encode()) <= names.MAX_REPLY_SUBJECT:
                log.debug("an ask without a usable reply subject was dropped", extra={"agent": agent, "error": error.message})
            return
        try:
            await self._put(names.agent_name(agent), reply, message)
        except MeshError as error:
            await self._refuse(reply, agent, error, message.headers.get(wire.STREAM_TO))
        except (Uncertain, ApiError, WrongLastSequence) as error:
            await self._refuse(reply, agent, Unavailable(f"the prompt may not have been stored: {error}; ask again"))
        except Disconnected:
            # Without a connection the caller gets no answer: it repeats the ask, and a connected process answers.
            log.debug("an ask was left: no connection", extra={"agent": agent})

    async def _put(self, agent: str, reply: str, message: Message) -> None:
        entry = await self._registry.get(spec_key(agent))
        spec = decode_spec(entry) if entry is not None else None
        if spec is None or spec.status == "stopped":
            raise NotFound(f"no agent {agent} exists; start it with `mesh start {agent} --kind KIND`")
        if spec.status == "failed":
            why = spec.reason.message if spec.reason else "it failed"
            if spec.reason is not None and spec.reason.code == StoreLost.code:
                raise StoreLost(f"{agent} does not run: {why}; or give up what is lost: `mesh stop {agent}`")
            raise AgentFailed(f"{agent} has failed ({why}); revive it with `mesh resume {agent}`")
        wire.decode_prompt(message.data, message.headers)
        headers = {k: message.headers[k] for k in _PASSED_ON if k in message.headers}
        for told in (wire.STREAM_TO, wire.REPLY_TO):
            if told in message.headers:
                names.reply_subject(message.headers[told], self._subjects.root)
        if wire.DEADLINE in headers:
            wire.parse_time(headers[wire.DEADLINE])
        if wire.BUDGET in headers:
            limits_from(headers[wire.BUDGET])
        headers[wire.REPLY_TO] = reply
        headers.setdefault(wire.FOR, spec.incarnation)
        headers.setdefault(wire.MSG_ID, f"{agent}.{self._token()}")
        stored = await self._store(agent, message.data, headers)
        if stored.duplicate and wire.MSG_ID in message.headers:
            await self._repeat(agent, reply, stored.seq, headers.get(wire.DEADLINE))

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
    async def _repeat(self, agent: str, reply: str, seq: int, deadline: str | None) -> None:
        """Answer a repeated ask with the first one's outcome: the owner answers only the first reply subject.

        Raises:
            BadRequest: the id belongs to other mail.
            Unavailable: there is no outcome yet when the wait ends.
        """
        first = await get_next(self._t, self._subjects.stream("mail"), f"{self._subjects.root}.>", seq)
        if first is not None and first.seq == seq:
            if first.subject != self._subjects.inbox(agent):
                raise BadRequest(
                    f"this {wire.MSG_ID} was used for other mail; begin an id with the agent's name, and use it once"
                )
            if first.headers.get(wire.REPLY_TO) == reply:
                return  # an earlier try of this very ask was stored: the owner answers it
        wait_s = REPEAT_WAIT_S if deadline is None else min(REPEAT_WAIT_S, wire.parse_time(deadline) - clock.SYSTEM.now())
        outcome = await self._outcome(agent, str(seq), max(LOOK_S, wait_s))
        if outcome is not None:
            await self._t.publish(reply, outcome)

    async def _outcome(self, agent: str, ref: str, wait_s: float) -> bytes | None:
        """The stored outcome of a request, as soon as it is there; None if this gateway closes first."""
        found: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._waits.add(found)
        end = asyncio.get_running_loop().time() + wait_s
        subscription = await self._t.subscribe(self._subjects.done(agent, ref), lambda message: found.put_nowait(message.data))
        try:
            while asyncio.get_running_loop().time() < end and not self._closed:
                stored = await get_last(self._t, self._subjects.stream("result"), self._subjects.result(agent, ref))
                if stored is not None:
                    return stored.data
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(found.get(), LOOK_S)
        finally:
            self._waits.discard(found)
            await subscription.unsubscribe()
        if self._closed:
            return None
        raise Unavailable(f"this repeats the prompt {ref}, which has no outcome that is kept; poll it, or ask again later")

    async def _refuse(self, reply: str, agent: str, error: MeshError, stream_to: str | None = None) -> None:
        """Answer the caller with an error, and end the turn's live events with it (docs/protocol.md#live-events)."""
        outcome = Outcome(agent=agent[:128], ref="", ok=False, error=ErrorBody.of(error))
        try:
            await self._t.publish(reply, wire.encode_outcome(outcome))
            if stream_to is not None:
                with contextlib.suppress(BadRequest):
                    self._t.post(names.reply_subject(stream_to, self._subjects.root), _last_event(outcome))
        except Disconnected:
            log.debug("an ask could not be refused: no connection", extra={"agent": agent})


def _last_event(outcome: Outcome) -> bytes:
    """The only live event of a request without a turn: its outcome."""
    event = {"type": "outcome", "outcome": msgspec.Raw(wire.encode_outcome(outcome)), "agent": outcome.agent, "ref": outcome.ref}
    return msgspec.json.encode({"v": wire.VERSION, **event, "seq": 1, "owner": 0})
