"""Where a benchmark plays: a server or cluster, the mesh's processes on it, and the floors beside them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import nats

import agentmesh_client
from agentmesh.access.roles import Role
from agentmesh.edge.connection import NatsTransport, connect
from agentmesh.edge.streams import ensure
from agentmesh.subjects import Subjects
from agentmesh_client import Mesh
from bench.by_hand import ByHand
from bench.floors import Floors
from bench.host import AGENTS
from support import Cluster, Server

HERE = Path(__file__).parent
ROOT = "mesh"
READY_S = 60.0
NO_VARIABLES: Mapping[str, str] = {}


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much is done. The smaller sizes prove that a benchmark runs, and nothing about speed."""

    rounds: int
    calls: int
    """Calls of which a median or a percentile is taken."""
    callers: int
    each: int
    """Calls of each of many callers."""
    hops: int
    workers: int
    starts: int
    colds: int
    turns: int
    crowds: tuple[int, ...]
    ballasts: tuple[int, ...]
    sleepers: tuple[int, ...]
    victims: tuple[int, int]
    """Agents on the node that is killed, and how many of them are in a turn."""


FULL = Sizes(
    rounds=5, calls=1000, callers=64, each=150, hops=1000, workers=50, starts=50, colds=10, turns=100,
    crowds=(1, 100, 10_000), ballasts=(1_000, 100_000, 900_000), sleepers=(10_000, 100_000), victims=(1000, 100),
)  # fmt: skip
SMOKE = Sizes(
    rounds=1, calls=10, callers=8, each=3, hops=20, workers=5, starts=2, colds=1, turns=10,
    crowds=(1, 20), ballasts=(1_000, 100_000, 900_000), sleepers=(200,), victims=(5, 2),
)  # fmt: skip


class Child:
    """A process that says on its standard output when it is ready."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ready(self) -> None:
        """Return when it is.

        Raises:
            RuntimeError: it ended instead, or took more than a minute.
        """
        assert self._process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while line := await self._process.stdout.readline():
                    if b"ready" in line:
                        return
        raise RuntimeError(f"process {self.pid} is not ready:\n{self._log.read_text()[-3000:]}")

    async def end(self) -> None:
        """SIGKILL: nothing that is measured depends on how it leaves."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class Stage:
    """One server or cluster, and what runs on it. Everything started here ends with its context."""

    def __init__(self, server: Server | Cluster, sizes: Sizes, stack: contextlib.AsyncExitStack, logs: Path) -> None:
        self.server = server
        self.sizes = sizes
        self.replicas = 3 if isinstance(server, Cluster) else 1
        self._stack = stack
        self._logs = logs
        self._mesh: Mesh | None = None
        self._floors: Floors | None = None
        self._by_hand: ByHand | None = None
        self._count = 0

    @property
    def url(self) -> str:
        """Addresses of the servers."""
        return self.server.url

    def url_as(self, role: Role) -> str:
        """Addresses of the servers, as a process of that role logs in; here all is open."""
        return self.url

    # --- processes ------------------------------------------------------------------------------------------------
    async def spawn(self, *arguments: str, checkout: Path | None = None, environ: Mapping[str, str] = NO_VARIABLES) -> Child:
        """Start a Python process, with the code of another `checkout` where one is given, and wait until it is ready.

        Args:
            environ: variables for it, beside those of this process that are not the mesh's or OpenTelemetry's.
        """
        self._count += 1
        log = self._logs / f"{self._count}.log"
        parts = [] if checkout is None else [checkout / part for part in ("mesh", "node", "client", "tests")]
        code = {"PYTHONPATH": os.pathsep.join(map(str, parts))} if parts else {}
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
                env={key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
                | code | dict(environ),
            )  # fmt: skip
        child = Child(process, log)
        self._stack.push_async_callback(child.end)
        await child.ready()
        return child

    async def node(self, root: str, node_id: str, **settings: Any) -> Child:
        """Start a node with settings of its own."""
        wanted = msgspec.json.encode({"root": root, "node_id": node_id, **settings}).decode()
        return await self.spawn(str(HERE / "host.py"), self.url_as("node"), wanted)

    async def supervisor(self, root: str, environ: Mapping[str, str] = NO_VARIABLES) -> Child:
        """Start a supervisor."""
        where = ("--nats", self.url_as("supervisor"), "--root", root)
        return await self.spawn("-m", "agentmesh_node", "supervisor", "--id", "s1", *where, environ=environ)

    # --- callers --------------------------------------------------------------------------------------------------
    async def transport(self, role: Role = "operator") -> NatsTransport:
        """A connection as the mesh uses it."""
        made = await connect(self.url_as(role), name="bench")
        self._stack.push_async_callback(made.close)
        return made

    async def client(self, root: str = ROOT) -> Mesh:
        """A client of the mesh under `root`, whose streams are made if need be."""
        await ensure(await self.transport("setup"), Subjects(root), replicas=self.replicas)
        return await self._stack.enter_async_context(agentmesh_client.connect(self.url_as("operator"), root=root))

    async def mesh(self) -> Mesh:
        """The mesh that most benchmarks share, by its client: one supervisor and one node, as users start them."""
        if self._mesh is None:
            self._mesh = await self.client()
            await self.supervisor(ROOT)
            await self.spawn("-m", "agentmesh_node", "node", "--id", "n1", "--agents", str(AGENTS), "--nats", self.url)
        return self._mesh

    async def floors(self) -> Floors:
        """The floors, their other side in a process of its own."""
        if self._floors is None:
            await self.spawn(str(HERE / "floors.py"), self.url, str(self.replicas))
            nc = await nats.connect(self.url.split(","))
            self._stack.push_async_callback(nc.close)
            self._floors = Floors(nc)
            await self._floors.start()
        return self._floors

    async def by_hand(self) -> ByHand:
        """The mesh's writes by hand, their other side in a process of its own."""
        if self._by_hand is None:
            await self.spawn(str(HERE / "by_hand.py"), self.url, str(self.replicas))
            self._by_hand = ByHand(await self.transport())
            await self._by_hand.start()
        return self._by_hand


@contextlib.asynccontextmanager
async def single(sizes: Sizes) -> AsyncIterator[Stage]:
    """A stage on one server."""
    async with stage_on(Server(name="bench"), sizes) as stage:
        yield stage


@contextlib.asynccontextmanager
async def cluster(sizes: Sizes) -> AsyncIterator[Stage]:
    """A stage on three servers, where every stream has three replicas."""
    async with stage_on(Cluster(), sizes) as stage:
        yield stage


@contextlib.asynccontextmanager
async def stage_on(server: Server | Cluster, sizes: Sizes, kind: type[Stage] = Stage) -> AsyncIterator[Stage]:
    """A stage on a server that is started for it."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as logs:
        try:
            await asyncio.to_thread(server.start)
            async with contextlib.AsyncExitStack() as stack:
                yield kind(server, sizes, stack, Path(logs))
        finally:
            await asyncio.to_thread(server.close)
