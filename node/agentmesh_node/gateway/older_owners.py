"""Control requests that name their operation in the subject, while owners of an older build run, which know the other form alone.

Who may send single operations only can send nothing else (docs/design/043-the-operation-in-the-subject.md). While a lease says
that its node knows this form not, each request is heard by one process of this build too, which sends it on in the old form. An
owner of this build has heard it itself and passes over that (`RELAYED`), so nobody needs to know which build an owner is of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from agentmesh import wire
from agentmesh.control_operations import GIVEN, error_in, of_older_build, request_in
from agentmesh.control_values import ControlRequest
from agentmesh.edge.replies import usable_reply
from agentmesh.edge.transport import Disconnected, Message, NoResponders, RequestTimeout, Subscription, Transport
from agentmesh.errors import BadRequest, MeshError, NotPermitted, Unavailable
from agentmesh.keys import KEY
from agentmesh.subjects import Subjects
from agentmesh_node.formats import Formats

log = logging.getLogger("agentmesh.node")

OWNER_S = 2.0
"""Wait for the owner's reply."""


class OlderOwners:
    """Sends such requests on while there are older owners."""

    def __init__(
        self, transport: Transport, subjects: Subjects, formats: Formats, spawn: Callable[[Coroutine[Any, Any, Any]], None]
    ) -> None:
        """`formats` is started; `spawn` runs work beside the caller."""
        self._t = transport
        self._subjects = subjects
        self._formats = formats
        self._spawn = spawn
        self._changing = asyncio.Lock()
        self._subscriptions: list[Subscription] = []
        self._closed = False

    async def start(self) -> None:
        """Follow what the leases say."""
        self._formats.on_change(self._changed)
        await self._follow()

    async def close(self) -> None:
        """Take no more requests."""
        self._closed = True
        await self._follow()

    def _changed(self) -> None:
        if self._wanted() != bool(self._subscriptions):
            self._spawn(self._follow())

    def _wanted(self) -> bool:
        return not self._closed and not self._formats.by_operation

    async def _follow(self) -> None:
        async with self._changing:
            while self._subscriptions and not self._wanted():
                await self._subscriptions.pop().drain()
            if self._wanted() and not self._subscriptions:
                log.info("a node of an older build runs: control requests by operation are sent on to owners in the older form")
                for op in GIVEN:
                    subject = self._subjects.control_op(op, ">")
                    queue = self._subjects.ask_queue
                    self._subscriptions.append(await self._t.subscribe(subject, self._on_request, queue=queue))

    def _on_request(self, message: Message) -> None:
        reply = usable_reply(message, self._subjects.root)
        lane, agent = self._subjects.parse_copy(message.subject) or ("", "")
        if reply is not None and agent:
            self._spawn(self._send_on(lane, agent, message, reply))

    async def _send_on(self, lane: str, agent: str, message: Message, reply: str) -> None:
        with contextlib.suppress(Disconnected):  # the caller asks again
            try:
                request = request_in(lane, message.data)
            except (msgspec.DecodeError, RecursionError) as error:
                body: bytes | None = wire.encode_failure(BadRequest(f"not a control request: {error}"))
            except MeshError as error:
                body = wire.encode_failure(error)
            else:
                body = await self._answer(agent, request, message)
            if body is not None:
                await self._t.publish(reply, body)

    async def _answer(self, agent: str, request: ControlRequest, message: Message) -> bytes | None:
        """What the agent's owner says to it in the old form; None if it has heard it in the new one, or does not answer."""
        headers = {wire.RELAYED: "1"} | ({KEY: message.headers[KEY]} if KEY in message.headers else {})
        try:
            answer = await self._t.request(self._subjects.control(agent), wire.encode(request), headers=headers, timeout=OWNER_S)
        except NoResponders:
            # Without this process the server would have told the caller so.
            details = {"agent": agent, "nobody": True}
            return wire.encode_failure(Unavailable(f"nobody answers for agent {agent!r} now", details=details))
        except (RequestTimeout, NotPermitted):
            return None
        with contextlib.suppress(msgspec.DecodeError):
            error = error_in(answer.data)
            if error is not None and (shown := of_older_build(agent, request.op, error)) is not error:
                return wire.encode_failure(shown.exception())
        return answer.data
