"""The port to NATS: all that the rest of the project asks of a connection.

Everything above it (JetStream publishes and reads, the registry, the journal) is made of these few calls, so that a test can
replace the server and nothing else. `agentmesh.edge.connection` holds the adapter over nats-py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from agentmesh.errors import NotPermitted

type Headers = Mapping[str, str]
type Handler = Callable[[Message], Awaitable[None] | None]
type Answered = Callable[[Message | Exception], None]
"""Takes the reply to a request, or what `Transport.request` would have raised instead."""


class Message(NamedTuple):
    """One message as it arrived. `headers` is never None; `status` is the NATS status line's code ("" if there is none)."""

    subject: str
    data: bytes
    headers: Headers
    reply: str = ""
    status: str = ""


class NoResponders(Exception):
    """Nobody listens on the subject of a request (NATS status 503). Its argument, where it has one, is that subject as it was
    sent, in the domain of the mesh."""


class RequestTimeout(Exception):
    """No reply came in time. Whether the request was handled is unknown."""


class Disconnected(Exception):
    """There is no connection now; nothing was sent.

    For a request that was in flight when the connection ended it means that no reply will come: as after a time-out, whether it
    was handled is unknown.
    """


UNANSWERED = (NoResponders, RequestTimeout, Disconnected)
"""What `Transport.request` raises when there is no reply. Only after `NoResponders` is it certain that nobody has heard it."""


def in_words(error: Exception) -> str:
    """Why a request got no reply, for people."""
    if isinstance(error, RequestTimeout):
        return "it did not come in time"
    return "the connection to NATS was lost" if isinstance(error, Disconnected) else str(error) or type(error).__name__


class Subscription(Protocol):
    """A subscription that is open."""

    async def unsubscribe(self) -> None:
        """Stop. Handlers already begun may still finish."""

    async def drain(self) -> None:
        """Stop, and return when the handler has got what the server sent before it heard of the end: nothing that a queue group
        gave to this member is lost."""


class Transport(Protocol):
    """A NATS connection that reconnects by itself for ever and never sends late what it reported as failed."""

    domain: str | None
    """The JetStream domain of the mesh that this connection is for ("": it has none); None while that is not known. `publish`
    compares acknowledgements with it."""

    @property
    def max_payload(self) -> int:
        """The server's limit on headers and body of one message, in bytes."""

    @property
    def connected(self) -> bool:
        """Whether a server is connected at this moment."""

    @property
    def clustered(self) -> bool:
        """Whether the connected server belongs to a cluster: one that has just started may not know all streams yet."""

    @property
    def reading(self) -> bool:
        """Whether messages that came in one read are being handed to their handlers now."""

    def on_read(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` at the end of each read. Returns its remover."""

    async def publish(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, reply: str = "") -> None:
        """Send a core message.

        Raises:
            Disconnected: nothing was sent.
            TooLarge: it exceeds `max_payload` or the control line; nothing was sent, the connection lives.
        """

    def send(self, subject: str, data: bytes = b"") -> bool:
        """`publish` for callers that cannot wait.

        Returns: False if it cannot be sent at once (no connection, or the socket takes no more now); nothing was sent then.

        Raises:
            TooLarge: nothing was sent.
        """

    @property
    def dropped(self) -> int:
        """How many messages `post` and `post_all` have dropped."""

    def post(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, though_full: bool = False) -> None:
        """Send a core message that may be lost. It is dropped, and counted, where there is no connection, where it is too large,
        and where the socket has left too many bytes unsent (8 MiB), unless it is to be sent `though_full`: few should be."""

    def post_all(self, messages: Iterable[tuple[str, bytes]], *, though_full: bool = False) -> None:
        """`post` each pair of subject and data, in order: cheaper than a call for each."""

    async def request(self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float) -> Message:
        """Send and wait for one reply.

        Raises:
            NoResponders, RequestTimeout, Disconnected, TooLarge.
            NotPermitted: the server forbids it, to publish there or to hear the reply; nobody has got it.
        """

    def call(
        self, subject: str, data: bytes = b"", *, headers: Headers | None = None, timeout: float, answered: Answered
    ) -> bool:
        """`request` without a task that waits: `answered` is called once, in the loop callback in which the reply arrives or is
        known not to come. It must not raise.

        Returns: False if it cannot be sent at once (no connection, or the socket takes no more now). Then nothing was sent,
            and `answered` is never called: use `request`, which waits.

        Raises:
            TooLarge: nothing was sent.
        """

    async def request_many(self, subject: str, data: bytes = b"", *, timeout: float) -> list[Message]:
        """Send and gather replies up to and including the first with a status (direct get's 204, 404, 408, 413).

        Raises:
            NoResponders, RequestTimeout (of silence between two replies), Disconnected.
            NotPermitted: see `request`.
        """

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Call `handler` for each message, in order. An exception in it is logged; the next message is still delivered."""

    def on_gap(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` whenever messages may have been missed (reconnect, slow consumer). Returns its remover."""

    @property
    def refusal(self) -> NotPermitted | None:
        """What the server refuses this connection now, and no wait will change: a subscription that is open, or, since the
        connection was lost, its credentials. Complete for what was subscribed before the last `flush`."""

    def on_refused(self, callback: Callable[[NotPermitted], None], *, tells: bool = True) -> Callable[[], None]:
        """Call `callback` whenever `refusal` gets a reason. Returns its remover. `tells`: it tells somebody; where none does, an
        error is logged."""

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has processed everything sent so far.

        Raises:
            RequestTimeout, Disconnected.
        """

    async def close(self) -> None:
        """Send what is pending and close."""
