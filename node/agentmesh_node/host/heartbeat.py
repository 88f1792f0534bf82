"""The node's heartbeat, on a thread and a connection of its own: a callback that blocks the loop must not look like a dead node.

It renews the node's lease in the registry and answers `mesh.node.<id>`. When the process dies its connection ends with it, and a
supervisor's ping is answered `no responders` at once. If the node's loop has not turned for `STALL_LIMIT_S`, the heartbeat ends
the
process: a hang is a death too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from agentmesh import wire
from agentmesh.control_values import ControlRequest, NodeStats
from agentmesh.edge.clock import SYSTEM, Ambient
from agentmesh.edge.failures import EDGE_ERRORS, Uncertain, WrongLastSequence
from agentmesh.edge.registry import Entry, Registry, decode_node
from agentmesh.edge.replies import usable_reply
from agentmesh.edge.retry import UPKEEP_RETRY
from agentmesh.edge.tasks import wait_for
from agentmesh.edge.transport import Disconnected, Message, Transport
from agentmesh.errors import BadRequest, MeshError, NotPermitted
from agentmesh.registry_values import NodeLease
from agentmesh.subjects import Subjects, node_key
from agentmesh_node.liveness_thread import CHECK_S, LivenessLoop, begin
from agentmesh_node.settings import STALL_LIMIT_S

log = logging.getLogger("agentmesh.node")

_COMMANDS = ("drain", "cordon", "release", "sweep")
"""Requests that the node carries out."""


class NodeFigures(msgspec.Struct):
    """Figures that the node's loop writes and the heartbeat's thread reads. Each field is written whole."""

    lease: NodeLease
    agents: int = 0
    awake: int = 0
    running: int = 0
    busy: tuple[str, ...] = ()
    dropped: int = 0
    ticked: float = 0.0


class Heartbeat:
    """Runs on its liveness loop. `on_request(request)`, `on_superseded()` and `on_agents(reply)` are called on the node's loop;
    `server_now`, the servers' time as the node estimates it, is not."""

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
        on_agents: Callable[[str], None] = lambda reply: None,
        stall_limit_s: float = STALL_LIMIT_S,
        server_now: Callable[[], float] = SYSTEM.now,
        ambient: Ambient = SYSTEM,
    ) -> None:
        self._liveness = liveness
        self._monotonic = ambient.monotonic
        self._now = ambient.now
        self._server_now = server_now
        self._subjects = subjects
        self._node = node
        self._ttl_s = ttl_s
        self._stall_limit_s = stall_limit_s
        self._on_request = on_request
        self._on_superseded = on_superseded
        self._on_agents = on_agents
        self.figures = NodeFigures(lease, ticked=self._monotonic())
        self._main = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started: asyncio.Future[None] = self._main.create_future()
        self._wake: asyncio.Event | None = None
        self._due = 0.0
        """When the lease is written next, on the monotonic clock."""
        self._written: asyncio.Future[None] | None = None
        self._leaving = False
        self._superseded = False
        """Another process has the lease of this id: it is not written any more."""
        self.refusal: str | None = None
        """Why the last renewal failed. With it an outage is one line in the log, not four a second."""
        self._ticker: asyncio.TimerHandle | None = None
        self._revision = 0

    # --- on the node's loop -----------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Return when the lease is in the registry.

        Raises:
            NotPermitted: the server refuses what it needs.
            Unavailable: it is not there in time.
        """
        self._tick()
        await begin(self._liveness, f"heartbeat {self._node}", self._run, self._started, "the node's lease cannot be written")

    def _tick(self) -> None:
        self.figures.ticked = self._monotonic()
        self._ticker = self._main.call_later(CHECK_S, self._tick)

    async def change(self, lease: NodeLease, *, timeout: float = 5.0) -> None:
        """Renew the lease at once with other content. Returns when the registry has it, or after `timeout` seconds."""
        self.figures.lease = lease
        if self._superseded:
            return
        written = self._written = self._main.create_future()
        self._wake_up()
        await asyncio.wait((written,), timeout=timeout)

    async def close(self) -> None:
        """Delete the lease and end."""
        self._leaving = True
        self._wake_up()
        await self._liveness.join(10.0)
        if self._ticker is not None:
            self._ticker.cancel()

    def _wake_up(self) -> None:
        """Have the lease written now, unless its thread has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._loop.call_soon_threadsafe(self._renew)

    # --- on the liveness loop ---------------------------------------------------------------------------------------
    async def _run(self) -> None:
        try:
            await self._connect_and_run()
        except Exception as failure:
            log.exception("the heartbeat ended")
            self._post_to_main(lambda error=failure: self._report_start(error))  # type: ignore[misc]

    def _report_write(self, lease: NodeLease) -> None:
        self._report_start(None)
        written = self._written
        if written is not None and not written.done() and lease.draining == self.figures.lease.draining:
            written.set_result(None)

    def _report_start(self, error: Exception | None) -> None:
        if self._started.done():
            return
        if error is None:
            self._started.set_result(None)
        else:
            self._started.set_exception(error)

    def _post_to_main(self, action: Callable[[], Any]) -> None:
        try:
            self._main.call_soon_threadsafe(action)
        except RuntimeError:
            log.debug("the node's loop is closed")

    async def _connect_and_run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        transport = await self._liveness.connect(f"mesh-heartbeat-{self._node}")
        try:
            await transport.subscribe(self._subjects.node(self._node), lambda message: self._answer(transport, message))
            # The server must know the subscription before there is a lease: a ping without responders means a dead node.
            await self._flush(transport)
            if transport.refusal is not None:
                self._post_to_main(partial(self._report_start, transport.refusal))
                return
            transport.on_gap(self._renew)
            registry = Registry(transport, self._subjects)
            await self._keep_lease(registry)
            if not self._superseded:
                await registry.delete(node_key(self._node), self._revision)
        except (MeshError, Uncertain) as error:  # what `subscribe` raises is not caught: then the start has failed
            log.warning("the lease could not be taken back: %s", error)
        finally:
            await transport.close()

    async def _flush(self, transport: Transport) -> None:
        """Return when the server has all that was sent. A connection that breaks meanwhile subscribes anew by itself."""
        for pause in UPKEEP_RETRY:
            try:
                await transport.flush()
            except Disconnected:
                if self._leaving:
                    raise
                await asyncio.sleep(pause)
            else:
                return

    async def _keep_lease(self, registry: Registry) -> None:
        assert self._wake is not None
        while not self._leaving:
            self._check_stall()
            if self._monotonic() >= self._due and not self._superseded:
                lease, self._due = self.figures.lease, math.inf
                if await self._write(registry):
                    next_due = self._monotonic() + self._ttl_s / 3
                    self._post_to_main(lambda lease=lease: self._report_write(lease))  # type: ignore[misc]
                else:
                    next_due = 0.0
                self._due = min(self._due, next_due)  # it may be wanted again by now
            await wait_for(self._wake, CHECK_S)

    def _renew(self) -> None:
        """Write the lease now."""
        self._due = 0.0
        if self._wake is not None:
            self._wake.set()

    def _check_stall(self) -> None:
        stalled = self._monotonic() - self.figures.ticked
        if stalled > self._stall_limit_s:
            log.critical("the loop hangs; the process ends", extra={"seconds": round(stalled, 1)})
            self._liveness.end_process()

    async def _write(self, registry: Registry) -> bool:
        """Renew the lease. Another process's lease under this id may be taken over only at the start."""
        key, value = node_key(self._node), wire.encode(self.figures.lease)
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
        if isinstance(error, NotPermitted):
            self._post_to_main(partial(self._report_start, error))  # a node that has started goes on, and is not ready
        return False

    async def _rewrite(self, registry: Registry, key: str, value: bytes) -> bool:
        entry = await registry.get(key)
        if entry is None:
            self._revision = await registry.create(key, value, ttl_s=self._ttl_s)
            return True
        first = not self._started.done()
        if not first and _boot(entry) not in (None, self.figures.lease.boot):
            self._superseded = True
            log.error(
                "another process runs under this id: this one gives up its agents and ends; give each node an --id of its own",
                extra={"node": self._node},
            )
            self._post_to_main(self._on_superseded)
            return False
        self._revision = await registry.update(key, value, entry.revision, ttl_s=self._ttl_s)
        return True

    async def _answer(self, transport: Transport, message: Message) -> None:
        reply = usable_reply(message, self._subjects.root)
        if reply is None:
            return
        figures = self.figures
        problem: str | None = None
        try:
            request = msgspec.json.decode(message.data, type=ControlRequest)
        except (msgspec.DecodeError, RecursionError) as error:
            request, problem = ControlRequest(op=""), str(error)
        if problem is not None:
            body = wire.encode_failure(BadRequest(f"not a request: {problem}"))
        elif request.op in _COMMANDS:
            self._post_to_main(lambda: self._on_request(request))
            body = wire.encode_reply({"ok": True})
        elif request.op == "agents":
            self._post_to_main(lambda: self._on_agents(reply))
            return
        elif request.op in ("rebalance", "move"):
            return  # the supervisor of this id answers, as in `mesh up`; a node places nothing
        elif request.op not in ("ping", "stats"):
            body = wire.encode_failure(BadRequest(f"a node knows the requests ping, stats, agents, {', '.join(_COMMANDS)}"))
        else:
            full = request.op == "stats"
            stats = NodeStats(
                node=self._node,
                boot=figures.lease.boot,
                agents=figures.agents,
                awake=figures.awake,
                running=figures.running,
                busy=figures.busy if request.content or full else (),
                lag_ms=round(max(0.0, self._monotonic() - figures.ticked - CHECK_S) * 1000, 1),
                draining=figures.lease.draining,
                time=wire.format_time(self._now()) if full else None,
                server_time=wire.format_time(self._server_now()) if full else None,
                dropped=figures.dropped,
            )
            body = wire.encode(stats)
        try:
            await transport.publish(reply, body)
        except Disconnected:
            log.debug("a ping could not be answered: no connection")


def _boot(entry: Entry) -> str | None:
    """The boot id of the process that a lease names; None if the lease is malformed."""
    try:
        return decode_node(entry).boot
    except BadRequest:
        return None
