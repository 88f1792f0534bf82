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
from agentmesh.edge.permissions import Permissions
from agentmesh.edge.replies import usable_reply
from agentmesh.edge.transport import Disconnected, Message, NoResponders, RequestTimeout, Subscription, Transport
from agentmesh.errors import BadRequest, MeshError, NotPermitted, Unavailable
from agentmesh.keys import KEY
from agentmesh.subjects import Subjects
from agentmesh_node.formats import Formats

log = logging.getLogger("agentmesh.node")

OWNER_S = 2.0
"""Wait for the owner's reply."""
MOVES_S = 0.5
"""For so long an agent that has no owner may be on its way to one."""
AGAIN_S = 0.05
READS = ("status", "poll")
"""Operations that change nothing: what is sent on a second time does no harm."""


class OlderOwners:
    """Sends such requests on while there are older owners."""

    def __init__(
        self, transport: Transport, subjects: Subjects, formats: Formats, spawn: Callable[[Coroutine[Any, Any, Any]], object]
    ) -> None:
        """`formats` is started; `spawn` runs work beside the caller."""
        self._t = transport
        self._subjects = subjects
        self._formats = formats
        self._spawn = spawn
        self._access = Permissions(transport, lambda: "")
        self._changing = asyncio.Lock()
        self._subscriptions: dict[str, Subscription] = {}
        """By operation."""
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
        # Also where nothing seems to be missing: what is open may be about to be closed.
        self._spawn(self._follow())

    def _wanted(self) -> bool:
        return not self._closed and not self._formats.by_operation

    async def _follow(self) -> None:
        """Open what is missing, or close what is open. What is wanted may change at each step."""
        async with self._changing:
            while self._subscriptions and not self._wanted():
                _, subscription = self._subscriptions.popitem()
                await subscription.drain()
            if not self._wanted():
                return
            if not self._subscriptions:
                log.info("a node of an older build runs: control requests by operation are sent on to owners in the older form")
            # The user of an older list may not hear them, and a subscription that is refused would stop the whole process.
            self._access.forget()
            await self._access.learn()
            refused = [op for op in GIVEN if not await self._open(op)]
            if refused:
                log.warning(
                    "control requests by operation are not sent on to owners of an older build: this user may not hear them, so "
                    "give it the list of its role as `mesh access` shows it now",
                    extra={"operations": refused},
                )

    async def _open(self, op: str) -> bool:
        """Whether requests for this operation are heard, or are no longer to be."""
        if op in self._subscriptions or not self._wanted():
            return True
        subject = self._subjects.control_op(op, ">")
        if self._access.may_subscribe(subject) is False:
            return False
        self._subscriptions[op] = await self._t.subscribe(subject, self._on_request, queue=self._subjects.ask_queue)
        return True

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
        key = {KEY: message.headers[KEY]} if KEY in message.headers else {}
        try:
            answer = await self._asked(agent, request, key)
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

    async def _asked(self, agent: str, request: ControlRequest, headers: dict[str, str]) -> Message:
        """The reply of the agent's owner. An agent without one may be on its way to the next: that is waited for a moment.

        The next owner has not heard the request, whichever build it is of, so what only reads is sent to it as if it were new. An
        owner of this build that has just left may have carried out any other, and its reply comes before the one that nobody is
        there: that is not sent again, so nothing is done twice.

        Raises: as `Transport.request`.
        """
        subject, body = self._subjects.control(agent), wire.encode(request)
        loop = asyncio.get_running_loop()
        until = loop.time() + MOVES_S
        try:
            return await self._t.request(subject, body, headers={wire.RELAYED: "1", **headers}, timeout=OWNER_S)
        except NoResponders:
            if request.op not in READS:
                await asyncio.sleep(MOVES_S)
                raise
        while True:
            await asyncio.sleep(AGAIN_S)
            try:
                return await self._t.request(subject, body, headers=headers, timeout=OWNER_S)
            except NoResponders:
                if loop.time() > until:
                    raise
