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
from typing import Any
from urllib.parse import urlsplit

from agentmesh.edge.address import API, checked_urls, shown_urls, without_credentials
from agentmesh.edge.api import domain_of
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.first_connection import AddressAnswer, Attempt, FirstConnection, answer_of, no_server, reason_of
from agentmesh.edge.frames import NO_HEADERS, check_pattern, publish_frame, publish_head
from agentmesh.edge.nats_client import Client
from agentmesh.edge.refusals import bad_credentials, forbidden, violation
from agentmesh.edge.subscription import CLOSE_TIMEOUT_S, Gathering, LiveSubscription
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
from agentmesh.errors import MeshError, NotPermitted

log = logging.getLogger("agentmesh.edge")

PING_INTERVAL_S = 5
MAX_OUTSTANDING_PINGS = 2
RECONNECT_WAIT_S = 0.25
ATTEMPT_TIMEOUT_S = 2.0
DEFAULT_PORT = 4222
MAX_HEADS = 16_384
"""Most subjects for which the encoded beginning of a PUB command is kept."""
LEARN_S = 5.0
"""Wait for the mesh's domain."""
LOOK_S = 0.25
"""How often time-outs are checked: one timer for all requests is cheaper than one for each."""


async def connect(
    servers: str | Sequence[str],
    *,
    name: str,
    connect_timeout: float = 5.0,
    silent_timeout: float | None = None,
    wait_s: float | None = None,
    api: str = API,
    mesh: str | None = None,
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

    Raises:
        BadRequest: no usable URL.
        NotPermitted: the server refuses the credentials.
        TlsFailed: TLS cannot be made with it.
        Unavailable: no server could be reached in time.
    """
    urls = checked_urls(servers)
    transport = NatsTransport(urls, name, api=api, mesh=mesh)
    clock = asyncio.get_running_loop().time
    began, wait_s = clock(), connect_timeout if wait_s is None else wait_s
    first = FirstConnection({_address(url): without_credentials(url) for url in urls}, wait_s)
    verdict: MeshError | None = None
    try:
        async with asyncio.timeout(None if wait_s == math.inf else max(connect_timeout, wait_s)) as limit:
            if silent_timeout is not None and silent_timeout > max(connect_timeout, wait_s):
                transport.on_silence = lambda: limit.reschedule(began + silent_timeout)

            def failed(attempt: Attempt) -> None:
                nonlocal verdict
                verdict = verdict or first.failed(attempt, clock() - began)
                if verdict is not None:
                    limit.reschedule(clock())

            transport.on_failed = failed
            await transport._open()
        transport.on_silence = lambda: None
        transport.on_failed = transport.rejected_again
        transport._live = True
        transport._learn_domain()
    except TimeoutError:
        await transport.close()
        raise verdict or no_server([shown_urls(urls)], transport.last_error) from None
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

    def __init__(self, urls: list[str], name: str, *, api: str = API, mesh: str | None = None) -> None:
        self.urls = urls
        self.domain: str | None = None
        """See `Transport.domain`."""
        self._api = None if api == API else api
        self._mesh = mesh
        self._learning = False
        """It has been asked for the domain, and there was no answer yet."""
        self._learn_timer: asyncio.TimerHandle | None = None
        self.last_error = "no attempt was made"
        self.on_silence: Callable[[], None] = lambda: None
        """Called while connecting, when a server accepts the connection and does not answer."""
        self.on_failed: Callable[[Attempt], None] = lambda attempt: None
        """Called for each attempt to connect that has failed."""
        self._refused: dict[str, NotPermitted] = {}
        """Subscriptions that the server refuses, by subject; under the empty one the credentials."""
        self._refused_callbacks: list[Callable[[NotPermitted], None]] = []
        self._deaf: NotPermitted | None = None
        """Set when no reply can be heard: the inbox is refused."""
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._subscriptions: dict[int, LiveSubscription] = {}
        self._sids = itertools.count(1)
        self._waiting: dict[str, tuple[asyncio.Future[Message], float, str]] = {}
        """Requests that are waited for, by reply subject: the future, its deadline on the loop's clock, the subject asked."""
        self._called: dict[str, tuple[Answered, float, str]] = {}
        """Requests of `call`, by reply subject: the callback, its deadline, the subject asked."""
        self._timeout_timer: asyncio.TimerHandle | None = None
        self._heads: dict[str, bytes] = {}
        """Encoded PUB heads of recently used subjects."""
        self._gathering: dict[str, Gathering] = {}
        self._gap_callbacks: dict[object, Callable[[], None]] = {}
        self._read_callbacks: list[Callable[[], None]] = []
        self._tokens = itertools.count()
        self._inbox = f"{self.new_inbox()}."
        self._live = False
        """Connected, and every gap callback has been told of what may have been missed."""
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
    def clustered(self) -> bool:
        """Whether the connected server belongs to a cluster, of whatever size."""
        return bool(self._client._server_info.get("cluster"))

    def new_inbox(self) -> str:
        """A subject that nobody else uses."""
        return f"_INBOX.{SYSTEM.token(11)}"

    # --- sending ----------------------------------------------------------------------------------------------
    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        """See `Transport.publish`."""
        client = self._client
        if not self._live:
            raise Disconnected
        frame = publish_frame(self._there(subject), data, headers, reply, client._max_payload)
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

    def post(self, subject: str, data: bytes = b"") -> None:
        """See `Transport.post`."""
        self.post_all(((subject, data),))

    def post_all(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """See `Transport.post_all`."""
        client = self._client
        if not client.up or client.congested:
            return
        limit, heads, frames = client._max_payload, self._heads, []
        for subject, data in messages:
            if len(data) <= limit:
                frames.append(b"%b%d\r\n%b\r\n" % (heads.get(subject) or self._head(subject), len(data), data))
        if frames:
            client.send_along(b"".join(frames))

    def _head(self, subject: str) -> bytes:
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        head = self._heads[subject] = publish_head(subject)
        return head

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        """See `Transport.request`."""
        client = self._client
        if not self._live:
            raise Disconnected
        reply = f"{self._inbox}{next(self._tokens)}"
        there = self._there(subject)
        frame = publish_frame(there, data, headers, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        if self._deaf is not None:
            raise self._deaf
        future = self._wait(reply, timeout, there)
        client.send(frame)
        try:
            message = await future
        finally:
            del self._waiting[reply]
        if message.status == "503" and not message.data:
            raise NoResponders(subject)
        return message

    def call(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float, answered: Answered
    ) -> bool:
        """See `Transport.call`."""
        client = self._client
        if not self._live or client.congested:
            return False
        reply = f"{self._inbox}{next(self._tokens)}"
        there = self._there(subject)
        frame = publish_frame(there, data, headers, reply, client._max_payload)
        if self._deaf is not None:
            return False
        self._called[reply] = answered, self._loop.time() + timeout, there
        if self._timeout_timer is None:
            self._timeout_timer = self._loop.call_later(LOOK_S, self._check_timeouts)
        client.send(frame)
        return True

    async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
        """See `Transport.request_many`."""
        client = self._client
        if not self._live:
            raise Disconnected
        reply = f"{self._inbox}{next(self._tokens)}"
        there = self._there(subject)
        frame = publish_frame(there, data, None, reply, client._max_payload)
        if client.congested:
            await self._uncongested(client)
        if self._deaf is not None:
            raise self._deaf
        gathering = Gathering(self._loop.create_future(), self._loop.time(), there)
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
        future = self._wait(key, timeout, "")

        def answered(_: object) -> None:
            if not future.done():
                future.set_result(Message("", b"", NO_HEADERS))

        client.ping(answered)
        try:
            await future
        finally:
            del self._waiting[key]

    def _there(self, subject: str) -> str:
        """Where `subject` is to be sent, if the mesh is in another domain than the server: a leaf node lets neither the API nor
        the registry's subjects through (docs/nats.md#leaf-nodes)."""
        if self._api is None or subject[:1] != "$":
            return subject
        if subject.startswith(f"{API}."):
            return self._api + subject[len(API) :]
        return f"{self._api}.{subject}" if subject.startswith("$KV.") else subject

    # --- the mesh's domain ----------------------------------------------------------------------------------------
    def _learn_domain(self) -> None:
        """Ask the mesh's own streams for their domain, at connect and after each reconnect: it may have been added meanwhile."""
        if self._mesh is not None:
            self._learning = self.call(f"{API}.STREAM.INFO.{self._mesh}", timeout=LEARN_S, answered=self._on_domain)

    def _on_domain(self, answer: Message | Exception) -> None:
        self._learning = False
        if isinstance(answer, Message):
            with contextlib.suppress(ValueError):
                self.domain = domain_of(answer.data)
                return
        if self._mesh is None or isinstance(answer, NotPermitted):
            return  # a user who may not ask does not know the domain; the next connection asks again
        # An election, or streams that are yet to be made. What was known stays so until there is an answer.
        if self._learn_timer is not None:
            self._learn_timer.cancel()
        self._learn_timer = self._loop.call_later(LEARN_S, self._learn_again)

    def _learn_again(self) -> None:
        self._learn_timer = None
        if self._live and not self._learning:
            self._learn_domain()

    def _wait(self, key: str, timeout: float, subject: str) -> asyncio.Future[Message]:
        """A future of the message that arrives for `_waiting[key]`; it raises `RequestTimeout` after `timeout` seconds."""
        future: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[key] = (future, self._loop.time() + timeout, subject)
        if timeout < 4 * LOOK_S:
            self._loop.call_later(timeout, _expire, future)
        elif self._timeout_timer is None:
            self._timeout_timer = self._loop.call_later(LOOK_S, self._check_timeouts)
        return future

    def _check_timeouts(self) -> None:
        """Fail the requests whose time is over."""
        now = self._loop.time()
        for future, deadline, _ in self._waiting.values():
            if deadline <= now:
                _expire(future)
        self._timeout_timer = None
        for reply in [reply for reply, (_, deadline, _) in self._called.items() if deadline <= now]:
            self._answer_call(reply, RequestTimeout())
        if self._timeout_timer is None and (self._waiting or self._called):
            self._timeout_timer = self._loop.call_later(LOOK_S, self._check_timeouts)

    def _answer_call(self, reply: str, outcome: Message | Exception) -> None:
        """Give the outcome of a `call` to its callback."""
        if (called := self._called.pop(reply, None)) is None:
            return
        try:
            called[0](outcome)
        except Exception:
            log.exception("the callback of a request failed")

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

    def _on_reply(self, message: Message) -> None:
        if (called := self._called.pop(message.subject, None)) is not None:
            called[0](message if message.status != "503" or message.data else NoResponders())
            return
        waiting = self._waiting.get(message.subject)
        if waiting is not None:
            if not waiting[0].done():
                waiting[0].set_result(message)
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
        return next(iter(self._refused.values()), None)

    def on_refused(self, callback: Callable[[NotPermitted], None]) -> Callable[[], None]:
        """See `Transport.on_refused`."""
        self._refused_callbacks = [*self._refused_callbacks, callback]
        return lambda: self._refused_callbacks.remove(callback)

    def _on_error_line(self, line: str) -> None:
        """The server has sent an error: fail what waits for what it forbids."""
        refused = violation(line)
        if refused is None:
            self.last_error = line.partition(" ")[2].strip(" '\r\n")
            return
        error = forbidden(refused, self._client.user)
        if refused.act == "publish":
            if not self._fail(error, refused.subject):
                log.warning("a message was not sent: %s", error.message, extra={"connection": self._name})
            return
        if refused.subject == f"{self._inbox}*":
            self._deaf = error
            self._fail(error, None)
        self._refuse(refused.subject, error)

    def _on_failed(self, attempt: Attempt) -> None:
        self.on_failed(attempt)

    def rejected_again(self, attempt: Attempt) -> None:
        """Note whether a lost connection is not restored because its credentials are refused."""
        if "" not in self._refused and answer_of(attempt) is AddressAnswer.REJECTED:
            self._refuse("", bad_credentials(attempt.user, attempt.address))

    def _refuse(self, subject: str, error: NotPermitted) -> None:
        self._refused[subject] = error
        # Who has asked to hear of it says it, or can do without.
        level = logging.INFO if self._refused_callbacks else logging.ERROR
        log.log(level, "%s", error.message, extra={"connection": self._name})
        for callback in self._refused_callbacks:
            callback(error)

    def _fail(self, error: NotPermitted, subject: str | None) -> bool:
        """Fail the requests to `subject` (None: all) that are waited for. Returns whether there was any."""
        waiting = [one for one, _, asked in self._waiting.values() if asked and subject in (None, asked) and not one.done()]
        gathering = [one.done for one in self._gathering.values() if subject in (None, one.subject) and not one.done.done()]
        called = [reply for reply, (_, _, asked) in self._called.items() if subject in (None, asked)]
        futures: list[asyncio.Future[Any]] = [*waiting, *gathering]
        for future in futures:
            future.set_exception(error)
        for reply in called:
            self._answer_call(reply, error)
        return bool(waiting or gathering or called)

    # --- life -------------------------------------------------------------------------------------------------
    def _new_client(self) -> Client:
        return Client(self._on_down, self._on_closed, self._on_read, self._on_error_line, self._on_failed)

    def _on_read(self) -> None:
        for callback in self._read_callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback at the end of a read failed")

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
        """The connection is gone: requests in flight fail now, not at their time-outs."""
        if self._live and not self._closing:
            log.warning("the connection to NATS is lost", extra={"connection": self._name})
        self._live = False
        self._deaf = None
        self._refused = {subject: error for subject, error in self._refused.items() if not subject}
        for future, _, _ in self._waiting.values():
            if not future.done():
                future.set_exception(Disconnected())
        for gathering in self._gathering.values():
            if not gathering.done.done():
                gathering.done.set_exception(Disconnected())
        for reply in list(self._called):
            self._answer_call(reply, Disconnected())

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
        self._refused.pop("", None)
        self._learn_domain()
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
        self._mesh = None
        if self._learn_timer is not None:
            self._learn_timer.cancel()
        if self._timeout_timer is not None:
            self._timeout_timer.cancel()
        await cancel_and_wait(self._reopening, within_s=CLOSE_TIMEOUT_S)
        await self._client.close()
        for subscription in list(self._subscriptions.values()):
            await subscription.stop()
        self._subscriptions.clear()


def _expire(future: asyncio.Future[Message]) -> None:
    if not future.done():
        future.set_exception(RequestTimeout())
