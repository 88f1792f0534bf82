"""The mesh of both builds: a server, supervisors, nodes and clients, each a process, and what is recorded of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

import agentmesh_client
from agentmesh.edge.registry import Registry, decode_spec
from agentmesh.edge.tasks import cancel_and_wait
from agentmesh.errors import Unavailable
from agentmesh.formats import required
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY, Subjects, spec_key
from agentmesh_client import Mesh
from chaos import calm
from chaos.cast import Kept
from chaos.records import Recorder
from compat.two_builds import builds
from compat.two_builds.caller import IMMORTAL, prepare
from compat.two_builds.users import Accounts
from judge.evidence import Evidence, Operation
from support import eventually

OLD_NODES, NEW_NODES = ("o1", "o2"), ("n1", "n2")
OLD_SUPERVISOR, NEW_SUPERVISOR = "so", "sn"
PATIENCE_S = 150.0
"""By when anything must have happened, on a machine that does other things too."""
SETTLE_S = 150.0
END_S = 120.0
"""How long a client may take to finish what it has begun."""


class Address(Protocol):
    """Where a server is reached, as one of its users."""

    @property
    def url(self) -> str: ...


class Stage:
    """All of it. Whatever begins with `o` or is `so` is of the build before."""

    def __init__(self, server: Address, old: Path, logs: Path, *, agents: str = "agents.py") -> None:
        """`agents`: the file, beside this one, with the agents of all nodes."""
        self._agents = builds.HERE / agents
        self.subjects = Subjects()
        self.server = server
        self.notes: list[str] = []
        self.processes: dict[str, Kept] = {}
        self.recorder = Recorder([server.url], self.subjects, time.monotonic, replicas=1)
        self.operations: list[Operation] = []
        self._began = time.monotonic()
        self._logs = logs
        self._trees = {True: old, False: builds.ROOT}
        self._callers: list[tuple[asyncio.subprocess.Process, asyncio.Task[None]]] = []
        self.mesh: Mesh
        self.secured = math.inf
        """Since when chains and keys of requests are kept by all (seconds since the epoch)."""
        self._accounts: Accounts
        self._asking: asyncio.Task[None]

    def note(self, line: str) -> None:
        """Say what happens, for a test that fails."""
        self.notes.append(f"{time.monotonic() - self._began:6.2f} s  {line}")

    @contextlib.asynccontextmanager
    async def running(
        self,
        *ids: str,
        callers: Sequence[str] = ("c-old", "c-new"),
        prepare: Callable[[Mesh], Awaitable[None]] = prepare,
        users: bool = True,
    ) -> AsyncIterator[None]:
        """These processes, by default all, and clients at work, while the context lasts; `prepare` starts the agents; `users` of
        another account ask them, too."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.recorder.close)
            await self.recorder.start()
            stack.push_async_callback(self.close)
            await self.start(*(ids or (OLD_SUPERVISOR, NEW_SUPERVISOR, *OLD_NODES, *NEW_NODES)))
            self.mesh = await stack.enter_async_context(agentmesh_client.connect(self.server.url, root=self.subjects.root))
            await prepare(self.mesh)
            for name in callers:
                await self._begin_to_call(name)
            if not users:
                yield
                return
            self._accounts = Accounts(self.mesh, self.operations)
            self._asking = asyncio.create_task(self._accounts.work())
            stack.push_async_callback(cancel_and_wait, self._asking, within_s=END_S)
            yield

    # --- processes ------------------------------------------------------------------------------------------------
    async def start(self, *ids: str) -> None:
        """Start processes that do not run, and return when they are ready."""
        for own_id in ids:
            if own_id not in self.processes:
                self.processes[own_id] = self._process(own_id)
        self.note(f"start {' '.join(ids)}")
        await asyncio.gather(*(self._up(self.processes[own_id]) for own_id in ids))

    async def _up(self, process: Kept) -> None:
        if process.begun:
            process.begin()
            await process.ready(PATIENCE_S)
        else:
            await process.start()

    async def kill(self, *ids: str) -> None:
        """SIGKILL."""
        self.note(f"kill {' '.join(ids)}")
        await asyncio.gather(*(self.processes[own_id].kill() for own_id in ids))

    async def terminate(self, *ids: str) -> None:
        """SIGTERM, and see them gone: nodes hand over their agents."""
        self.note(f"terminate {' '.join(ids)}")
        await asyncio.gather(*(self.processes[own_id].terminate() for own_id in ids))

    def _process(self, own_id: str) -> Kept:
        node = own_id in OLD_NODES + NEW_NODES
        command = ["-m", "agentmesh_node", "node" if node else "supervisor", "--id", own_id]
        command += ["--nats", self.server.url, "--root", self.subjects.root]
        command += ["--agents", str(self._agents)] if node else []
        env = builds.environment(self.tree(own_id)) | {"MESH_PASSIVATE_S": "2", "MESH_DRAIN_S": "5"}
        return Kept(own_id, command, self._logs / f"{own_id}.log", env, self.note)

    def tree(self, own_id: str) -> Path:
        """The code that a process of that id runs."""
        return self._trees[own_id in (*OLD_NODES, OLD_SUPERVISOR, "c-old")]

    async def close(self) -> None:
        """End all that runs."""
        for caller, _ in self._callers:
            with contextlib.suppress(ProcessLookupError):
                caller.kill()
            await caller.wait()
        await asyncio.gather(*(process.close() for process in self.processes.values()))

    def said(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-2500:]}" for log in sorted(self._logs.glob("*.log")))

    # --- clients --------------------------------------------------------------------------------------------------
    async def _begin_to_call(self, name: str) -> None:
        with (self._logs / f"{name}.log").open("ab") as log:
            caller = await asyncio.create_subprocess_exec(
                sys.executable, str(builds.HERE / "caller.py"), name, self.server.url, self.subjects.root,
                env=builds.environment(self.tree(name)),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._callers.append((caller, asyncio.create_task(self._hear(caller), name=name)))

    async def _hear(self, caller: asyncio.subprocess.Process) -> None:
        assert caller.stdout is not None
        while line := await caller.stdout.readline():
            self.operations.append(msgspec.json.decode(line, type=Operation))

    async def end_calls(self) -> None:
        """Let the clients finish what they have begun, and end."""
        self.note("no more calls")
        self._accounts.over.set()
        async with asyncio.timeout(END_S):
            await self._asking
        for caller, hearing in self._callers:
            assert caller.stdin is not None
            caller.stdin.close()
            async with asyncio.timeout(END_S):
                await hearing
                code = await caller.wait()
            assert code == 0, f"a client ended with {code}:\n{self.said()}"

    # --- what is seen ---------------------------------------------------------------------------------------------
    async def progress(self, count: int = 12) -> None:
        """Return when so many more requests are answered."""
        goal = len(self.recorder.results.messages) + count
        await self.until(lambda: len(self.recorder.results.messages) >= goal, f"{count} more answers")

    async def until(self, condition: Callable[[], object] | Callable[[], Awaitable[object]], what: str) -> None:
        """Wait for `condition`."""
        await eventually(condition, PATIENCE_S, what)
        self.note(what)

    async def leads(self, own_id: str) -> bool:
        """Whether that supervisor leads."""
        entry = await Registry(self.recorder.ears[0], self.subjects).get(SUPERVISOR_KEY)
        return (
            entry is not None and entry.value is not None and msgspec.json.decode(entry.value, type=SupervisorLease).id == own_id
        )

    def owners(self) -> dict[str, str]:
        """The node that owns each of the immortal agents, by its journal."""
        return {agent: record.node for agent, (record, _) in self.recorder.agents().items() if agent in IMMORTAL}

    def versions(self) -> dict[str, int]:
        """The version of each immortal agent's newest record."""
        return {agent: record.v for agent, (record, _) in self.recorder.agents().items() if agent in IMMORTAL}

    async def required(self, agents: Iterable[str]) -> dict[str, int]:
        """What the specs of `agents` ask of a node."""
        registry = Registry(self.recorder.ears[0], self.subjects)
        found = {agent: await registry.get(spec_key(agent)) for agent in agents}
        return {agent: required(decode_spec(entry).labels) for agent, entry in found.items() if entry is not None}

    async def set_all(self, watchdog_s: float) -> list[str]:
        """Set the watchdog of the immortal agents; those that have taken it."""
        return [agent for agent in IMMORTAL if await self._set(agent, watchdog_s)]

    async def _set(self, agent: str, watchdog_s: float) -> bool:
        try:
            await self.mesh.update_agent(agent, watchdog_s=watchdog_s, timeout=END_S)
        except Unavailable as error:
            self.note(f"{agent} is not set: {error.message}")
            return False
        return True

    async def watchdogs(self) -> dict[str, tuple[float | None, float | None]]:
        """Of the immortal agents, the watchdog in force and the one that the spec shows."""
        found: dict[str, tuple[float | None, float | None]] = {}
        for entry in await self.mesh.list_agents():
            if entry.name in IMMORTAL:
                status = await self.mesh.status(entry.name, timeout=END_S)
                told = None if status.configuration is None else status.configuration.watchdog_s
                found[entry.name] = told, entry.spec.watchdog_s
        return found

    async def settle(self) -> list[str]:
        """Wait until all is done that was accepted; what is not."""
        return await calm.settle(self.recorder, self.mesh, SETTLE_S, time.monotonic, immortal=IMMORTAL)

    async def evidence(self) -> tuple[Evidence, list[str]]:
        """All that was recorded, and what is wrong with the recording."""
        wrong = await self.recorder.finish()
        return self.recorder.evidence(self.operations), wrong

    def ended(self, ids: Sequence[str]) -> list[str]:
        """Processes of `ids` that have ended without being told to."""
        return [f"{own_id} ended with {code}" for own_id in ids for code in self.processes[own_id].ends if code]
