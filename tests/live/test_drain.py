"""Nodes that leave in order, as processes under load: nobody notices but for the time (case 222)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.subjects import Subjects
from agentmesh.wire import decode_outcome
from live.mesh import PATIENCE_S, Host, ProcessMesh, process_mesh
from support import Server, eventually, run

AGENTS = [f"a{number}" for number in range(12)]
NODES = ("n1", "n2", "n3")


class Load:
    """Callers that ask without a pause, one per agent."""

    def __init__(self, mesh: ProcessMesh) -> None:
        self._mesh = mesh
        self._stop = False
        self.answers: dict[str, list[str]] = {}

    async def __call__(self, agent: str) -> None:
        for number in itertools.count():
            if self._stop:
                return
            text = await self._ask(agent, f"{agent} {number}")
            assert text == f"{agent} {number}"
            self.answers.setdefault(agent, []).append(text)

    async def _ask(self, agent: str, prompt: str) -> str:
        if AGENTS.index(agent) % 2:
            return (await self._mesh.client.ask(agent, prompt, timeout=PATIENCE_S)).text
        # A plain NATS request: it has one reply and no second try.
        subject = self._mesh.subjects.ask(agent)
        reply = await self._mesh.transport.request(subject, prompt.encode(), timeout=PATIENCE_S)
        return decode_outcome(reply.data).unwrap()

    @property
    def answered(self) -> int:
        return sum(len(texts) for texts in self.answers.values())

    async def goes_on(self, count: int = 50) -> None:
        """Wait for so many more answers."""
        wanted = self.answered + count
        await eventually(lambda: self.answered >= wanted, PATIENCE_S, f"{count} more answers")

    def stop(self) -> None:
        self._stop = True


@contextlib.asynccontextmanager
async def under_load(mesh: ProcessMesh) -> AsyncIterator[Load]:
    """Agents on all nodes, each with a caller; in the end, every prompt was answered once and took effect once, in order."""
    for agent in AGENTS:
        await mesh.client.start_agent(agent, kind="Recorder")
    load = Load(mesh)
    async with asyncio.TaskGroup() as callers:
        for agent in AGENTS:
            callers.create_task(load(agent))
        await load.goes_on()
        yield load
        load.stop()
    for agent in AGENTS:
        status = await mesh.client.status(agent, True)
        assert status.agent_state["prompts"] == load.answers[agent], f"{agent} lost a turn, or had one twice"


async def drained(host: Host) -> None:
    assert await host.terminate() == 0, host.log


@pytest.mark.case(222)
def test_sigterm_under_load_hands_everything_over_and_exits_0(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path, *NODES) as mesh, under_load(mesh) as load:
            await drained(mesh.hosts["n1"])
            placed = {agent.name: agent.node for agent in await mesh.client.list_agents()}
            assert set(placed.values()) == {"n2", "n3"}, "they run elsewhere before it exits"
            await load.goes_on()

    run(scenario(), timeout=120)


@pytest.mark.case(222)
def test_a_turn_that_runs_may_end_before_its_agent_moves(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path, *NODES) as mesh:
            runs, gate = tmp_path / "runs", tmp_path / "gate"
            await mesh.client.start_agent("a", kind="Recorder", options={"runs": str(runs)})
            asking = asyncio.create_task(mesh.client.ask("a", f"gate:{gate} done", timeout=PATIENCE_S))
            waiting = asyncio.create_task(mesh.client.ask("a", "next", timeout=PATIENCE_S))
            await eventually(lambda: runs.exists() and "gate" in runs.read_text())
            host = await mesh.host_of("a")
            leaving = asyncio.create_task(host.terminate())

            async def is_draining() -> bool:
                return any(node.id == host.id and node.lease.draining for node in await mesh.client.nodes())

            await eventually(is_draining)
            assert await mesh.client.whereis("a") == host.id, "it was taken away in mid-turn"
            gate.touch()
            assert (await asking).text == "done"
            assert (await asking).node == host.id
            assert (await waiting).text == "next"  # there or elsewhere: the agents of a node move one after another
            assert await leaving == 0
            assert (await mesh.client.ask("a", "last", timeout=PATIENCE_S)).node != host.id
            assert len(runs.read_text().splitlines()) == 3, "a turn ran twice"

    run(scenario(), timeout=120)


@pytest.mark.case(222)
def test_a_rolling_restart_of_all_nodes_under_load(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path, *NODES) as mesh, under_load(mesh) as load:
            for own_id in NODES:
                await drained(mesh.hosts[own_id])
                await mesh.node(own_id)
                await load.goes_on()

    run(scenario(), timeout=180)
