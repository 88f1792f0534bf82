"""Finds out whether processes are there, by pinging `mesh.node.<id>` (docs/architecture.md#failure-detection).

A dead process has no subscription, so the server answers *no responders* within a millisecond (docs/nats.md#no-responders). A
node that reconnects after a server failover looks the same for a moment, hence the grace. A process that hangs has a subscription
and does not answer: that proves nothing, its lease decides. While this process has no connection itself, nothing is concluded
from silence (case 226).
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections.abc import Callable, Set

import msgspec

from agentmesh.control_values import ControlRequest, NodeStats
from agentmesh.edge.transport import Disconnected, NoResponders, RequestTimeout, Transport
from agentmesh.errors import NotPermitted
from agentmesh.subjects import Subjects
from agentmesh.wire import encode

_PING = encode(ControlRequest(op="ping"))
_PING_FOR_MORE = encode(ControlRequest(op="ping", content=True))
MORE_EVERY = 10
"""One ping out of so many also asks for the busy agents: that answer is longer."""


class PingState(enum.Enum):
    """The result of the latest pings of a process."""

    UNKNOWN = "unknown"
    """No ping has a result yet, since it is watched or since our own connection was lost."""
    ANSWERS = "answers"
    HANGS = "hangs"
    """It is subscribed, but did not answer in time."""
    SILENT = "silent"
    """No responders, for less than the grace."""
    DEAD = "dead"
    """No responders throughout the grace."""


class _Peer:
    __slots__ = ("busy", "era", "ping_state", "silent_since", "task")

    def __init__(self) -> None:
        self.busy: tuple[str, ...] = ()
        self.era = 0
        self.ping_state = PingState.UNKNOWN
        self.silent_since: float | None = None
        self.task: asyncio.Task[None] | None = None


class FailureDetector:
    """Pings a changing set of processes while `run` runs. `on_change(id, state)` is called at each change."""

    def __init__(
        self,
        transport: Transport,
        subjects: Subjects,
        *,
        period_s: float,
        grace_s: float,
        on_change: Callable[[str, PingState], None],
    ) -> None:
        self._transport = transport
        self._subjects = subjects
        self._period = period_s
        self._grace = grace_s
        self._on_change = on_change
        self._peers: dict[str, _Peer] = {}
        self._group: asyncio.TaskGroup | None = None
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Ping until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for peer_id in self._peers:
                    self._begin(peer_id)
                await asyncio.Event().wait()
            finally:
                self._group = None

    def watch(self, ids: Set[str]) -> None:
        """Ping exactly these from now on."""
        for peer_id in self._peers.keys() - ids:
            task = self._peers.pop(peer_id).task
            if task is not None:
                task.cancel()
        for peer_id in sorted(ids - self._peers.keys()):
            self._peers[peer_id] = _Peer()
            self._begin(peer_id)

    def ping_state(self, peer_id: str) -> PingState:
        """The state of a process; `UNKNOWN` if it is not watched."""
        peer = self._peers.get(peer_id)
        return PingState.UNKNOWN if peer is None else peer.ping_state

    def busy(self, peer_id: str) -> tuple[str, ...]:
        """Agents of a node that were in a turn at its last answer. Many of them still are, because turns are long."""
        peer = self._peers.get(peer_id)
        return () if peer is None else peer.busy

    def forget(self, peer_id: str) -> None:
        """Forget what is known of a process, because another one has taken its id. A ping in flight no longer counts."""
        if peer_id in self._peers:
            self._reset(peer_id)

    def forget_all(self) -> None:
        """Forget what is known of all processes: our own connection was lost, which may explain their silence."""
        for peer_id in self._peers:
            self._reset(peer_id)

    async def heard_all(self, timeout: float) -> bool:
        """Wait until pings of all watched processes have a result. False if that takes longer than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while any(peer.ping_state is PingState.UNKNOWN for peer in self._peers.values()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # --- inside ---------------------------------------------------------------------------------------------------
    def _begin(self, peer_id: str) -> None:
        peer = self._peers[peer_id]
        if self._group is not None and peer.task is None:
            peer.task = self._group.create_task(self._listen(peer_id, peer), name=f"ping {peer_id}")

    def _reset(self, peer_id: str) -> None:
        peer = self._peers[peer_id]
        peer.era += 1
        self._set(peer_id, peer, PingState.UNKNOWN)

    async def _listen(self, peer_id: str, peer: _Peer) -> None:
        loop = asyncio.get_running_loop()
        for count in itertools.count():
            era, sent = peer.era, loop.time()
            heard = await self._ping(peer_id, peer if count % MORE_EVERY == 0 else None)
            if era == peer.era:
                if heard is PingState.SILENT and peer.silent_since is not None and sent - peer.silent_since >= self._grace:
                    heard = PingState.DEAD
                self._set(peer_id, peer, heard, sent)
            # A process in doubt is pinged more often, so that the verdict comes when the grace ends and not a period later.
            pause = self._period / 4 if heard is PingState.SILENT else self._period
            await asyncio.sleep(max(0.0, sent + pause - loop.time()))

    async def _ping(self, peer_id: str, more: _Peer | None) -> PingState:
        """Ping once. With `more`, also ask for the busy agents and note them there."""
        body = _PING if more is None else _PING_FOR_MORE
        try:
            reply = await self._transport.request(self._subjects.node(peer_id), body, timeout=self._period)
        except NoResponders:
            return PingState.SILENT
        except RequestTimeout:
            return PingState.HANGS
        except (Disconnected, NotPermitted):
            return PingState.UNKNOWN
        if more is not None:
            more.busy = _busy(reply.data)
        return PingState.ANSWERS

    def _set(self, peer_id: str, peer: _Peer, ping_state: PingState, sent: float = 0.0) -> None:
        if ping_state not in (PingState.SILENT, PingState.DEAD):
            peer.silent_since = None
        elif peer.silent_since is None:
            peer.silent_since = sent
        self._changed.set()
        if ping_state is not peer.ping_state:
            peer.ping_state = ping_state
            self._on_change(peer_id, ping_state)


def _busy(body: bytes) -> tuple[str, ...]:
    """The busy agents that a reply names; none if it is malformed."""
    try:
        return _stats.decode(body).busy
    except (msgspec.DecodeError, RecursionError):
        return ()


_stats = msgspec.json.Decoder(NodeStats)
