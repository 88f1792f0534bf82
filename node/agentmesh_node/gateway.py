"""`mesh.ask.<agent>`: a plain NATS request, answered with the agent's outcome; durable underneath.

Nodes and supervisors alike serve any agent: the prompt is put into the agent's mailbox with the requester's inbox as its reply
subject, and the agent's owner answers there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from agentmesh import names, wire
from agentmesh.budget import limits_from
from agentmesh.edge.jetstream import ApiError, Uncertain, WrongLastSequence, store
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.transport import Disconnected, Message, Subscription, Transport
from agentmesh.errors import AgentFailed, BadRequest, MeshError, NotFound, Unavailable
from agentmesh.subjects import Subjects, spec_key
from agentmesh.wire import ErrorBody, Outcome

log = logging.getLogger("agentmesh.node")

_PASSED_ON = (wire.STREAM_TO, wire.DEADLINE, wire.BUDGET, wire.MSG_ID, wire.FOR, "Content-Type", *wire.TRACE_HEADERS)
TRIES = 3
AGAIN_S = 0.5
"""Pause before a try of the same message: while the first one is still being stored, the server says so at once."""


class Gateway:
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

    async def start(self) -> None:
        """Serve from now on."""
        self._subscription = await self._t.subscribe(self._subjects.ask_all(), self._take, queue=self._subjects.ask_queue)

    async def close(self) -> None:
        """Take no more asks. Those that have been handed to this process are still served."""
        if self._subscription is not None:
            await self._subscription.drain()
            self._subscription = None

    def _take(self, message: Message) -> None:
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
            await self._refuse(reply, agent, error)
        except (Uncertain, ApiError, WrongLastSequence) as error:
            await self._refuse(reply, agent, Unavailable(f"the prompt may not have been stored: {error}; ask again"))

    async def _put(self, agent: str, reply: str, message: Message) -> None:
        entry = await self._registry.get(spec_key(agent))
        spec = decode_spec(entry) if entry is not None else None
        if spec is None or spec.status == "stopped":
            raise NotFound(f"no agent {agent} exists; start it with `mesh start {agent} --kind KIND`")
        if spec.status == "failed":
            why = spec.reason.message if spec.reason else "it failed"
            raise AgentFailed(f"{agent} has failed ({why}); revive it with `mesh resume {agent}`")
        wire.decode_prompt(message.data, message.headers)
        headers = {k: message.headers[k] for k in _PASSED_ON if k in message.headers}
        if wire.STREAM_TO in headers:
            names.reply_subject(headers[wire.STREAM_TO], self._subjects.root)
        if wire.DEADLINE in headers:
            wire.parse_time(headers[wire.DEADLINE])
        if wire.BUDGET in headers:
            limits_from(headers[wire.BUDGET])
        headers[wire.REPLY_TO] = reply
        headers.setdefault(wire.FOR, spec.incarnation)
        headers.setdefault(wire.MSG_ID, f"{agent}.{self._token()}")
        for attempt in range(TRIES):
            try:
                await store(self._t, self._subjects.inbox(agent), message.data, headers=headers)
                return
            except Uncertain:
                # The same id again: stored twice it cannot be.
                if attempt == TRIES - 1:
                    raise
            await asyncio.sleep(AGAIN_S)

    async def _refuse(self, reply: str, agent: str, error: MeshError) -> None:
        outcome = Outcome(agent=agent[:128], ref="", ok=False, error=ErrorBody.of(error))
        try:
            await self._t.publish(reply, wire.encode_outcome(outcome))
        except Disconnected:
            log.debug("an ask could not be refused: no connection", extra={"agent": agent})
