"""The `Transport` over nats-py. The only module that imports it.

nats-py does what is hard to do well: servers, authentication, TLS, reconnecting. Two of its ways are replaced here, because
they cost most of a request's time and memory:

- **Receiving.** nats-py gives each subscription a queue and a task. Here a message goes from the parser straight to its
  handler; a task exists only while a handler's coroutine runs. A sleeping agent's subscription is one small object.
- **Sending.** nats-py wakes a flusher task through a queue for each publish. Here the commands of one loop iteration are
  written together by one `call_soon`.

Both hook into `Client` methods whose shape the pinned version fixes (`nats-py==2.16.*`) and the tests of this module hold.

Also replaced: nats-py leaves a request that is in flight at a disconnect to its time-out, sends what was pending at a
disconnect after the reconnect, waits for a dead peer to take the last bytes, and closes for good on a protocol error. Here
such a request fails at once, nothing is sent late, a dead socket is aborted, and a closed connection is opened again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import nats.aio.client
import nats.errors

from agentmesh.edge.delivery import CLOSE_TIMEOUT_S, Gathering, LiveSubscription
from agentmesh.edge.frames import NO_HEADERS, check_pattern, parse_headers, publish_frame
from agentmesh.edge.transport import Disconnected, Handler, Headers, Message, NoResponders, RequestTimeout, Subscription
from agentmesh.errors import BadRequest, TooLarge, Unavailable

log = logging.getLogger("agentmesh.edge")

PING_INTERVAL_S = 5
MAX_OUTSTANDING_PINGS = 2
RECONNECT_WAIT_S = 0.25
ATTEMPT_TIMEOUT_S = 2.0
HIGH_WATER = 1 << 20
"""Unsent bytes beyond which the next publisher waits for the socket."""

_CONNECTED = nats.aio.client.Client.CONNECTED
_PING = b"PING\r\n"


async def connect(servers: str | Sequence[str], *, name: str, connect_timeout: float = 5.0, wait: bool = False) -> NatsTransport:
    """Connect, and stay connected: whatever happens later, the transport reconnects by itself for ever.

    Args:
        servers: URLs (`nats://` or `tls://`, user and password or a token may be in them), as a list or joined by commas.
        name: shown in the server's connection list.
        connect_timeout: seconds until the first connection must stand.
        wait: keep trying instead of raising when none can be reached.

    Raises:
        BadRequest: no usable URL.
        Unavailable: no server could be reached within `connect_timeout`.
    """
    transport = NatsTransport(_urls(servers), name)
    try:
        async with asyncio.timeout(None if wait else connect_timeout):
            await transport._open()
        transport._live = True
    except TimeoutError:
        await transport.close()
        raise Unavailable(
            f"no NATS server answers at {', '.join(_shown(u) for u in transport.urls)} ({transport.last_error}); "
            "start one (`mesh up`), or check the address"
        ) from None
    except BaseException:
        await transport.close()
        raise
    return transport


def _urls(servers: str | Sequence[str]) -> list[str]:
    listed = servers.split(",") if isinstance(servers, str) else servers
    urls = [url.strip() for url in listed if url.strip()]
    if not urls:
        raise BadRequest("no server address given; for example nats://127.0.0.1:4222")
    for url in urls:
        scheme, separator, _ = url.partition("://")
        if separator and scheme not in ("nats", "tls"):
            raise BadRequest(f"{_shown(url)}: use nats:// or tls://")
        parts = urlsplit(url if separator else f"nats://{url}")
        try:
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise BadRequest(f"{_shown(url)} is no server address; for example nats://127.0.0.1:4222")
    return urls


def _shown(url: str) -> str:
    """`url` without credentials."""
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


class _Client(nats.aio.client.Client):
    """nats-py's client with direct delivery and direct sending; see the module's docstring."""

    _transport: Any  # nats-py's TcpTransport, or None before the first connection
    _subs: Any  # dict[int, LiveSubscription]

    def __init__(self, on_down: Callable[[], None], on_closed: Callable[[], None]) -> None:
        super().__init__()
        self._on_down = on_down
        self._on_closed = on_closed
        self._flush_due = False
        self.congested = False

    @property
    def up(self) -> bool:
        return self._status == _CONNECTED

    def send(self, frame: bytes) -> None:
        """Queue `frame` for the end of this loop iteration."""
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush_now)
        if self._pending_data_size > HIGH_WATER:
            # A publisher in a loop gives nobody a turn: it must wait before its next message.
            self.flush_now()
            self.congested = True

    def flush_now(self) -> None:
        """Write what is queued."""
        self._flush_due = False
        pending = self._pending
        if not pending or not self.up:
            return
        self._transport.write(pending[0] if len(pending) == 1 else b"".join(pending))
        self._pending = []
        self._pending_data_size = 0
        if self._transport._io_writer.transport.get_write_buffer_size() > HIGH_WATER:
            self.congested = True

    async def uncongested(self) -> None:
        """Give way, and wait until the socket takes bytes again."""
        await asyncio.sleep(0)
        try:
            await self._transport.drain()
        except OSError:
            raise Disconnected from None
        self.congested = False

    def ping(self, answered: Callable[[object], None]) -> None:
        """Send a PING behind everything queued. `answered` is called at its PONG."""
        self.flush_now()
        # A future of its own: nats-py sets its result unasked, which a cancelled one would not survive.
        pong = asyncio.get_running_loop().create_future()
        pong.add_done_callback(answered)
        self._pongs.append(pong)
        self._transport.write(_PING)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        subscription = self._subs.get(sid)
        if subscription is None:
            return
        # Not UTF-8 is legal on the wire; an exception here would end nats-py's read loop.
        to, answer_to = str(subject, "utf-8", "replace"), str(reply, "utf-8", "replace")
        if headers:
            status, fields = parse_headers(headers)
            subscription.deliver(Message(to, data, fields, answer_to, status))
        else:
            subscription.deliver(Message(to, data, NO_HEADERS, answer_to))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        # Servers come and go and limits change while connected; nats-py keeps what it was told first.
        self._server_info = {**self._server_info, **info}
        self._max_payload = self._server_info.get("max_payload", self._max_payload)

    async def _process_op_err(self, e: Exception) -> None:
        if not (self.is_closed or self.is_reconnecting):
            self._go_down()
        await super()._process_op_err(e)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        was_closed = self.is_closed
        self._go_down()
        try:
            await super()._close(status, do_cbs=False)
        except Exception:  # whatever it was, the connection must be opened again
            log.exception("closing a connection failed")
        if do_cbs and not was_closed:
            self._on_closed()

    async def _attempt_reconnect(self) -> None:
        try:
            await super()._attempt_reconnect()
        except Exception:  # nats-py goes on after the errors that it expects, and gives up silently after others
            log.exception("reconnecting failed")
            await self._close(self.CLOSED)

    async def _read_loop(self) -> None:
        await super()._read_loop()
        # nats-py ends the loop after an unexpected error and leaves the connection open and deaf.
        if self.up and asyncio.current_task() is self._reading_task:
            await self._process_op_err(nats.errors.Error("the read loop has ended"))

    async def _connect_to_server(self, s: Any) -> None:
        self._abort()  # what a failed attempt left behind
        await super()._connect_to_server(s)

    def _go_down(self) -> None:
        self._abort()
        self._on_down()

    def _abort(self) -> None:
        # Nothing pending may go out after a reconnect (its sender has been told that it failed), and closing must not
        # wait for a peer that takes no bytes. Subscriptions are replayed from `_subs`.
        self._pending = []
        self._pending_data_size = 0
        self.congested = False
        writer = self._transport._io_writer if self._transport is not None else None
        if writer is not None:
            writer.transport.abort()


class NatsTransport:
    """A connection to NATS. Make one with `connect`."""

    def __init__(self, urls: list[str], name: str) -> None:
        self.urls = urls
        self.last_error = "no attempt was made"
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._subscriptions: dict[int, LiveSubscription] = {}
        self._sids = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._gathering: dict[str, Gathering] = {}
        self._gap_callbacks: dict[object, Callable[[], None]] = {}
        self._tokens = itertools.count()
        self._inbox = f"{self.new_inbox()}."
        self._live = False
        """Connected, and whoever may have missed something has been told so."""
        self._closing = False
        self._reopening: asyncio.Task[None] | None = None
        self._client = self._new_client()
        self._add(f"{self._inbox}*", "", self._on_reply)

    # --- state ------------------------------------------------------------------------------------------------
    @property
    def max_payload(self) -> int:
        """The server's limit on headers and body of one message, in bytes."""
        return int(self._client._max_payload)

    @property
    def connected(self) -> bool:
        """Whether a server is connected at this moment."""
        return self._live

    @property
    def server_version(self) -> tuple[int, int, int]:
        """Version of the connected server (of the last one, while disconnected)."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def clustered(self) -> bool:
        """Whether the connected server belongs to a cluster, of whatever size."""
        return bool(self._client._server_info.get("cluster"))

    def cluster_size(self) -> int:
        """How many servers the connected one says its cluster has; 1 outside a cluster. A best effort: servers that are
        down are not counted, and one that listens on several addresses may count more than once."""
        return max(1, len(self._client._server_info.get("connect_urls") or ())) if self.clustered else 1

    def new_inbox(self) -> str:
        """A subject that nobody else uses."""
        return f"_INBOX.{secrets.token_hex(11)}"

    # --- sending ----------------------------------------------------------------------------------------------
    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        """See `Transport.publish`."""
        client = self._client
        if not self._live:
            raise Disconnected
        frame = publish_frame(subject, data, headers, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        client.send(frame)

    def post(self, subject: str, data: bytes = b"") -> None:
        """See `Transport.post`."""
        client = self._client
        if not client.up or client.congested:
            return
        with contextlib.suppress(TooLarge):
            client.send(publish_frame(subject, data, None, "", client._max_payload))

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        """See `Transport.request`."""
        client = self._client
        if not self._live:
            raise Disconnected
        reply = f"{self._inbox}{next(self._tokens)}"
        frame = publish_frame(subject, data, headers, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        future: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[reply] = future
        timer = self._loop.call_later(timeout, _expire, future)
        client.send(frame)
        try:
            message = await future
        finally:
            timer.cancel()
            del self._waiting[reply]
        if message.status == "503" and not message.data:
            raise NoResponders(subject)
        return message

    async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
        """See `Transport.request_many`."""
        client = self._client
        if not self._live:
            raise Disconnected
        reply = f"{self._inbox}{next(self._tokens)}"
        frame = publish_frame(subject, data, None, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        gathering = Gathering(self._loop.create_future(), self._loop.time())
        self._gathering[reply] = gathering
        client.send(frame)
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
        client = self._client
        if not self._live:
            raise Disconnected
        key = f"pong {next(self._tokens)}"
        self._waiting[key] = future = self._loop.create_future()
        timer = self._loop.call_later(timeout, _expire, future)

        def answered(_: object) -> None:
            if not future.done():
                future.set_result(Message("", b"", NO_HEADERS))

        client.ping(answered)
        try:
            await future
        finally:
            timer.cancel()
            del self._waiting[key]

    async def _uncongested(self, client: _Client) -> None:
        await client.uncongested()
        if not self._live or client is not self._client:
            raise Disconnected

    # --- receiving --------------------------------------------------------------------------------------------
    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """See `Transport.subscribe`. While there is no connection, the subscription begins with the next one."""
        check_pattern(subject)
        if queue:
            check_pattern(queue)
        return self._add(subject, queue, handler)

    def _add(self, subject: str, queue: str, handler: Handler) -> LiveSubscription:
        sid = next(self._sids)
        subscription = LiveSubscription(self, sid, subject, queue, handler)
        self._subscriptions[sid] = subscription
        self._client._subs[sid] = subscription
        if self._client.up:
            self._client.send(subscription.frame)
        return subscription

    def forget(self, sid: int) -> None:
        """End the subscription `sid`."""
        if self._subscriptions.pop(sid, None) is not None:
            self._client._subs.pop(sid, None)
            if self._client.up:
                self._client.send(f"UNSUB {sid}\r\n".encode())

    async def fade(self, sid: int) -> None:
        """Have the server send nothing more to the subscription `sid`; what is on its way still arrives until this returns."""
        if sid in self._subscriptions and self._client.up:
            self._client.send(f"UNSUB {sid}\r\n".encode())
            with contextlib.suppress(RequestTimeout, Disconnected):
                await self.flush(CLOSE_TIMEOUT_S)

    def _on_reply(self, message: Message) -> None:
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

    def gap(self) -> None:
        """Tell everybody that messages may have been missed."""
        for callback in list(self._gap_callbacks.values()):
            try:
                callback()
            except Exception:
                log.exception("a gap callback failed")

    # --- life -------------------------------------------------------------------------------------------------
    def _new_client(self) -> _Client:
        return _Client(self._on_down, self._on_closed)

    async def _open(self) -> None:
        """Connect the client, trying for ever, and announce the subscriptions."""
        client = self._client
        await client.connect(
            list(self.urls),
            name=self._name,
            pending_size=-1,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=MAX_OUTSTANDING_PINGS,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # nats-py sleeps on it
            connect_timeout=ATTEMPT_TIMEOUT_S,  # type: ignore[arg-type]
            error_cb=self._on_error,
            reconnected_cb=self._on_reconnected,
        )
        client._subs.update(self._subscriptions)
        for subscription in self._subscriptions.values():
            client.send(subscription.frame)
        client.flush_now()

    def _on_down(self) -> None:
        """The connection is gone: whoever waits for a reply is told now, not at the time-out."""
        if self._live and not self._closing:
            log.warning("%s: disconnected from NATS", self._name)
        self._live = False
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Disconnected())
        for gathering in self._gathering.values():
            if not gathering.done.done():
                gathering.done.set_exception(Disconnected())

    async def _on_error(self, error: Exception) -> None:
        self.last_error = str(error) or type(error).__name__
        level = logging.WARNING if self.connected else logging.DEBUG
        log.log(level, "%s: connection error: %s", self._name, self.last_error)

    async def _on_reconnected(self) -> None:
        log.info("%s: reconnected to NATS", self._name)
        # In one step: nobody finds the connection up without having heard of the gap.
        self._live = True
        self.gap()

    def _on_closed(self) -> None:
        if not self._closing:
            log.error("%s: the server closed the connection (%s); opening it again", self._name, self.last_error)
            self._reopening = self._loop.create_task(self._reopen())

    async def _reopen(self) -> None:
        while True:
            await asyncio.sleep(RECONNECT_WAIT_S)
            self._client = self._new_client()
            try:
                await self._open()
            except Exception:
                log.exception("%s: opening the connection again failed; trying again", self._name)
                continue
            await self._on_reconnected()
            return

    async def close(self) -> None:
        """Send what is pending and close. What still waits fails with `Disconnected`."""
        if self._closing:
            return
        with contextlib.suppress(RequestTimeout, Disconnected):
            await self.flush(CLOSE_TIMEOUT_S)
        self._closing = True
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.wait((self._reopening,), timeout=CLOSE_TIMEOUT_S)
        await self._client.close()
        for subscription in list(self._subscriptions.values()):
            await subscription.stop()
        self._subscriptions.clear()


def _expire(future: asyncio.Future[Message]) -> None:
    if not future.done():
        future.set_exception(RequestTimeout())
