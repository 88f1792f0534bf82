"""How a message gets from the parser to its handler."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Protocol

from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.edge.transport import Handler, Message

log = logging.getLogger("agentmesh.edge")

CLOSE_TIMEOUT_S = 2.0
MAX_BACKLOG = 65_536
"""Most messages that wait for one subscription's handler; further ones are dropped and reported as a gap."""


class SubscriptionHolder(Protocol):
    """The connection that a subscription belongs to."""

    def gap(self) -> None:
        """Messages have been dropped."""

    def forget(self, sid: int) -> None:
        """The subscription `sid` ends."""

    async def fade(self, sid: int) -> None:
        """Have the server send nothing more to `sid`; return when it has confirmed that."""


class LiveSubscription:
    """A subscription as nats-py's client keeps it, without a queue and a task of its own.

    A handler that is a plain function is called by the parser itself. A coroutine gets a task of its own; messages that arrive
    meanwhile wait in `_backlog`, so the order holds.
    """

    __slots__ = ("_backlog", "_dropped", "_handler", "_id", "_owner", "_queue", "_subject", "_worker")
    # What nats-py reads when it replays subscriptions after a reconnect and when it closes.
    _max_msgs = 0
    _received = 0
    _wait_for_msgs_task = None
    _message_iterator = None
    _pending_next_msgs_calls = None

    def __init__(self, owner: SubscriptionHolder, sid: int, subject: str, queue: str, handler: Handler) -> None:
        self._owner = owner
        self._id = sid
        self._subject = subject
        self._queue = queue
        self._handler = handler
        self._worker: asyncio.Task[None] | None = None
        self._backlog: deque[Message] | None = None
        self._dropped = 0

    def deliver(self, message: Message) -> None:
        """Hand `message` to the handler: now, or after those that wait already."""
        if self._worker is not None:
            self._enqueue(message)
            return
        try:
            pending = self._handler(message)
        except Exception:  # the next message is delivered all the same
            log.exception("a handler of %s failed", self._subject)
            return
        if pending is not None:
            self._worker = asyncio.get_running_loop().create_task(self._work(pending))
            self._worker.add_done_callback(partial(_discard, pending))

    def _enqueue(self, message: Message) -> None:
        if self._backlog is None:
            self._backlog = deque()
        if len(self._backlog) < MAX_BACKLOG:
            self._backlog.append(message)
            return
        self._dropped += 1
        if self._dropped == 1:
            log.warning("the handler of %s is too slow: messages are dropped", self._subject)
            self._owner.gap()

    async def _work(self, pending: Awaitable[None] | None) -> None:
        try:
            while True:
                try:
                    if pending is not None:
                        await pending
                    if not self._backlog:
                        return
                    pending = self._handler(self._backlog.popleft())
                except Exception:
                    log.exception("a handler of %s failed", self._subject)
                    pending = None
        finally:
            self._worker = None
            self._backlog = None
            if self._dropped:
                self._dropped = 0
                self._owner.gap()

    @property
    def frame(self) -> bytes:
        """The SUB command that announces it to a server."""
        return f"SUB {self._subject} {self._queue} {self._id}\r\n".encode()

    async def unsubscribe(self) -> None:
        """Stop. A handler that has begun may still finish; messages that wait behind it are not handled."""
        self._backlog = None
        self._owner.forget(self._id)

    async def drain(self) -> None:
        """See `Subscription.drain`."""
        await self._owner.fade(self._id)
        worker = self._worker
        if worker is not None and worker is not asyncio.current_task():
            await asyncio.wait((worker,), timeout=CLOSE_TIMEOUT_S)
        self._owner.forget(self._id)

    async def stop(self) -> None:
        """End the running handler, unless it is the caller."""
        await cancel_and_wait(self._worker, within_s=CLOSE_TIMEOUT_S)


def _discard(pending: Awaitable[None], _: asyncio.Task[None]) -> None:
    """Close a handler that has not begun: its worker was cancelled before its first step. One that has ended stays as it is."""
    if isinstance(pending, Coroutine):
        pending.close()
