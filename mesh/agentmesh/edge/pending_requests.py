"""The requests of one connection that are waited for: their answers, their time-outs, and what fails them together."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from agentmesh.edge.transport import Answered, Disconnected, Message, NoResponders, RequestTimeout

log = logging.getLogger("agentmesh.edge")

LOOK_S = 0.25
"""How often time-outs are checked: one timer for all requests is cheaper than one for each."""


class Gathering:
    """The replies of one `request_many`, as they come in."""

    __slots__ = ("done", "messages", "subject", "touched")

    def __init__(self, done: asyncio.Future[None], now: float, subject: str = "") -> None:
        self.done = done
        self.subject = subject
        self.messages: list[Message] = []
        self.touched = now

    def take(self, message: Message, now: float) -> None:
        """Add a reply; the last one completes `done`."""
        self.messages.append(message)
        self.touched = now
        # A stored message may bear a forged status line; the server's own end mark names no stream.
        if message.status and "Nats-Stream" not in message.headers:
            self.done.set_result(None)


class PendingRequests:
    """Requests by reply subject. Who has added one of `waiting` or `gathering` removes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiting: dict[str, tuple[asyncio.Future[Message], float, str]] = {}
        """The future, its deadline on the loop's clock, the subject asked."""
        self._called: dict[str, tuple[Answered, float, str]] = {}
        """Requests of `call`: the callback, its deadline, the subject asked."""
        self.gathering: dict[str, Gathering] = {}
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, key: str, timeout: float, subject: str) -> asyncio.Future[Message]:
        """A future of the message that arrives for `waiting[key]`; it raises `RequestTimeout` after `timeout` seconds."""
        future: asyncio.Future[Message] = self._loop.create_future()
        self.waiting[key] = (future, self._loop.time() + timeout, subject)
        if timeout < 4 * LOOK_S:
            self._loop.call_later(timeout, _expire, future)
        elif self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._check_timeouts)
        return future

    def call(self, reply: str, answered: Answered, timeout: float, subject: str) -> None:
        """Give `answered` the reply, or an exception, within some `timeout` seconds."""
        self._called[reply] = answered, self._loop.time() + timeout, subject
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._check_timeouts)

    def gather(self, reply: str, subject: str) -> Gathering:
        """The replies to come, in `gathering[reply]`."""
        found = self.gathering[reply] = Gathering(self._loop.create_future(), self._loop.time(), subject)
        return found

    def answer(self, message: Message) -> None:
        """Take a reply."""
        if (called := self._called.pop(message.subject, None)) is not None:
            called[0](message if message.status != "503" or message.data else NoResponders())
            return
        waiting = self.waiting.get(message.subject)
        if waiting is not None:
            if not waiting[0].done():
                waiting[0].set_result(message)
            return
        gathering = self.gathering.get(message.subject)
        if gathering is not None and not gathering.done.done():
            gathering.take(message, self._loop.time())

    def fail(self, error: Exception, subject: str | None) -> bool:
        """Fail the requests to `subject` (None: all) that are waited for. Returns whether there was any."""
        waiting = [one for one, _, asked in self.waiting.values() if asked and subject in (None, asked) and not one.done()]
        gathering = [one.done for one in self.gathering.values() if subject in (None, one.subject) and not one.done.done()]
        called = [reply for reply, (_, _, asked) in self._called.items() if subject in (None, asked)]
        futures: list[asyncio.Future[Any]] = [*waiting, *gathering]
        for future in futures:
            future.set_exception(error)
        for reply in called:
            self._end_call(reply, error)
        return bool(waiting or gathering or called)

    def disconnect(self) -> None:
        """The connection is gone: everything that waits for an answer fails now, a `flush` too."""
        for future, _, _ in self.waiting.values():
            if not future.done():
                future.set_exception(Disconnected())
        for gathering in self.gathering.values():
            if not gathering.done.done():
                gathering.done.set_exception(Disconnected())
        for reply in list(self._called):
            self._end_call(reply, Disconnected())

    def close(self) -> None:
        """Check time-outs no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check_timeouts(self) -> None:
        """Fail the requests whose time is over."""
        now = self._loop.time()
        for future, deadline, _ in self.waiting.values():
            if deadline <= now:
                _expire(future)
        self._timer = None
        for reply in [reply for reply, (_, deadline, _) in self._called.items() if deadline <= now]:
            self._end_call(reply, RequestTimeout())
        if self._timer is None and (self.waiting or self._called):
            self._timer = self._loop.call_later(LOOK_S, self._check_timeouts)

    def _end_call(self, reply: str, error: Exception) -> None:
        """Give the callback of a `call` its error."""
        if (called := self._called.pop(reply, None)) is None:
            return
        try:
            called[0](error)
        except Exception:
            log.exception("the callback of a request failed")


def _expire(future: asyncio.Future[Message]) -> None:
    if not future.done():
        future.set_exception(RequestTimeout())
