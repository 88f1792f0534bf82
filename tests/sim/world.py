"""A mesh in one loop: the in-memory server, and nodes, supervisors and clients as processes of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from agentmesh.edge.clock import Ambient
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Transport
from agentmesh.errors import MeshError, Unavailable
from agentmesh.records import Ledger
from agentmesh.subjects import Subjects
from agentmesh_client.client import Mesh
from agentmesh_node.host.node import Node
from agentmesh_node.liveness_thread import START_TIMEOUT_S
from agentmesh_node.settings import NodeSettings, SupervisorSettings
from agentmesh_node.supervisor.supervisor import Supervisor
from sim.agents import KINDS
from sim.loop import Process, SimLoop
from sim.net import Network, SimTransport
from sim.payments import Payer
from sim.server import EPOCH
from sim.store import Stored

SETTINGS = SupervisorSettings(ping_period_s=1.0, grace_s=0.5, replan_s=5.0)
RESTART_S = 1.0
"""After which an ended process is started again, as a service manager does it."""

SERVED = {**KINDS, "Payer": Payer}
"""What the nodes serve."""

type Wrap = Callable[[Transport], Transport]


class LoopCarrier:
    """Runs a process's signs of life in the same loop, on a connection of their own."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._task: asyncio.Task[None] | None = None

    async def connect(self, name: str) -> Transport:
        transport = SimTransport(self._world.net, self._process, name)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await transport.open()
        except TimeoutError:
            raise Unavailable("no server") from None
        return transport

    def start(self, name: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._task = self._process.spawn(main())

    async def join(self, timeout: float) -> None:
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=timeout)

    def end_process(self) -> None:
        self._world.kill(self._process.name)


class World:
    """Everything of one run. `dice(purpose)` gives a source of chance of its own for each purpose."""

    def __init__(
        self, loop: SimLoop, seed: int | str, *, mailbox_limit: int = 1000, max_payload: int = 1 << 20, skew_s: float = 0.0
    ) -> None:
        """
        Args:
            mailbox_limit: most messages in one lane.
            max_payload: the server's limit, in bytes; more than the 128 KiB that what an agent sends may leave of it.
            skew_s: most seconds by which the clock of a process is ahead of the server's, or behind it.
        """
        self.loop = loop
        self.seed = seed
        self.subjects = Subjects()
        self.net = Network(loop, self.dice("network"), max_payload=max_payload)
        self._mailbox_limit = mailbox_limit
        self._skew_s = skew_s
        self.ahead: dict[str, float] = {}
        """By process: seconds by which the clock of those that are started from now on is ahead."""
        self.processes: dict[str, Process] = {}
        self.nodes: dict[str, Node] = {}
        self.supervisors: dict[str, Supervisor] = {}
        self.wrap: dict[str, Wrap] = {}
        """By process: what its transport is wrapped in."""
        self.boots = 0
        self.folded: dict[str, tuple[list[Stored], Ledger | None]] = {}
        """By agent: its journal when it was last looked at from outside, and what that comes to."""
        self.unsettled: tuple[object, ...] = ()
        """The streams, and what was asked for, when something was left to do at the last look."""
        self._starters: dict[str, Callable[[Process], Coroutine[Any, Any, None]]] = {}
        self._tokens = self.dice("tokens")
        self._exits: set[asyncio.TimerHandle] = set()

    def dice(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{purpose}")

    def now(self) -> float:
        """Seconds of virtual time."""
        return self.loop.time()

    def spawn[T](self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in the process of that name."""
        return self.process(name).spawn(work)

    def ambient(self, process: str) -> Ambient:
        """Clock and randomness of a process: its clock goes wrong by the same amount for as long as the world lasts."""
        skew = self.dice(f"clock {process}").uniform(-self._skew_s, self._skew_s)
        began = EPOCH + skew + self.ahead.get(process, 0.0)
        return Ambient(
            now=lambda: began + self.loop.time(),
            monotonic=self.loop.time,
            token=lambda size: f"{self._tokens.getrandbits(size * 8):0{2 * size}x}",
        )

    # --- processes ------------------------------------------------------------------------------------------------
    async def prepare(self) -> None:
        """Make the streams."""
        process = Process(self.loop, "setup")
        transport = SimTransport(self.net, process, "setup")
        await transport.open()
        await ensure(transport, self.subjects, mailbox_limit=self._mailbox_limit)
        await transport.close()

    def node(self, name: str, **settings: Any) -> None:
        """Start an agent node."""

        async def main(process: Process) -> None:
            transport = await self._transport(process)
            chosen = NodeSettings(**{"node_id": name, "agents": SERVED, "mailbox_limit": self._mailbox_limit, **settings})
            node = Node(transport, "sim", chosen, ambient=self.ambient(name), liveness=LoopCarrier(self, process))
            self.nodes[name] = node
            try:
                await node.start()
                await node.drained.wait()
                await node.drain()
            finally:
                await node.close()

        self._run(name, main)

    def supervisor(self, name: str, settings: SupervisorSettings = SETTINGS) -> None:
        """Start a supervisor."""

        async def main(process: Process) -> None:
            transport = await self._transport(process)
            supervisor = Supervisor(
                transport, self.subjects, name, settings, liveness=LoopCarrier(self, process), ambient=self.ambient(name)
            )
            self.supervisors[name] = supervisor
            await supervisor.start()
            await supervisor.run_until_stopped()

        self._run(name, main)

    async def _transport(self, process: Process) -> Transport:
        transport = SimTransport(self.net, process, process.name)
        await transport.open()
        wrap = self.wrap.get(process.name)
        return transport if wrap is None else wrap(transport)

    @contextlib.asynccontextmanager
    async def client(self, name: str) -> Any:
        """A client, for a task that `Process.spawn` runs in `process(name)`."""
        transport = SimTransport(self.net, self.process(name), name)
        await transport.open()
        mesh = Mesh(transport, self.subjects, inbox=transport.new_inbox(), ambient=self.ambient(name))
        await mesh.open()
        try:
            yield mesh
        finally:
            await mesh.close()
            await transport.close()

    def process(self, name: str) -> Process:
        """The living process of that name; a new one, if there is none."""
        process = self.processes.get(name)
        if process is None or process.dead:
            process = self.processes[name] = Process(self.loop, name)
        return process

    def _run(self, name: str, main: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
        self._starters[name] = main
        process = self.process(name)
        self.boots += 1

        async def bounded() -> None:
            with contextlib.suppress(MeshError, TimeoutError):  # it ends with a message, and is started again
                await main(process)
            self.loop.call_later(RESTART_S, self._again, process, context=self.net.world)

        process.spawn(bounded())

    def _again(self, process: Process) -> None:
        """The process ended by itself: start it anew."""
        if not process.dead and self.processes.get(process.name) is process:
            self.kill(process.name)
            self.restart(process.name)

    # --- faults ---------------------------------------------------------------------------------------------------
    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.processes[name]
        if not process.dead:
            process.kill()
            self.net.vanish(process)

    def restart(self, name: str) -> None:
        """Start a dead process again, under its old name."""
        if self.processes[name].dead:
            self._run(name, self._starters[name])
