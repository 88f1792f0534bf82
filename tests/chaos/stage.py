"""A mesh of processes on a cluster, behind wires, and the clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from agentmesh.edge.api import call_api
from agentmesh.edge.connection import connect
from agentmesh.edge.registry import Registry
from agentmesh.errors import MeshError
from agentmesh.registry_values import SupervisorLease
from agentmesh.subjects import SUPERVISOR_KEY, Subjects
from agentmesh_client.client import Mesh
from chaos.cast import Kept, Servers, Wires
from chaos.records import Recorder
from chaos.schedule import CLIENTS, LEADER_OF, LEADING_SUPERVISOR, NODES, SERVERS, SUPERVISORS

TESTS = Path(__file__).parents[1]
AGENTS = Path(__file__).with_name("agents.py")
_HELPERS = ("c-setup", "operator")
_LOOK_S = 1.0
_CONNECT_S = 30.0
_SETTINGS = MappingProxyType({"MESH_PASSIVATE_S": "5", "MESH_DRAIN_S": "5"})
"""Agents fall asleep and wake during a run, and a drain does not take up all of it."""


class Stage:
    """Everything that runs, by name. Also where the clients of the workload live (`sim.workload.Place`)."""

    def __init__(self, seed: int, logs: Path, note: Callable[[str], None]) -> None:
        self.subjects = Subjects()
        self.servers = Servers(SERVERS)
        self.wires = Wires()
        self.processes: dict[str, Kept] = {}
        self.recorder = Recorder((), self.subjects, self.now)
        self._seed = seed
        self._logs = logs
        self._note = note
        self._began = time.monotonic()

    def now(self) -> float:
        """Seconds since the stage was made."""
        return time.monotonic() - self._began

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Servers, wires, recorder, supervisors and nodes, while the context lasts."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, self.servers.close)
            await self.servers.start()
            stack.push_async_callback(self.wires.close)
            await self.wires.start([*NODES, *SUPERVISORS, *CLIENTS, *_HELPERS], self.servers.ports)
            self.recorder = Recorder(self.servers.urls, self.subjects, self.now)
            stack.push_async_callback(self.recorder.close)
            await self.recorder.start()
            for own_id in (*SUPERVISORS, *NODES):
                self.processes[own_id] = self._process(own_id)
                stack.push_async_callback(self.processes[own_id].close)
            await asyncio.gather(*(process.start() for process in self.processes.values()))
            yield

    def _process(self, own_id: str) -> Kept:
        node = own_id in NODES
        command = ["-m", "agentmesh_node", "node" if node else "supervisor", "--id", own_id, "--wait", "60"]
        command += ["--nats", self.wires.urls[own_id], "--root", self.subjects.root]
        command += ["--agents", str(AGENTS)] if node else []
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "OTEL_"))}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), env.get("PYTHONPATH"))))
        return Kept(own_id, command, self._logs / f"{own_id}.log", env | _SETTINGS, self._note)

    # --- clients --------------------------------------------------------------------------------------------------
    def dice(self, purpose: str) -> random.Random:
        """See `Place.dice`."""
        return random.Random(f"{self._seed}/{purpose}")

    @contextlib.asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[Mesh]:
        """See `Place.client`. What it is told is recorded."""
        transport = await connect(self.wires.urls[name], name=name, connect_timeout=_CONNECT_S)
        try:
            inbox = transport.new_inbox()
            await self.recorder.overhear(inbox)
            mesh = Mesh(transport, self.subjects, inbox=inbox)
            await mesh.open()
            try:
                yield mesh
            finally:
                await mesh.close()
        finally:
            await transport.close()

    def spawn[T](self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """See `Place.spawn`: all clients are in this process."""
        return asyncio.create_task(work, name=name)

    # --- who is who -----------------------------------------------------------------------------------------------
    async def who(self, target: str, instead: str) -> str:
        """See `chaos.storm.Roles`."""
        if target == LEADING_SUPERVISOR:
            return await self._leading_supervisor() or instead
        if target.startswith(LEADER_OF):
            return await self._stream_leader(target.removeprefix(LEADER_OF)) or instead
        return target

    async def _leading_supervisor(self) -> str | None:
        for ear in self.recorder.ears:
            with contextlib.suppress(MeshError, TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    entry = await Registry(ear, self.subjects).get(SUPERVISOR_KEY)
                if entry is not None and entry.value is not None:
                    found = msgspec.json.decode(entry.value, type=SupervisorLease).id
                    return found if found in SUPERVISORS else None
        return None

    async def _stream_leader(self, role: Any) -> str | None:
        for ear in self.recorder.ears:
            with contextlib.suppress(MeshError):
                reply = await call_api(ear, f"STREAM.INFO.{self.subjects.stream(role)}", timeout=_LOOK_S)
                leader = msgspec.json.decode(reply).get("cluster", {}).get("leader")
                return str(leader) if leader in SERVERS else None
        return None
