"""The node's sign of life, on a thread and a connection of its own: a callback that blocks the loop must not look like death.

It keeps the node's lease in the registry and answers `mesh.node.<id>`. When the process dies its connection goes with it, and
a supervisor's ping is answered `no responders` at once. A loop that has not ticked for `STALL_LIMIT_S` ends the process: a
hang is a death too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from agentmesh import wire
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.failures import EDGE_ERRORS, Uncertain, WrongLastSequence
from agentmesh.edge.registry import Entry, Registry, decode_node
from agentmesh.edge.transport import Disconnected, Message, Transport
from agentmesh.errors import BadRequest, MeshError
from agentmesh.names import reply_subject
from agentmesh.subjects import Subjects, node_key
from agentmesh.wire import ControlRequest, NodeLease, NodeStats
from agentmesh_node.liveness_thread import CHECK_S, LivenessLoop, begin
from agentmesh_node.settings import STALL_LIMIT_S

log = logging.getLogger("agentmesh.node")

_ORDERS = ("drain", "cordon", "release", "sweep")
"""Requests that the node acts upon."""


class NodeFigures(msgspec.Struct):
    """What the node's loop tells and the heartbeat's thread reads. Single fields: each is written whole."""

    lease: NodeLease
    agents: int = 0
    awake: int = 0
    running: int = 0
    busy: tuple[str, ...] = ()
    ticked: float = 0.0


class Heartbeat:
    """Runs on its liveness. `on_request(request)` and `on_superseded()` are called on the node's loop."""

    def __init__(
        self,
        liveness: LivenessLoop,
        subjects: Subjects,
        node: str,
        lease: NodeLease,
        *,
        ttl_s: int,
        on_request: Callable[[ControlRequest], None],
        on_superseded: Callable[[], None],
        stall_limit_s: float = STALL_LIMIT_S,
        ambient: Ambient = SYSTEM,
    ) -> None:
        self._liveness = liveness
        self._monotonic = ambient.monotonic
        self._subjects = subjects
        self._node = node
        self._ttl_s = ttl_s
        self._stall_limit_s = stall_limit_s
        self._on_request = on_request
        self._on_superseded = on_superseded
        self.facts = NodeFigures(lease, ticked=self._monotonic())
        self._main = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: asyncio.Future[None] = self._main.create_future()
        self._renew: asyncio.Event | None = None
        self._written: asyncio.Future[None] | None = None
        self._leaving = False
        self.refusal: str | None = None
        """Why the last renewal failed: an outage is one line in the log, not four a second."""
        self._ticker: asyncio.TimerHandle | None = None
        self._revision = 0

    # --- on the node's loop -----------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Return when the lease is in the registry.

        Raises:
            Unavailable: that takes too long.
        """
        self._tick()
        await begin(self._liveness, f"heartbeat {self._node}", self._run, self._started, "the node's lease cannot be written")

    def _tick(self) -> None:
        self.facts.ticked = self._monotonic()
        self._ticker = self._main.call_later(CHECK_S, self._tick)

    async def change(self, lease: NodeLease, *, timeout: float = 5.0) -> None:
        """Renew at once with another content. Returns when the registry has it, or `timeout` seconds are over."""
        self.facts.lease = lease
        written = self._written = self._main.create_future()
        if self._loop is not None and self._renew is not None:
            self._loop.call_soon_threadsafe(self._renew.set)
        await asyncio.wait((written,), timeout=timeout)

    async def close(self) -> None:
        """Take the lease back and end."""
        self._leaving = True
        if self._loop is not None and self._renew is not None:
            self._loop.call_soon_threadsafe(self._renew.set)
        await self._liveness.join(10.0)
        if self._ticker is not None:
            self._ticker.cancel()

    # --- on the liveness -----------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            await self._live()
        except Exception as failure:
            log.exception("the heartbeat ended")
            self._tell(lambda error=failure: self._report_start(error))  # type: ignore[misc]

    def _report_write(self, lease: NodeLease) -> None:
        self._report_start(None)
        written = self._written
        if written is not None and not written.done() and lease.draining == self.facts.lease.draining:
            written.set_result(None)

    def _report_start(self, error: Exception | None) -> None:
        if self._started.done():
            return
        if error is None:
            self._started.set_result(None)
        else:
            self._started.set_exception(error)

    def _tell(self, action: Callable[[], Any]) -> None:
        try:
            self._main.call_soon_threadsafe(action)
        except RuntimeError:
            log.debug("the node's loop is closed")

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._renew = asyncio.Event()
        transport = await self._liveness.connect(f"mesh-heartbeat-{self._node}")
        try:
            await transport.subscribe(self._subjects.node(self._node), lambda message: self._answer(transport, message))
            # The server must know before the lease says that this node lives: a ping without responders means death.
            await transport.flush()
            transport.on_gap(self._renew.set)
            registry = Registry(transport, self._subjects)
            await self._keep_lease(registry)
            await registry.delete(node_key(self._node), self._revision)
        except (MeshError, Uncertain) as error:  # not what `subscribe` and `flush` raise: that is a start which has failed
            log.warning("the lease could not be taken back: %s", error)
        finally:
            await transport.close()

    async def _keep_lease(self, registry: Registry) -> None:
        assert self._renew is not None
        due = 0.0
        while not self._leaving:
            self._check_stall()
            if self._monotonic() >= due or self._renew.is_set():
                self._renew.clear()
                lease = self.facts.lease
                if await self._write(registry):
                    due = self._monotonic() + self._ttl_s / 3
                    self._tell(lambda lease=lease: self._report_write(lease))  # type: ignore[misc]
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._renew.wait()
            except TimeoutError:
                continue

    def _check_stall(self) -> None:
        stalled = self._monotonic() - self.facts.ticked
        if stalled > self._stall_limit_s:
            log.critical("the loop hangs; the process ends", extra={"seconds": round(stalled, 1)})
            self._liveness.end_process()

    async def _write(self, registry: Registry) -> bool:
        """Renew the lease. Taking over another process's lease under this id is right once, at the start."""
        key, value = node_key(self._node), wire.encode(self.facts.lease)
        try:
            self._revision = await registry.update(key, value, self._revision, ttl_s=self._ttl_s)
            written = True
        except WrongLastSequence:
            try:
                written = await self._rewrite(registry, key, value)
            except EDGE_ERRORS as error:
                return self._not_renewed(error)
        except EDGE_ERRORS as error:
            return self._not_renewed(error)
        if written and self.refusal is not None:
            log.info("lease renewed again", extra={"node": self._node})
            self.refusal = None
        return written

    def _not_renewed(self, error: Exception) -> bool:
        level = logging.WARNING if self.refusal is None else logging.DEBUG
        log.log(level, "lease not renewed: %s", error, extra={"node": self._node})
        self.refusal = str(error)
        return False

    async def _rewrite(self, registry: Registry, key: str, value: bytes) -> bool:
        entry = await registry.get(key)
        if entry is None:
            self._revision = await registry.create(key, value, ttl_s=self._ttl_s)
            return True
        first = not self._started.done()
        if not first and _boot(entry) not in (None, self.facts.lease.boot):
            log.error("another process runs under this id; this one yields: give one another --id", extra={"node": self._node})
            self._tell(self._on_superseded)
            return False
        self._revision = await registry.update(key, value, entry.revision, ttl_s=self._ttl_s)
        return True

    async def _answer(self, transport: Transport, message: Message) -> None:
        try:
            reply = reply_subject(message.reply, self._subjects.root)
        except BadRequest:
            return  # nobody can be told, and a stranger's word brings nothing into the mesh's own subjects (case 220)
        facts = self.facts
        problem: str | None = None
        try:
            request = msgspec.json.decode(message.data, type=ControlRequest)
        except (msgspec.DecodeError, RecursionError) as error:
            request, problem = ControlRequest(op=""), str(error)
        if problem is not None:
            body = wire.encode_failure(BadRequest(f"not a request: {problem}"))
        elif request.op in _ORDERS:
            self._tell(lambda: self._on_request(request))
            body = wire.encode_reply({"ok": True})
        elif request.op not in ("ping", "stats"):
            body = wire.encode_failure(BadRequest(f"a node knows the requests ping, stats, {', '.join(_ORDERS)}"))
        else:
            stats = NodeStats(
                node=self._node,
                boot=facts.lease.boot,
                agents=facts.agents,
                awake=facts.awake,
                running=facts.running,
                busy=facts.busy if request.content or request.op == "stats" else (),
                lag_ms=round(max(0.0, self._monotonic() - facts.ticked - CHECK_S) * 1000, 1),
                draining=facts.lease.draining,
            )
            body = wire.encode(stats)
        try:
            await transport.publish(reply, body)
        except Disconnected:
            log.debug("a ping could not be answered: no connection")


def _boot(entry: Entry) -> str | None:
    """The process that a lease names; None if it is malformed, and so nobody's."""
    try:
        return decode_node(entry).boot
    except BadRequest:
        return None
