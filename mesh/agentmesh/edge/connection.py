"""The `Transport` over nats-py: subscriptions, requests, and a connection that is there again whatever happens.

Also replaced: nats-py leaves a request that is in flight at a disconnect to its time-out, and closes for good on a protocol
error. Here such a request fails at once, nothing is sent late, and a closed connection is opened again. What is replaced
within nats-py's own client is in `agentmesh.edge.nats_client` (docs/nats.md#what-nats-py-does-differently).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from agentmesh.edge.address import API, checked_urls, shown_urls, without_credentials
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.first_connection import (
    Attempt,
    FirstConnection,
    no_server,
    reason_of,
    still_waiting,
)
from agentmesh.edge.frames import NO_HEADERS, check_pattern, publish_frame, publish_head
from agentmesh.edge.login import NO_LOGIN, Credentials, Login
from agentmesh.edge.mesh_domain import DomainLearner, reached_by
from agentmesh.edge.nats_client import Client
from agentmesh.edge.pending_requests import PendingRequests
from agentmesh.edge.permissions import Permissions
from agentmesh.edge.refused import Refusals
from agentmesh.edge.subscription import CLOSE_TIMEOUT_S, LiveSubscription
from agentmesh.edge.tasks import cancel_and_wait
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
from agentmesh.errors import MeshError, NotPermitted, TooLarge

log = logging.getLogger("agentmesh.edge")

PING_INTERVAL_S = 5
MAX_OUTSTANDING_PINGS = 2
RECONNECT_WAIT_S = 0.25
ATTEMPT_TIMEOUT_S = 2.0
DEFAULT_PORT = 4222
MAX_HEADS = 16_384
"""Most subjects for which the encoded beginning of a PUB command is kept."""


async def connect(
    servers: str | Sequence[str],
    *,
    name: str,
    connect_timeout: float = 5.0,
    silent_timeout: float | None = None,
    wait_s: float | None = None,
    api: str = API,
    mesh: str | None = None,
    login: Login = NO_LOGIN,
    heeds: bool = False,
) -> NatsTransport:
    """Connect, and stay connected: whatever happens later, the transport reconnects by itself for ever.

    What cannot change by waiting ends it at once: wrong credentials, wrong TLS (`agentmesh.edge.first_connection`).

    Args:
        servers: URLs (`nats://` or `tls://`, user and password or a token may be in them), as a list or joined by commas.
        name: shown in the server's connection list.
        connect_timeout: seconds until the first connection must stand.
        silent_timeout: the same for a server that accepts the connection and says nothing (it hangs, or is overloaded); never
            less than `connect_timeout`.
        wait_s: seconds to keep trying while there is no server at any of the addresses (`connect_timeout` by default; 0 ends at
            once, `math.inf` never).
        api: where the mesh's JetStream answers (`address.js_api`): `$JS.API` and what is behind it is sent there.
        mesh: a stream of the mesh that this connection is for, whose answers tell its domain.
        login: who connects, and whom it believes; without it the URLs and the system say so.
        heeds: ask the server what a user with a login may do, and refuse at once what it would refuse (`NatsTransport.access`).

    Raises:
        BadRequest: no usable URL, or a file of `login` cannot be read.
        NotPermitted: the server refuses the credentials.
        TlsFailed: TLS cannot be made with it.
        Unavailable: no server could be reached in time.
    """
    urls = checked_urls(servers)
    credentials = await asyncio.to_thread(Credentials, login, urls)  # it reads files
    transport = NatsTransport(urls, name, api=api, mesh=mesh, credentials=credentials)
    if heeds and credentials.identifies:
        transport.heed()
    clock = asyncio.get_running_loop().time
    began, wait_s = clock(), connect_timeout if wait_s is None else wait_s
    first = FirstConnection({_address(url): without_credentials(url) for url in urls}, wait_s)
    verdict: MeshError | None = None
    patience_s = max(connect_timeout, wait_s)
    told = False
    try:
        async with asyncio.timeout(None if wait_s == math.inf else patience_s) as limit:
            if silent_timeout is not None and silent_timeout > patience_s:
                transport.on_silence = lambda: limit.reschedule(began + silent_timeout)

            def failed(attempt: Attempt) -> None:
                nonlocal verdict, told
                verdict = verdict or first.failed(attempt, clock() - began)
                if verdict is not None:
                    limit.reschedule(clock())
                elif not told and not transport._closing:
                    told = True
                    log.warning("%s", still_waiting(attempt, wait_s, patience_s))

            transport.on_failed = failed
            await transport._open()
        transport.on_silence = lambda: None
        transport.on_failed = transport._refused.rejected_again
        transport._live = True
        transport._learner.learn()
    except TimeoutError:
        await transport.close()
        wants_first = (login.wants_tls or any(url.startswith("tls:") for url in urls)) and not login.tls_first
        hint = ", unless it waits for TLS to be made first (--tls-first)" if transport.silent and wants_first else ""
        raise verdict or no_server([shown_urls(urls)], transport.last_error + hint) from None
    except BaseException:
        await transport.close()
        raise
    return transport


def _address(url: str) -> str:
    """`host:port` of a checked URL."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return f"{parts.hostname}:{parts.port or DEFAULT_PORT}"


class NatsTransport:
    """A connection to NATS. Make one with `connect`."""

    def __init__(
        self,
        urls: list[str],
        name: str,
        *,
        api: str = API,
        mesh: str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.urls = urls
        self._credentials = credentials or Credentials(NO_LOGIN, urls)
        self._inbox_prefix = self._credentials.inbox_prefix()
        self.domain: str | None = None
        """See `Transport.domain`."""
        self.access: Permissions | None = None
        """What this user may do, where requests are to be refused here that the server would refuse."""
        self._api = None if api == API else api
        self._learner = DomainLearner(mesh, self.call, self._on_domain)
        self.last_error = "no attempt was made"
        self.silent = False
        """Whether a server has accepted the connection and said nothing until the attempt, or the server, ended it."""
        self.on_silence: Callable[[], None] = lambda: None
        """Called while connecting, when a server accepts the connection and does not answer."""
        self.on_failed: Callable[[Attempt], None] = lambda attempt: None
        """Called for each attempt to connect that has failed."""
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._subscriptions: dict[int, LiveSubscription] = {}
        self._sids = itertools.count(1)
        self._pending = PendingRequests(self._loop)
        self.dropped = 0
        """See `Transport.dropped`."""
        self._heads: dict[str, bytes] = {}
        """Encoded PUB heads of recently used subjects."""
        self._gap_callbacks: dict[object, Callable[[], None]] = {}
        self._read_callbacks: list[Callable[[], None]] = []
        self._tokens = itertools.count()
        self._inbox = f"{self.new_inbox()}."
        self._refused = Refusals(name, f"{self._inbox}*", self._pending)
        self._live = False
        """Connected, and every gap callback has been told of what may have been missed."""
        self._closing = False
        self._reopening: asyncio.Task[None] | None = None
        self._client = self._new_client()
        self._add(f"{self._inbox}*", "", self._pending.answer)

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
    def reading(self) -> bool:
        """See `Transport.reading`."""
        return self._client.reading

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Transport.on_read`."""
        self._read_callbacks = [*self._read_callbacks, callback]
        return lambda: self._read_callbacks.remove(callback)

    @property
    def server_version(self) -> tuple[int, int, int]:
        """Version of the connected server (of the last one, while disconnected)."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def server_name(self) -> str:
        """What the connected server calls itself."""
        return str(self._client._server_info.get("server_name", ""))

    @property
    def credentials(self) -> Credentials:
        """What this connection shows to its servers."""
        return self._credentials

    @property
    def clustered(self) -> bool:
        """Whether the connected server belongs to a cluster, of whatever size."""
        return bool(self._client._server_info.get("cluster"))

    def new_inbox(self) -> str:
        """A subject that nobody else uses, below the inbox prefix of this user."""
        return f"{self._inbox_prefix}.{SYSTEM.token(11)}"

    def heed(self) -> None:
        """From now on refuse requests at once that the server would refuse."""
        self.access = Permissions(self, lambda: self._client.user, self._learner.learn)

    # --- sending ----------------------------------------------------------------------------------------------
    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        """See `Transport.publish`."""
        client = self._client
        if not self._live:
            raise Disconnected
        there = subject if self._api is None else reached_by(self._api, subject)
        frame = publish_frame(there, data, headers, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        client.send(frame)

    def send(self, subject: str, data: bytes = b"") -> bool:
        """See `Transport.send`."""
        client = self._client
        if not self._live or client.congested:
            return False
        client.send(publish_frame(subject, data, None, "", client._max_payload))
        return True

    def post(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, though_full: bool = False) -> None:
        """See `Transport.post`."""
        if not headers:
            self.post_all(((subject, data),), though_full=though_full)
            return
        client = self._client
        if not client.up or (client.full and not though_full):
            self.dropped += 1
            return
        try:
            frame = publish_frame(subject, data, headers, "", client._max_payload)
        except TooLarge:
            self.dropped += 1
        else:
            client.send_along(frame)

    def post_all(self, messages: Iterable[tuple[str, bytes]], *, though_full: bool = False) -> None:
        """See `Transport.post_all`."""
        client = self._client
        if not client.up or (client.full and not though_full):
            self.dropped += sum(1 for _ in messages)
            return
        limit, heads, frames = client._max_payload, self._heads, []
        for subject, data in messages:
            if len(data) <= limit:
                frames.append(b"%b%d\r\n%b\r\n" % (heads.get(subject) or self._head(subject), len(data), data))
            else:
                self.dropped += 1
        if frames:
            client.send_along(b"".join(frames))

    def _head(self, subject: str) -> bytes:
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        head = self._heads[subject] = publish_head(subject)
        return head

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        """See `Transport.request`."""
        if self.access is not None:
            await self.access.check(subject if self._api is None else reached_by(self._api, subject))
        client = self._client
        if not self._live:
            raise Disconnected
        reply = f"{self._inbox}{next(self._tokens)}"
        there = subject if self._api is None else reached_by(self._api, subject)
        frame = publish_frame(there, data, headers, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        if self._refused.deaf is not None:
            raise self._refused.deaf
        pending = self._pending
        future = pending.wait(reply, timeout, there)
        client.send(frame)
        try:
            message = await future
        finally:
            del pending.waiting[reply]
        if message.status == "503" and not message.data:
            raise NoResponders(there)
        return message

    def call(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float, answered: Answered
    ) -> bool:
        """See `Transport.call`."""
        client = self._client
        if not self._live or client.congested:
            return False
        reply = f"{self._inbox}{next(self._tokens)}"
        there = subject if self._api is None else reached_by(self._api, subject)
        if self.access is not None and not self.access.permits(there):
            return False  # `request` finds out, or says so
        frame = publish_frame(there, data, headers, reply, client._max_payload)
        if self._refused.deaf is not None:
            return False
        self._pending.call(reply, answered, timeout, there)
        client.send(frame)
        return True

    async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
        """See `Transport.request_many`."""
        if self.access is not None:
            await self.access.check(subject if self._api is None else reached_by(self._api, subject))
        client = self._client
        if not self._live:
            raise Disconnected
        reply = f"{self._inbox}{next(self._tokens)}"
        there = subject if self._api is None else reached_by(self._api, subject)
        frame = publish_frame(there, data, None, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        if self._refused.deaf is not None:
            raise self._refused.deaf
        gathering = self._pending.gather(reply, there)
        client.send(frame)
        try:
            while not gathering.done.done():
                silent_since = gathering.touched
                await asyncio.wait((gathering.done,), timeout=silent_since + timeout - self._loop.time())
                if gathering.touched == silent_since and not gathering.done.done():
                    raise RequestTimeout(subject)
            gathering.done.result()
        finally:
            del self._pending.gathering[reply]
        if len(gathering.messages) == 1 and gathering.messages[0].status == "503":
            raise NoResponders(there)
        return gathering.messages

    async def flush(self, timeout: float = 5.0) -> None:
        """See `Transport.flush`."""
        client = self._client
        if not self._live:
            raise Disconnected
        key = f"pong {next(self._tokens)}"
        future = self._pending.wait(key, timeout, "")

        def answered(_: object) -> None:
            if not future.done():
                future.set_result(Message("", b"", NO_HEADERS))

        client.ping(answered)
        try:
            await future
        finally:
            del self._pending.waiting[key]

    def _on_domain(self, domain: str | None) -> None:
        self.domain = domain

    async def _uncongested(self, client: Client) -> None:
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
        """Have the server send nothing more to the subscription `sid`. What it has sent already arrives before this returns."""
        if sid in self._subscriptions and self._client.up:
            self._client.send(f"UNSUB {sid}\r\n".encode())
            with contextlib.suppress(RequestTimeout, Disconnected):
                await self.flush(CLOSE_TIMEOUT_S)

    def on_gap(self, callback: Callable[[], None]) -> Callable[[], None]:
        """See `Transport.on_gap`."""
        key = object()
        self._gap_callbacks[key] = callback

        def remove() -> None:
            self._gap_callbacks.pop(key, None)

        return remove

    def gap(self) -> None:
        """Call every gap callback: messages may have been missed."""
        for callback in list(self._gap_callbacks.values()):
            try:
                callback()
            except Exception:
                log.exception("a gap callback failed")

    # --- what the server refuses --------------------------------------------------------------------------------
    @property
    def refusal(self) -> NotPermitted | None:
        """See `Transport.refusal`."""
        return self._refused.first

    def on_refused(self, callback: Callable[[NotPermitted], None], *, tells: bool = True) -> Callable[[], None]:
        """See `Transport.on_refused`."""
        return self._refused.on_refused(callback, tells)

    def _on_error_line(self, line: str) -> None:
        if not self._refused.hear(line, self._client.user):
            self.last_error = line.partition(" ")[2].strip(" '\r\n")

    def _on_failed(self, attempt: Attempt) -> None:
        if attempt.opened and (isinstance(attempt.error, TimeoutError) or "empty response" in str(attempt.error)):
            self.silent = True
        self.on_failed(attempt)

    # --- life -------------------------------------------------------------------------------------------------
    def _new_client(self) -> Client:
        return Client(
            self._on_down, self._on_closed, self._on_read, self._on_error_line, self._on_failed, credentials=self._credentials
        )

    def _on_read(self) -> None:
        for callback in self._read_callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback at the end of a read failed")

    async def _open(self) -> None:
        """Connect the client, trying for ever, and announce the subscriptions."""
        client, signed = self._client, self._credentials
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
            tls_handshake_first=signed.login.tls_first,
            signature_cb=signed.signature if signed.signs else None,
            user_jwt_cb=signed.jwt if signed.login.creds else None,
        )
        client._subs.update(self._subscriptions)
        for subscription in self._subscriptions.values():
            client.send(subscription.frame)
        client.flush_now()

    def _on_down(self) -> None:
        """The connection is gone: requests in flight fail now, not at their time-outs."""
        if self._live and not self._closing:
            log.warning("the connection to NATS is lost", extra={"connection": self._name})
        self._live = False
        if self.access is not None:
            self.access.forget()
        self._refused.disconnected()
        self._pending.disconnect()

    async def _on_error(self, error: Exception) -> None:
        self.last_error = reason_of(error)
        if isinstance(error, TimeoutError):
            self.on_silence()
        level = logging.WARNING if self.connected else logging.DEBUG
        log.log(level, "an error of the connection to NATS: %s", self.last_error, extra={"connection": self._name})

    async def _on_reconnected(self) -> None:
        log.info("the connection to NATS is there again", extra={"connection": self._name})
        # No await between the two: nobody finds the connection up without having heard of the gap.
        self._live = True
        self._refused.restored()
        self._learner.learn()
        self.gap()

    def _on_closed(self) -> None:
        if not self._closing:
            log.error(
                "the server closed the connection (%s); opening it again", self.last_error, extra={"connection": self._name}
            )
            self._reopening = self._loop.create_task(self._reopen())

    async def _reopen(self) -> None:
        while True:
            await asyncio.sleep(RECONNECT_WAIT_S)
            self._client = self._new_client()
            try:
                await self._open()
            except Exception:
                log.exception("opening the connection again failed; trying again", extra={"connection": self._name})
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
        self._learner.close()
        self._pending.close()
        await cancel_and_wait(self._reopening, within_s=CLOSE_TIMEOUT_S)
        await self._client.close()
        for subscription in list(self._subscriptions.values()):
            await subscription.stop()
        self._subscriptions.clear()
