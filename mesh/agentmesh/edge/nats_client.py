"""nats-py's client, with three of its ways replaced. The only module that imports it.

nats-py does what is hard to do well: servers, authentication, TLS, reconnecting. Three things that cost most of a message's
time and memory are done here instead:

- **Receiving.** nats-py's read loop wakes a task for each piece of data, and gives each subscription a queue and a task. Here
  messages go from the socket straight to their handlers, in one step (`_Tap`); the read loop sees only what is no message.
  A task exists only while a handler's coroutine runs. A sleeping agent's subscription is one small object.
- **Sending.** nats-py wakes a flusher task through a queue for each publish. Here the commands of one loop iteration are
  written together by one `call_soon`; while they are few, each is written at once, so that its reader has it sooner.
- **Ending.** nats-py sends what was pending at a disconnect after the reconnect, waits for a dead peer to take the last bytes,
  and goes deaf after an unexpected error. Here a dead socket is aborted, and nothing pending outlives its connection.

All hook into methods of `nats.aio.client.Client` whose shape the pinned version fixes (`nats-py==2.16.*`) and tests/mesh/edge
hold.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any

import nats.aio.client
import nats.errors
from nats.aio.client import DEFAULT_BUFFER_SIZE
from nats.aio.transport import TcpTransport

from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.first_connection import Attempt
from agentmesh.edge.frames import NO_HEADERS, parse_headers, take_messages
from agentmesh.edge.login import Credentials
from agentmesh.edge.refusals import NOBODY, tls_failed
from agentmesh.edge.transport import Disconnected, Message

log = logging.getLogger("agentmesh.edge")

HIGH_WATER = 1 << 20
"""Unsent bytes beyond which the next publisher waits for the socket."""
ROOM = 8 << 20
"""Unsent bytes beyond which messages that may be lost are dropped: what is behind them must not wait long, and memory has a
bound."""

FEW = 4
"""Commands of one loop iteration that are written one by one."""

_CONNECTED = nats.aio.client.Client.CONNECTED
_PING = b"PING\r\n"
_UNKNOWN = -1


class _Tap(asyncio.Protocol):
    """Stands between the socket and nats-py's stream reader: delivers whole messages, and passes on everything else.

    So messages may overtake the commands between them (PING, PONG, INFO, errors), but never one another, and no command
    overtakes a message. Malformed bytes are passed on too: nats-py ends the connection for them.
    """

    def __init__(
        self,
        stream: Any,
        deliver: Callable[[int, bytes, bytes, bytes, bytes], None],
        reading: Callable[[bool], None] = lambda begins: None,
        refused: Callable[[str], None] = lambda line: None,
        holding: Callable[[bool], None] = lambda begins: None,
    ) -> None:
        """`reading` is told when the messages of one read begin to be delivered, and when they have been; `refused` gets each
        error line of the server, as it is (nats-py knows them in lower case only); `holding` is told when the socket leaves
        bytes unsent, and when it has taken them."""
        self._reading = reading
        self._refused = refused
        self._holding = holding
        self._stream = stream
        self._inner = stream.get_protocol()
        self._deliver = deliver
        self._rest = bytearray()
        self._needed = 0
        """Bytes that `_rest` must have before it is parsed again: a large message comes in many pieces."""

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        self._reading(True)
        try:
            position, self._needed, commands = take_messages(data, self._deliver)
        except Exception:  # the messages of this read are lost: only a new connection reports the gap
            log.exception("a message could not be delivered")
            self._stream.abort()
            return
        finally:
            self._reading(False)
        if commands:
            if b"-ERR" in commands:
                for line in commands.decode("utf-8", "replace").split("\r\n"):
                    if line.startswith("-ERR"):
                        self._refused(line)
            self._inner.data_received(commands)
        if position < len(data):
            self._rest += data[position:]

    def eof_received(self) -> bool | None:
        answer: bool | None = self._inner.eof_received()
        return answer

    def connection_lost(self, error: Exception | None) -> None:
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._holding(True)
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._holding(False)
        self._inner.resume_writing()


class _Tcp(TcpTransport):
    """nats-py's transport, whose stream protocol believes after an upgrade to TLS that it is a plain one: at the end of the
    stream it asks for a connection that stays open half, which asyncio refuses with a warning each time."""

    async def connect_tls(self, *arguments: Any, **named: Any) -> None:
        await super().connect_tls(*arguments, **named)
        protocol: Any = self._io_writer.transport.get_protocol()  # type: ignore[union-attr]
        protocol._over_ssl = True


class Client(nats.aio.client.Client):
    """nats-py's client with direct delivery and direct sending; see the module's docstring."""

    _transport: Any  # nats-py's TcpTransport, or None before the first connection
    _subs: Any  # dict[int, LiveSubscription]

    def __init__(
        self,
        on_down: Callable[[], None],
        on_closed: Callable[[], None],
        on_read: Callable[[], None],
        on_refused: Callable[[str], None],
        on_failed: Callable[[Attempt], None],
        *,
        credentials: Credentials,
    ) -> None:
        """`on_refused` gets error lines of the server, `on_failed` each attempt to connect that has failed."""
        super().__init__()
        self._credentials = credentials
        self._on_read = on_read
        self._on_refused = on_refused
        self._on_failed = on_failed
        self.reading = False
        """Whether the messages of one read are being delivered."""
        self._on_down = on_down
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._stream: Any = None
        """The connected socket's own transport, TLS included."""
        self._flush_due = False
        self._sent = 0
        """Commands sent in this loop iteration for a caller that waits."""
        self._calm = True
        """Whether the last iteration that sent anything sent few commands: gathering them would save nothing."""
        self._crowded = False
        """More than `HIGH_WATER` was sent in this loop iteration: a publisher in a tight loop lets nothing else run."""
        self._holding = False
        """Whether the socket has not taken all that was written to it."""
        self._unsent = _UNKNOWN
        """What it has not taken, in bytes, as far as that was looked at in this loop iteration."""

    @property
    def up(self) -> bool:
        return self._status == _CONNECTED

    @property
    def congested(self) -> bool:
        """Whether who can wait should wait (`uncongested`) before the next message."""
        return self._crowded or (self._holding and self._behind() > HIGH_WATER)

    @property
    def full(self) -> bool:
        """Whether so much is unsent that what may be lost is dropped. What was queued in one loop iteration is no reason: the
        socket may be empty."""
        return self._holding and self._behind() > ROOM

    def _behind(self) -> int:
        """Bytes that the socket has not taken yet. It is asked once in a loop iteration: asyncio counts them one by one."""
        if self._unsent == _UNKNOWN:
            self._unsent = self._stream.get_write_buffer_size()
            if not self._flush_due:
                self._schedule_flush()
        return self._unsent + self._pending_data_size

    def _hold(self, begins: bool) -> None:
        self._holding, self._unsent = begins, _UNKNOWN

    def send(self, frame: bytes) -> None:
        """Send `frame`: at once, or together with the other commands of this loop iteration."""
        if not self._flush_due:
            self._schedule_flush()
        self._sent += 1
        if self._calm and self._sent <= FEW and not self._pending and not self._holding and self._status == _CONNECTED:
            self._stream.write(frame)
            return
        self._queue(frame)

    def send_along(self, frame: bytes) -> None:
        """Send `frame` together with the other commands of this loop iteration: nobody waits for it."""
        if not self._flush_due:
            self._schedule_flush()
        self._queue(frame)

    def _schedule_flush(self) -> None:
        self._flush_due = True
        self._sent = 0
        self._loop.call_soon(self._flush)

    def _queue(self, frame: bytes) -> None:
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        if self._pending_data_size > HIGH_WATER:
            self.flush_now()
            self._crowded = True

    def _flush(self) -> None:
        self._flush_due = False
        if self._sent:
            self._calm = self._sent <= FEW
        self.flush_now()
        self._crowded, self._unsent = False, _UNKNOWN

    def flush_now(self) -> None:
        """Write what is queued."""
        pending = self._pending
        if not pending or not self.up:
            return
        self._stream.write(pending[0] if len(pending) == 1 else b"".join(pending))
        if self._unsent != _UNKNOWN:
            self._unsent += self._pending_data_size
        self._pending = []
        self._pending_data_size = 0

    async def uncongested(self) -> None:
        """Let the loop run, and wait until the socket takes bytes again."""
        await asyncio.sleep(0)
        try:
            await self._transport.drain()
        except OSError:
            raise Disconnected from None

    def ping(self, answered: Callable[[object], None]) -> None:
        """Send a PING behind everything queued. `answered` is called at its PONG."""
        self.flush_now()
        # A future that nobody else can cancel: nats-py sets its result without checking, which raises on a cancelled future.
        pong = self._loop.create_future()
        pong.add_done_callback(answered)
        self._pongs.append(pong)
        self._stream.write(_PING)

    def take(self, sid: int, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        """Hand a message to its subscription."""
        subscription = self._subs.get(sid)
        if subscription is None:
            return
        # Not UTF-8 is legal on the wire; an exception here would end the connection.
        to = str(subject, "utf-8", "replace")
        answer_to = str(reply, "utf-8", "replace") if reply else ""
        if headers:
            status, fields = parse_headers(headers)
            subscription.deliver(Message(to, data, fields, answer_to, status))
        else:
            subscription.deliver(Message(to, data, NO_HEADERS, answer_to))

    def _read(self, begins: bool) -> None:
        self.reading = begins
        if not begins:
            self._on_read()

    @property
    def user(self) -> str:
        """Who this connection is to its server, in words."""
        return self._credentials.words(self._current_server.uri) if self._current_server is not None else NOBODY

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except Exception as error:
            self._failed(self._current_server, opened=True, error=error)
            raise
        # The handshake (and TLS, which changes the transport) is over: from here on messages can come.
        stream = self._stream = self._transport._io_writer.transport
        reader: Any = self._transport._io_reader
        tap = _Tap(stream, self.take, self._read, self._on_refused, self._hold)
        stream.set_protocol(tap)
        early = bytes(reader._buffer)
        reader._buffer.clear()
        if early:
            tap.data_received(early)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        uri: Any = self._current_server.uri  # type: ignore[union-attr]  # there is one: it has sent this
        secure = uri.scheme == "tls" or self._credentials.login.wants_tls
        if initial_connection and secure and not info.get("tls_required"):
            # nats-py goes on without TLS, and sends the password in the clear.
            if not info.get("tls_available"):
                raise tls_failed(f"{uri.hostname}:{uri.port}", None)
            info = {**info, "tls_required": True}
        await super()._process_info(info, initial_connection)
        # Servers come and go and limits change while connected; nats-py keeps what it was told first.
        self._server_info = {**self._server_info, **info}
        self._max_payload = self._server_info.get("max_payload", self._max_payload)

    @property
    def ssl_context(self) -> ssl.SSLContext:
        # Its base class keeps the one that it was given first.
        return self._credentials.tls or super().ssl_context

    def _connect_command(self) -> bytes:
        # nats-py sends what stands in a URL as it is, escapes and all, and nothing to a server that others have named.
        user, password, token = self._credentials.plain(self._current_server.uri)  # type: ignore[union-attr]
        self.options.update(user=user, password=password, token=token)
        self._auth_configured = self._auth_configured or self._credentials.known
        self._public_nkey = self._credentials.public
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        if "permissions violation" not in err_msg:  # of those `on_refused` has heard, by their subjects as they are
            await super()._process_err(err_msg)

    async def _process_op_err(self, e: Exception) -> None:
        if not (self.is_closed or self.is_reconnecting):
            self._go_down()
        await super()._process_op_err(e)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        was_closed = self.is_closed
        self._go_down()
        try:
            await super()._close(status, do_cbs=False)
        except Exception:  # the connection must be opened again whatever went wrong
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
        s.last_attempt = SYSTEM.monotonic()  # as its base class counts
        if self._credentials.reads_files:
            await asyncio.to_thread(self._credentials.refresh)
        self._transport = _Tcp()  # type: ignore[no-untyped-call]
        try:
            await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, self.options["connect_timeout"])
        except Exception as error:
            self._failed(s, opened=False, error=error)
            raise

    def _failed(self, server: Any, *, opened: bool, error: Exception) -> None:
        uri = server.uri
        self._on_failed(Attempt(f"{uri.hostname}:{uri.port}", self._credentials.words(uri), opened, error))

    def _go_down(self) -> None:
        self._abort()
        self._on_down()

    def _abort(self) -> None:
        # Nothing pending may go out after a reconnect (its sender has been told that it failed), and closing must not
        # wait for a peer that takes no bytes. Subscriptions are replayed from `_subs`.
        self._pending = []
        self._pending_data_size = 0
        self._crowded = False
        self._hold(False)
        writer = self._transport._io_writer if self._transport is not None else None
        if writer is not None:
            writer.transport.abort()
