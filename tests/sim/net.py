"""Connections to the in-memory server, and the `Transport` over them.

A link carries messages in order, each way, with some latency. A link that is *cut* holds what is sent: if it heals soon it all
arrives late (TCP sends it again); if the client gives up first, a part of it may still arrive, long after its sender was told
that it failed. The server knows of a client's end at once when the process dies, and late when the link is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from agentmesh.edge.frames import check_pattern, publish_frame
from agentmesh.edge.pending_requests import Gathering
from agentmesh.edge.subscription import CLOSE_TIMEOUT_S, LiveSubscription
from agentmesh.edge.transport import (
    Answered,
    Disconnected,
    Handler,
    Headers,
    Message,
    NoResponders,
    RequestTimeout,
    Subscription,
)
from agentmesh.errors import NotPermitted, TooLarge
from sim.loop import Process, SimLoop
from sim.server import Server

RECONNECT_S = 0.25
NOTICE_S = (10.0, 15.0)
"""How long it takes a client to notice that its server does not answer: two pings, five seconds apart."""
LATENCY_S = (0.0001, 0.001)
"""How long one message takes in a network that works."""
LATENCY_RANGE_S = LATENCY_S[1] - LATENCY_S[0]
GHOST_S = 30.0
"""Longest that the server keeps the subscriptions of a client that it cannot reach."""

TICK_S = 1e-7
"""Between two messages on one link, so that their order is that of their times."""

SMALL = 1024
"""Bytes that every server takes."""
_publishable: set[str] = set()
"""Subjects that a frame has been made for."""

type Action = Callable[[], None]


class Habits:
    """How a network behaves that works. Faults replace it."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    def latency(self) -> float:
        """Seconds that one message takes."""
        return LATENCY_S[0] + LATENCY_RANGE_S * self.dice.random()  # `uniform`, for each message

    def delay(self, subject: str) -> float:
        """Seconds by which one message to the server is held up, apart from all others."""
        return 0.0

    def loses_reply(self, subject: str) -> bool:
        """Whether the message on an inbox is lost."""
        return False


class Link:
    """One connection: what is under way in it."""

    def __init__(self, number: int, process: Process, transport: SimTransport) -> None:
        self.number = number
        self.process = process
        self.transport = transport
        self.open = True
        """The client uses it."""
        self.known = True
        """The server knows it."""
        self.cut = False
        self.to_server: deque[Action] = deque()
        self.to_client: deque[Action] = deque()
        self.up_at = 0.0
        self.down_at = 0.0


class Network:
    """All links to one server."""

    def __init__(self, loop: SimLoop, dice: random.Random, *, max_payload: int = 1 << 20) -> None:
        self.dice = dice
        self.habits = Habits(dice)
        self.loop = loop
        self.world = contextvars.Context()
        self.server = Server(
            clock=loop.time, later=self._later, deliver=self._deliver, choose=dice.randrange, max_payload=max_payload
        )
        self.down = False
        self.cut: set[str] = set()
        """Names of the transports that cannot reach the server."""
        self.trace: Callable[[str, str, str], None] | None = None
        self._links: dict[int, Link] = {}
        self._numbers = itertools.count(1)

    def trace_to(self, line: Callable[[str], None]) -> None:
        """Give `line` a line for each message and each fault."""
        self.trace = lambda who, subject, body: line(f"{self.loop.time():9.4f}  {who:<22} {subject}  {body}")

    def _later(self, seconds: float, action: Action) -> object:
        return self.loop.call_later(seconds, action, context=self.world)

    # --- links ----------------------------------------------------------------------------------------------------
    def reachable(self, transport: str) -> bool:
        """Whether a new connection can be made."""
        return not self.down and transport not in self.cut

    def connect(self, transport: SimTransport) -> Link:
        link = Link(next(self._numbers), transport.process, transport)
        self._links[link.number] = link
        return link

    def _links_named(self, transport: str) -> list[Link]:
        return [link for link in self._links.values() if link.transport.name == transport]

    def _forget(self, link: Link) -> None:
        """The server drops the connection."""
        if link.known:
            link.known = False
            self.server.drop(link.number)
            self._links.pop(link.number, None)

    def abandon(self, link: Link) -> None:
        """The client closes the connection."""
        link.open = False
        link.to_client.clear()
        if not link.cut:
            self.loop.call_at(max(link.up_at, self.loop.time() + self.habits.latency()), self._forget, link, context=self.world)
            return
        # Of what is held up a part may have left already; it arrives when it arrives.
        arriving = self.dice.randint(0, len(link.to_server))
        late = [link.to_server[index] for index in range(arriving)]
        link.to_server.clear()
        wait = self.dice.uniform(0.0, GHOST_S)
        for action in late:
            self._later(self.dice.uniform(0.0, wait), action)
        self._later(wait, lambda: self._forget(link))

    # --- messages -------------------------------------------------------------------------------------------------
    def send(self, link: Link, action: Action, delay: float = 0.0) -> None:
        """From the client: `action` is done in the server when the message arrives."""

        if delay:
            self._later(delay, partial(self._arrive, link, action, True))
        elif link.cut:
            link.to_server.append(partial(self._arrive, link, action, False))
        else:
            link.up_at = max(link.up_at + TICK_S, self.loop.now + self.habits.latency())
            self.loop.call_at(link.up_at, self._arrive, link, action, False, context=self.world)

    def _arrive(self, link: Link, action: Action, held_up: bool) -> None:
        if link.cut:
            link.to_server.append(partial(self._arrive, link, action, held_up))
        elif not self.down and (link.known or held_up):
            action()

    def _deliver(self, connection: int, sid: int, message: Message) -> None:
        link = self._links.get(connection)
        if link is None or (message.subject.startswith("_INBOX.") and self.habits.loses_reply(message.subject)):
            return

        if link.cut:
            link.to_client.append(partial(self._come, link, sid, message))
            return
        link.down_at = max(link.down_at + TICK_S, self.loop.now + self.habits.latency())
        self.loop.call_at(link.down_at, self._come, link, sid, message, context=self.world)

    def _come(self, link: Link, sid: int, message: Message) -> None:
        if link.cut:
            link.to_client.append(partial(self._come, link, sid, message))
        elif link.open:
            self.loop.call_next(link.process, link.transport.receive, link, sid, message)

    def answer(self, link: Link, action: Action) -> None:
        """From the server: `action` is done in the client, behind what is on its way to it."""
        if link.cut or not link.open:
            return
        link.down_at = max(link.down_at + TICK_S, self.loop.time() + self.habits.latency())
        self.loop.call_at(link.down_at, action, context=link.process.context)

    # --- faults ---------------------------------------------------------------------------------------------------
    def cut_off(self, transport: str) -> None:
        """Nothing passes between `transport` and the server any more."""
        self.cut.add(transport)
        for link in self._links_named(transport):
            if link.cut or not link.open:
                continue
            link.cut = True
            notice = self.dice.uniform(*NOTICE_S)
            self.loop.call_later(notice, link.transport.unanswered, link, context=link.process.context)

    def heal(self, transport: str) -> None:
        """The way is free again: what was held arrives."""
        self.cut.discard(transport)
        for link in self._links_named(transport):
            if not link.cut:
                continue
            link.cut = False
            held_up, held_down = list(link.to_server), list(link.to_client)
            link.to_server.clear()
            link.to_client.clear()
            for action in held_up + held_down:
                self._later(0.001, action)

    def reset(self, transport: str) -> None:
        """The connection of `transport` ends, and both sides know it."""
        for link in self._links_named(transport):
            self._forget(link)
            self.loop.call_soon(link.transport.broken, link, context=link.process.context)

    def vanish(self, process: Process) -> None:
        """`process` was killed: its kernel closes its sockets, with what was written to them."""
        for link in [one for one in self._links.values() if one.process is process]:
            link.open = False
            if link.cut:
                self.abandon(link)
            else:
                self.loop.call_at(max(link.up_at, self.loop.time() + 0.003), self._forget, link, context=self.world)

    def stop_server(self) -> None:
        """The server dies; its store stays."""
        self.down = True
        for link in list(self._links.values()):
            self._forget(link)
            self.loop.call_soon(link.transport.broken, link, context=link.process.context)

    def start_server(self) -> None:
        """The server is back on its store."""
        self.down = False
        for stream in self.server.streams.values():
            stream.restart()


class SimTransport:
    """A `Transport` of `process`. Open it with `open`."""

    def __init__(self, network: Network, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self._net = network
        self._loop = network.loop
        self._link: Link | None = None
        self._live = False
        self._closing = False
        self._subscriptions: dict[int, LiveSubscription] = {}
        self._sids = itertools.count(1)
        self._tokens = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._called: dict[str, tuple[Answered, asyncio.TimerHandle]] = {}
        self._gathering: dict[str, Gathering] = {}
        self._gap_callbacks: dict[object, Callable[[], None]] = {}
        self._read_callbacks: list[Callable[[], None]] = []
        self.reading = False
        self.domain: str | None = ""
        self.dropped = 0
        self._reconnecting: asyncio.Task[None] | None = None
        self._inbox = self.new_inbox() + "."
        self._add(self._inbox + "*", "", self._on_reply)

    @property
    def max_payload(self) -> int:
        return self._net.server.max_payload

    @property
    def connected(self) -> bool:
        return self._live

    @property
    def clustered(self) -> bool:
        return True  # what a cluster does, a lone server does less often

    def new_inbox(self) -> str:
        """A subject that nobody else uses."""
        return f"_INBOX.{self._net.dice.getrandbits(88):022x}"

    # --- life -----------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Connect, trying for ever."""
        await self._establish()
        self._live = True

    async def _establish(self) -> None:
        while True:
            await asyncio.sleep(self._net.habits.latency() * 4)
            if self._net.reachable(self.name):
                break
            await asyncio.sleep(RECONNECT_S + (2.0 if self.name in self._net.cut else 0.0))
        link = self._link = self._net.connect(self)
        for sid, subscription in self._subscriptions.items():
            self._announce(link, sid, subscription)

    def _announce(self, link: Link, sid: int, subscription: LiveSubscription) -> None:
        server = self._net.server
        subject, queue = subscription._subject, subscription._queue
        self._net.send(link, lambda: server.subscribe(link.number, sid, subject, queue))

    def unanswered(self, link: Link) -> None:
        """The server has not answered pings for too long."""
        if link is self._link and link.cut and link.open:
            self._net.abandon(link)
            self._go_down()

    def broken(self, link: Link) -> None:
        """The socket is closed."""
        if link is self._link and link.open:
            link.open = False
            self._go_down()

    def _go_down(self) -> None:
        self._live = False
        self._link = None
        for future in self._waiting.values():
            _fail(future)
        for gathering in self._gathering.values():
            _fail(gathering.done)
        for reply in list(self._called):
            self._tell(reply, Disconnected())
        if not self._closing:
            self._reconnecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        await asyncio.sleep(RECONNECT_S)
        await self._establish()
        self._live = True
        self.gap()

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._closing:
            return
        self._closing = True
        self._live = False
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        link, self._link = self._link, None
        if link is not None:
            self._net.abandon(link)
        for subscription in list(self._subscriptions.values()):
            await subscription.stop()
        for future in self._waiting.values():
            _fail(future)

    # --- sending --------------------------------------------------------------------------------------------------
    def _publish(self, subject: str, data: bytes, headers: Headers | None, reply: str) -> None:
        link = self._link
        if not self._live or link is None:
            raise Disconnected
        if headers or len(data) > SMALL or subject not in _publishable:
            publish_frame(subject, data, headers, reply, self.max_payload)  # for what it refuses
            _publishable.add(subject)
        server, fields = self._net.server, dict(headers) if headers else None
        if self._net.trace is not None:
            self._net.trace(self.name, subject, data[:120].decode("utf-8", "replace"))
        delay = self._net.habits.delay(subject) if reply else 0.0
        self._net.send(link, partial(server.publish, subject, fields, data, reply), delay)

    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        """See `Transport.publish`."""
        self._publish(subject, data, headers, reply)

    def send(self, subject: str, data: bytes = b"") -> bool:
        """See `Transport.send`."""
        try:
            self._publish(subject, data, None, "")
        except Disconnected:
            return False
        return True

    def post(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, though_full: bool = False) -> None:
        """See `Transport.post`. A simulated socket is never full."""
        try:
            self._publish(subject, data, headers, "")
        except (Disconnected, TooLarge):
            self.dropped += 1

    def post_all(self, messages: Iterable[tuple[str, bytes]], *, though_full: bool = False) -> None:
        """See `Transport.post_all`."""
        for subject, data in messages:
            self.post(subject, data)

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        """See `Transport.request`."""
        reply = f"{self._inbox}{next(self._tokens)}"
        self._publish(subject, data, headers, reply)
        future: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[reply] = future
        timer = self._loop.call_later(timeout, _expire, future)
        try:
            message = await future
        finally:
            timer.cancel()
            del self._waiting[reply]
        if message.status == "503" and not message.data:
            raise NoResponders(subject)
        return message

    def call(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float, answered: Answered
    ) -> bool:
        """See `Transport.call`."""
        reply = f"{self._inbox}{next(self._tokens)}"
        try:
            self._publish(subject, data, headers, reply)
        except Disconnected:
            return False
        timer = self._loop.call_later(timeout, self._tell, reply, RequestTimeout())
        self._called[reply] = answered, timer
        return True

    def _tell(self, reply: str, outcome: Message | Exception) -> None:
        if (called := self._called.pop(reply, None)) is not None:
            called[1].cancel()
            called[0](outcome)

    async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
        """See `Transport.request_many`."""
        reply = f"{self._inbox}{next(self._tokens)}"
        self._publish(subject, data, None, reply)
        gathering = Gathering(self._loop.create_future(), self._loop.time())
        self._gathering[reply] = gathering
        try:
            while not gathering.done.done():
                silent_since = gathering.touched
                await asyncio.wait((gathering.done,), timeout=silent_since + timeout - self._loop.time())
                if gathering.touched == silent_since and not gathering.done.done():
                    raise RequestTimeout(subject)
            gathering.done.result()
        finally:
            del self._gathering[reply]
        if len(gathering.messages) == 1 and gathering.messages[0].status == "503":
            raise NoResponders(subject)
        return gathering.messages

    async def flush(self, timeout: float = 5.0) -> None:
        """See `Transport.flush`."""
        link = self._link
        if not self._live or link is None:
            raise Disconnected
        key = f"pong {next(self._tokens)}"
        future: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[key] = future
        timer = self._loop.call_later(timeout, _expire, future)

        def pong() -> None:
            if not future.done():
                future.set_result(Message("", b"", {}))

        self._net.send(link, lambda: self._net.answer(link, pong))
        try:
            await future
        finally:
            timer.cancel()
            del self._waiting[key]

    # --- receiving ------------------------------------------------------------------------------------------------
    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """See `Transport.subscribe`."""
        check_pattern(subject)
        return self._add(subject, queue, handler)

    def _add(self, subject: str, queue: str, handler: Handler) -> LiveSubscription:
        sid = next(self._sids)
        subscription = LiveSubscription(self, sid, subject, queue, handler)
        self._subscriptions[sid] = subscription
        if self._link is not None:
            self._announce(self._link, sid, subscription)
        return subscription

    def forget(self, sid: int) -> None:
        """End the subscription `sid`."""
        link = self._link
        if self._subscriptions.pop(sid, None) is not None and link is not None:
            self._net.send(link, lambda: self._net.server.unsubscribe(link.number, sid))

    async def fade(self, sid: int) -> None:
        """Have the server send nothing more to `sid`; what is on its way still arrives until this returns."""
        link = self._link
        if sid in self._subscriptions and link is not None:
            self._net.send(link, lambda: self._net.server.unsubscribe(link.number, sid))
            with contextlib.suppress(RequestTimeout, Disconnected):
                await self.flush(CLOSE_TIMEOUT_S)

    def receive(self, link: Link, sid: int, message: Message) -> None:
        """A message has come."""
        if link is self._link and (subscription := self._subscriptions.get(sid)) is not None:
            self.reading = True
            subscription.deliver(message)
            self.reading = False
            for callback in self._read_callbacks:
                callback()

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Transport.on_read`."""
        self._read_callbacks.append(callback)
        return lambda: self._read_callbacks.remove(callback)

    def _on_reply(self, message: Message) -> None:
        if message.subject in self._called:
            self._tell(message.subject, message if message.status != "503" or message.data else NoResponders())
            return
        future = self._waiting.get(message.subject)
        if future is not None:
            if not future.done():
                future.set_result(message)
            return
        gathering = self._gathering.get(message.subject)
        if gathering is not None and not gathering.done.done():
            gathering.take(message, self._loop.time())

    def on_gap(self, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Transport.on_gap`."""
        key = object()
        self._gap_callbacks[key] = callback

        def remove() -> None:
            self._gap_callbacks.pop(key, None)

        return remove

    @property
    def refusal(self) -> None:
        """Everybody may do everything."""

    def on_refused(self, callback: Callable[[NotPermitted], None], *, tells: bool = True) -> Callable[[], None]:
        """See `Transport.on_refused`."""
        return lambda: None

    def gap(self) -> None:
        """Tell everybody that messages may have been missed."""
        for callback in list(self._gap_callbacks.values()):
            callback()


def _expire(future: asyncio.Future[Message]) -> None:
    if not future.done():
        future.set_exception(RequestTimeout())


def _fail(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(Disconnected())
        future.exception()  # the task that waited may have been killed
