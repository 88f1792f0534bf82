"""What the hosting verbs do: bring the parts of a process up in order, wait for its end, and take them down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agentmesh import names
from agentmesh.access.roles import Role
from agentmesh.arguments import pairs
from agentmesh.edge.address import UP_ID, UP_SERVER, mesh_root, shown_urls
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import BadRequest, MeshError, Unavailable
from agentmesh.subjects import Subjects
from agentmesh_node.host.node import Node
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.process import health, model_option
from agentmesh_node.process.address import PATIENCE_S, MeshAddress
from agentmesh_node.process.agent_loader import load_agents
from agentmesh_node.process.code_versions import code_versions
from agentmesh_node.process.nats_server import EmbeddedServer
from agentmesh_node.process.options import CommonOptions, NodeOptions, StreamOptions, SupervisorOptions
from agentmesh_node.process.preload import preload
from agentmesh_node.process.secured import SecuredStore
from agentmesh_node.process.setup import set_up_own, streams_there
from agentmesh_node.process.setup import settings as stream_settings
from agentmesh_node.process.signals import EXIT_OK, StopSignal, default_id, report_error, run
from agentmesh_node.process.workers import StartFailed, Workers, orphaned
from agentmesh_node.settings import NodeSettings, SupervisorSettings
from agentmesh_node.supervisor.supervisor import Supervisor
from agentmesh_node.telemetry import logs, otel
from agentmesh_node.telemetry.metrics import LoopLag
from agentmesh_node.turns.budget_meter import prices_of

log = logging.getLogger("agentmesh.service")
_RETRY_S = 0.5
MAX_PORT = 65_535


class NodeCommand(msgspec.Struct, frozen=True, kw_only=True):
    """What one node is to be. JSON, so that a keeper of workers can hand it on to them."""

    id: str | None
    """By default made from the host's name."""
    agents: Sequence[str]
    """Modules or files with the agents' classes."""
    labels: Sequence[str] = ()
    """As `KEY=VALUE`."""
    where: MeshAddress
    options: NodeOptions
    common: CommonOptions
    model: str | None = None
    """Address of the server of models that speaks for its agents."""
    model_name: str | None = None
    """Which of its models."""
    check: bool = False
    """Whether its models are called once before it starts."""
    metrics_port: int | None = None
    """Where to serve its metrics; the worker of number N of several serves them on the port that is N - 1 higher."""


def node(command: NodeCommand, *, workers: int = 1, health_port: int | None = None) -> int:
    """Run an agent node until it is told to end, or so many `workers`. Returns the exit code."""
    metrics_port = command.metrics_port
    try:
        if metrics_port is not None and metrics_port + workers > MAX_PORT + 1:
            raise BadRequest(f"--metrics-port {metrics_port}: there are no ports after it for {workers} workers")
        model_option.makes_sense(command.model, command.model_name, hosts=False)
        settings = _node_settings(command)
    except MeshError as error:
        return report_error(error)
    where = command.where
    if workers > 1:
        return _workers(msgspec.structs.replace(command, id=settings.node_id), _kinds(settings), workers, health_port)

    async def main(told: StopSignal) -> None:
        async with contextlib.AsyncExitStack() as stack:
            state = _Readiness()
            await _observe(stack, "node", settings.node_id, state, (health_port, metrics_port))
            await streams_there(where, settings.node_id, state.wait)
            served, _ = await model_option.settled(stack, settings, command.model, command.model_name)
            if command.check:
                await model_option.check(served)
            await asyncio.to_thread(preload, served)
            state.node = hosted = await _start_node(stack, where, served)
            told.ready(f"node {settings.node_id} ready: kinds {_kinds(settings)}; {hosted.url}{model_option.shown(served)}")
            await told.stop(_background(stack, _asked_to_end(hosted)), _background(stack, orphaned()))
            await hosted.drain()

    return run(main)


def worker(command: bytes) -> int:
    """Run one node of several, as its keeper says in JSON. Returns the exit code."""
    return node(msgspec.json.decode(command, type=NodeCommand))


class _Readiness:
    """Whether a process takes work."""

    def __init__(self) -> None:
        self._waiting = "starting"
        self.node: Node | None = None
        self.supervising = False

    def wait(self, reason: str) -> None:
        """It has not started yet, for this reason."""
        self._waiting = reason

    def not_ready(self) -> str | None:
        """Why it does not, or None."""
        if self.node is not None:
            return self.node.not_ready()
        return None if self.supervising else self._waiting


def _workers(command: NodeCommand, kinds: str, count: int, health_port: int | None) -> int:
    """Run several processes that are nodes."""
    own_id, code = command.id or "", EXIT_OK

    async def main(told: StopSignal) -> None:
        nonlocal code
        logs.configure("workers", own_id)
        line = f"node {own_id} ready: {count} workers; kinds {kinds}; {shown_urls(command.where.servers)}"
        try:
            code = await Workers(own_id, count, partial(_worker_command, command)).serve(told, line, health_port)
        except StartFailed as error:
            report_error(error)
            code = error.exit_code

    return run(main) or code


def _worker_command(command: NodeCommand, own_id: str) -> bytes:
    port = command.metrics_port
    if port:  # a free one is one for each worker
        port += int(own_id.rpartition("-")[2]) - 1
    return msgspec.json.encode(msgspec.structs.replace(command, id=own_id, metrics_port=port))


def supervisor(
    *,
    id: str | None,
    where: MeshAddress,
    health_port: int | None = None,
    metrics_port: int | None = None,
    options: SupervisorOptions,
    common: CommonOptions,
) -> int:
    """Run a supervisor until it is told to end. Returns the exit code."""
    try:
        own_id = names.node_id(id or default_id())
    except MeshError as error:
        return report_error(error)
    settings = _supervisor_settings(options, common)

    async def main(told: StopSignal) -> None:
        async with contextlib.AsyncExitStack() as stack:
            state = _Readiness()
            await _observe(stack, "supervisor", own_id, state, (health_port, metrics_port))
            await streams_there(where, own_id, state.wait)
            part = await _start_supervisor(stack, where, own_id, settings)
            state.supervising = True
            told.ready(f"supervisor {own_id} ready: {shown_urls(where.servers)}")
            await told.stop(part)

    return run(main)


def up(
    agents: Sequence[str],
    *,
    port: int,
    data: Path,
    sync_interval: str,
    secure: bool = False,
    root: str | None,
    model: str | None = None,
    model_name: str | None = None,
    check: bool = False,
    metrics_port: int | None = None,
    options: NodeOptions,
    leader: SupervisorOptions,
    store: StreamOptions,
    common: CommonOptions,
) -> int:
    """Run server, supervisor and one node until told to end. Returns the exit code."""
    try:
        model_option.makes_sense(model, model_name, hosts=True)
        where = MeshAddress(servers=[], root=mesh_root(root))
        settings = _node_settings(NodeCommand(id=UP_ID, agents=agents, where=where, options=options, common=common))
        users = SecuredStore(data, where.root) if secure else None
        include = None if users is None else users.include
        server = EmbeddedServer(data / "nats", port=port, sync_interval=sync_interval, name=UP_SERVER, include=include)
    except MeshError as error:
        return report_error(error)

    async def main(told: StopSignal) -> None:
        async with contextlib.AsyncExitStack() as stack:
            state = _Readiness()
            await _observe(stack, "node", settings.node_id, state, (None, metrics_port))
            served, kept = await model_option.settled(stack, settings, model, model_name)
            if check:
                await model_option.check(served)
            await stack.enter_async_context(server)
            if users is not None:
                await asyncio.to_thread(users.listens, server.url)

            def there(role: Role) -> MeshAddress:
                open_mesh = msgspec.structs.replace(where, servers=[server.url])
                return open_mesh if users is None else users.address(role, where, server.url)

            await set_up_own(server, there("setup"), stream_settings(store))
            leading = await _start_supervisor(stack, there("supervisor"), UP_ID, _supervisor_settings(leader, common))
            parts = [_background(stack, _keep(server)), leading, *(_background(stack, work()) for work in kept)]
            state.node = hosted = await _start_node(stack, there("node"), served)
            await asyncio.to_thread(_write_url, data, server.url if users is None else users.folder.url("operator"))
            parts.append(_background(stack, _asked_to_end(hosted)))
            callers = "" if users is None else f"; users in {users.folder.path} (`mesh access add NAME caller AGENTS...`)"
            told.ready(f"mesh ready: {server.url}; kinds {_kinds(settings)}; data in {data}{callers}{model_option.shown(served)}")
            await told.stop(*parts)
            await hosted.drain()

    return run(main)


# --- parts --------------------------------------------------------------------------------------------------------
async def _observe(
    stack: contextlib.AsyncExitStack,
    role: str,
    instance: str,
    state: _Readiness,
    ports: tuple[int | None, int | None],
) -> None:
    """Begin to log, to export and to measure, and to serve health and metrics on their ports: until the process ends."""
    health_port, metrics_port = ports
    logs.configure(role, instance)
    started = otel.setup(role, instance, expose=health_port is not None or metrics_port is not None)
    stack.push_async_callback(asyncio.to_thread, started.shutdown)
    if started.meters is not None:
        lag = LoopLag()
        lag.begin()
        stack.callback(lag.close)
    exposed = started.exposition or health.NO_METRICS
    await stack.enter_async_context(health.serving(health_port, state.not_ready, metrics=exposed, metrics_port=metrics_port))


async def _connect(stack: contextlib.AsyncExitStack, where: MeshAddress, name: str) -> NatsTransport:
    """A further connection of this process: a server that was there a moment ago is waited for."""
    wait_s = max(where.wait_s, PATIENCE_S)
    transport = await connect(
        where.servers,
        name=name,
        connect_timeout=PATIENCE_S,
        wait_s=wait_s,
        api=where.api,
        mesh=where.registry,
        login=where.login,
    )
    stack.push_async_callback(transport.close)
    return transport


def _liveness(where: MeshAddress) -> LivenessThread:
    return LivenessThread(where.servers, api=where.api, mesh=where.registry, login=where.login)


async def _start_node(stack: contextlib.AsyncExitStack, where: MeshAddress, settings: NodeSettings) -> Node:
    transport = await _connect(stack, where, f"mesh-node-{settings.node_id}")

    async def begin() -> Node:
        hosted = Node(transport, where.servers, settings, liveness=_liveness(where))
        try:
            await hosted.start()
        except BaseException:
            await hosted.close()
            raise
        stack.push_async_callback(hosted.close)
        return hosted

    return await _when_available(begin, max(where.wait_s, PATIENCE_S))


async def _when_available[T](begin: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What `begin` returns; tried again for so long while the store is not ready (new streams, an election).

    Raises:
        Unavailable: it is not ready in time.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await begin()
        except Unavailable as error:
            if asyncio.get_running_loop().time() + _RETRY_S > deadline:
                raise
            log.info("the store is not ready; trying again", extra={"reason": error.message})
        await asyncio.sleep(_RETRY_S)


async def _start_supervisor(
    stack: contextlib.AsyncExitStack, where: MeshAddress, own_id: str, settings: SupervisorSettings
) -> asyncio.Task[None]:
    """The supervisor's life as a task: it ends only with an error."""
    transport = await _connect(stack, where, f"mesh-supervisor-{own_id}")

    async def begin() -> Supervisor:
        supervisor = Supervisor(transport, Subjects(where.root), own_id, settings, liveness=_liveness(where))
        await supervisor.start()
        return supervisor

    return _background(stack, (await _when_available(begin, max(where.wait_s, PATIENCE_S))).run_until_stopped())


async def _asked_to_end(hosted: Node) -> None:
    """Return when an operator drains the node over NATS, or another process has taken over its id."""
    await hosted.drained.wait()


def _background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that ends with `stack`."""
    task = asyncio.create_task(work)
    stack.push_async_callback(cancel_and_wait, task)
    return task


async def _keep(server: EmbeddedServer) -> None:
    """Start the server again, on its store and port, whenever it dies.

    Raises:
        Unavailable: it cannot be started again.
    """
    while True:
        code = await server.wait()
        log.error("the NATS server ended; starting it again", extra={"exit_code": code, "store": str(server.store)})
        await server.restart()


def _node_settings(command: NodeCommand) -> NodeSettings:
    """The settings of a node, its agents' classes loaded and their versions told. It reads files, before there is a loop.

    Raises:
        BadRequest: some of it cannot be meant.
    """
    prices_of()  # the node reads them again; here nothing has been started yet
    agents = load_agents(command.agents)
    return NodeSettings(
        node_id=names.node_id(command.id or default_id()),
        agents=agents,
        code=code_versions(agents),
        labels=pairs(command.labels, "--label"),
        root=command.where.root,
        stall_limit_s=command.common.stall_limit_s,
        callers_waiting=command.common.callers_waiting,
        callers_rate=command.common.callers_rate,
        **asdict(command.options),
    )


def _supervisor_settings(options: SupervisorOptions, common: CommonOptions) -> SupervisorSettings:
    return SupervisorSettings(**asdict(common), **asdict(options))


def _kinds(settings: NodeSettings) -> str:
    return ", ".join(sorted(settings.agents))


def _write_url(data: Path, url: str) -> None:
    """Leave the address for commands that are given in this directory; whole or not at all."""
    part = data / f"url.{os.getpid()}"
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(url + "\n")  # it may have a password
    part.replace(data / "url")
