"""Carries a schedule out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from agentmesh.errors import MeshError
from agentmesh_client.admin import Operator
from chaos.cast import Kept, Servers, Wires
from chaos.schedule import ALL_SERVERS, MOVES, Fault
from support import Server


class Roles(Protocol):
    """Who is who at this moment."""

    async def who(self, target: str, instead: str) -> str:
        """The name of the process in the part `target`; `instead`, if that is not known."""


class Storm:
    """What goes wrong in one run."""

    def __init__(
        self, processes: dict[str, Kept], servers: Servers, wires: Wires, roles: Roles, note: Callable[[str], None]
    ) -> None:
        self._processes = processes
        self._servers = servers
        self._wires = wires
        self._roles = roles
        self._note = note
        self.done: Counter[str] = Counter()
        """Faults by kind and sort of target."""

    async def blow(self, faults: Sequence[Fault], seconds: float, operator: Operator | None = None) -> None:
        """Let the faults happen. Returns `seconds` after the call, when all of them are over. `operator` asks for what moves
        agents."""
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._one(fault, began, operator))
        await asyncio.sleep(max(0.0, began + seconds - asyncio.get_running_loop().time()))

    async def _one(self, fault: Fault, began: float, operator: Operator | None) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, began + fault.at - loop.time()))
        target = await self._roles.who(fault.target, fault.instead) if fault.instead else fault.target
        names = list(self._servers.by_name) if fault.target == ALL_SERVERS else [target]
        shown = fault.line() if target == fault.target else f"{fault.line()}: {target}"
        self._note(shown)
        self.done[f"{fault.kind} {_sort(names[0])}"] += 1
        if fault.kind in MOVES:
            with contextlib.suppress(MeshError):  # nobody is there now that could do it
                await _move(fault, operator)
        elif fault.kind == "cut":
            await self._wires.cut(target, fault.way, fault.part)
            await asyncio.sleep(fault.seconds)
            await self._wires.heal(target, late=fault.late)
        else:
            await asyncio.gather(*(self._strike(name, fault) for name in names))
        self._note(f"over: {shown}")

    async def _strike(self, name: str, fault: Fault) -> None:
        process = self._processes.get(name)
        if process is not None:
            await _process(process, fault)
        else:
            await _server(self._servers.by_name[name], fault)


async def _move(fault: Fault, operator: Operator | None) -> None:
    assert operator is not None
    match fault.kind:
        case "drain":
            await operator.drain(fault.target)
        case "rebalance":
            await operator.rebalance()
        case _:
            await operator.move(fault.agent, fault.target)


async def _process(process: Kept, fault: Fault) -> None:
    match fault.kind:
        case "stop":
            process.stop()
            await asyncio.sleep(fault.seconds)
            process.go_on()
        case "kill":
            await process.kill()
            await asyncio.sleep(fault.seconds)
            process.begin()
        case _:
            await process.terminate()
            await asyncio.sleep(fault.seconds)
            process.begin()


async def _server(server: Server, fault: Fault) -> None:
    match fault.kind:
        case "stop":
            server.freeze()
            await asyncio.sleep(fault.seconds)
            server.thaw()
        case "kill":
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(fault.seconds)
            server.launch()
        case _:
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(fault.seconds)
            server.launch()


def _sort(name: str) -> str:
    if name.startswith("nats"):
        return "server"
    return {"n": "node", "s": "supervisor", "c": "client", "m": "mesh"}[name[0]]
