"""Who takes part: servers, supervisors and nodes, each a process that is started again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agentmesh_node.process.signals import EXIT_INTERRUPTED
from support import Server, free_ports

READY_S = 60.0
END_S = 30.0
"""How long a process may take to end when it is told to, before it is killed."""
_IN_ORDER = (0, EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes of a process that was told to end: drained, or not ready yet, or killed meanwhile."""
_AGAIN_S = 1.0
"""After which a process that ended by itself is started again, as a service manager does it."""


class Kept:
    """One hosting process, kept running. `note` hears what becomes of it."""

    def __init__(
        self, own_id: str, command: Sequence[str], log: Path, env: Mapping[str, str], note: Callable[[str], None]
    ) -> None:
        self.id = own_id
        self.ends: list[int] = []
        """Exit codes of the times that it ended by itself, or otherwise than it was told to."""
        self._command = command
        self._log = log
        self._env = env
        self._note = note
        self._process: asyncio.subprocess.Process | None = None
        self._told: asyncio.subprocess.Process | None = None
        """The last one that was told to end."""
        self._ready = asyncio.Event()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether it was started once."""
        return self._keeper is not None

    @property
    def pid(self) -> int | None:
        """Id of the process, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it, and return when it says that it is ready.

        Raises:
            RuntimeError: it has ended instead, or takes more than a minute.
        """
        self._keeper = asyncio.create_task(self._keep())
        end = time.monotonic() + READY_S
        while not self._ready.is_set():
            with contextlib.suppress(TimeoutError):
                await self.ready(_AGAIN_S)
            if self.ends or time.monotonic() > end:
                raise RuntimeError(f"{self.id} is not ready:\n{self._log.read_text()[-2000:]}")

    async def ready(self, seconds: float) -> None:
        """Wait until it is ready, also behind a fault.

        Raises:
            TimeoutError: it is not within `seconds`.
        """
        async with asyncio.timeout(seconds):
            await self._ready.wait()

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            with self._log.open("ab") as log:
                process = self._process = await asyncio.create_subprocess_exec(
                    sys.executable, *self._command, env=dict(self._env),
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log,
                )  # fmt: skip
            if not self._wanted.is_set():
                await self.kill()  # its fault came while it was being started
            await self._watch(process)
            code = await process.wait()
            self._ready.clear()
            if process is not self._told:
                self.ends.append(code)
                self._note(f"{self.id} ended by itself with {code}")
                await asyncio.sleep(_AGAIN_S)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if f"{self.id} ready".encode() in line:
                self._ready.set()

    async def kill(self) -> None:
        """SIGKILL; it stays dead until `begin`."""
        self._wanted.clear()
        self._told = self._process
        self._signal(signal.SIGKILL)

    async def terminate(self) -> None:
        """SIGTERM; it stays down until `begin`."""
        self._wanted.clear()
        process = self._told = self._process
        if process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_S):
                code = await process.wait()
            if code not in _IN_ORDER:
                self.ends.append(code)
                self._note(f"{self.id} ended with {code} when it was told to")
        except TimeoutError:
            self._note(f"{self.id} does not end; it is killed")
            self._signal(signal.SIGKILL)

    def begin(self) -> None:
        """Start it again."""
        self._wanted.set()

    def stop(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def close(self) -> None:
        """Be sure that it is gone."""
        self._wanted.clear()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        self._signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()


class Servers:
    """Three NATS servers as one cluster. They tell no client of each other: who is cut off stays so."""

    def __init__(self, names: Sequence[str]) -> None:
        routes = free_ports(len(names))
        listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.by_name = {
            name: Server(
                name=name,
                config=f'cluster {{ name: "chaos", listen: "127.0.0.1:{port}", routes: [{listed}], no_advertise: true }}',
            )
            for name, port in zip(names, routes, strict=True)
        }

    async def start(self) -> None:
        """Start all, and wait until they have a leader."""
        for server in self.by_name.values():
            server.launch()
        for server in self.by_name.values():
            await asyncio.to_thread(server.wait_ready)

    @property
    def urls(self) -> list[str]:
        """Where they listen, in the order of their names."""
        return [server.url for server in self.by_name.values()]

    @property
    def ports(self) -> list[int]:
        """The same, as port numbers."""
        return [int(url.rpartition(":")[2]) for url in self.urls]

    async def healthy(self, seconds: float) -> None:
        """Wait until all of them say that they are.

        Raises:
            AssertionError: one does not.
        """
        end = time.monotonic() + seconds
        for server in self.by_name.values():
            while True:
                try:
                    await asyncio.to_thread(server.wait_ready)
                    break
                except AssertionError:
                    if time.monotonic() > end:
                        raise

    def close(self) -> None:
        """End all, and remove their stores."""
        for server in self.by_name.values():
            server.close()


class Wires:
    """The process that everybody's connections go through (`wires.py`)."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self.urls: dict[str, str] = {}
        """The servers' addresses for each party, joined by commas."""

    async def start(self, parties: Sequence[str], servers: Sequence[int]) -> None:
        """Give each party ports of its own for the `servers`' ports."""
        script = Path(__file__).with_name("wires.py")
        wanted = json.dumps({party: list(servers) for party in parties})
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), wanted, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        ports: dict[str, list[int]] = json.loads(await self._line())
        self.urls = {party: ",".join(f"nats://127.0.0.1:{port}" for port in own) for party, own in ports.items()}

    async def cut(self, who: str, way: str, part: str) -> None:
        """Hold up what a party sends, receives, or both."""
        await self._tell({"who": who, "way": way, "part": part})

    async def heal(self, who: str, *, late: bool) -> None:
        """Carry on: with what was held up, or without it."""
        await self._tell({"who": who, "heal": "late" if late else "reset"})

    async def _tell(self, order: Mapping[str, str]) -> None:
        assert self._process is not None and self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._line()

    async def _line(self) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the wires have ended with {await self._process.wait()}")
        return line

    async def close(self) -> None:
        """End the process, and so all connections."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
