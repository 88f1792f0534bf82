"""A mesh on three NATS servers in containers, which are killed and cut off their network while callers ask."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from agentmesh.edge.api import call_api
from agentmesh.edge.connection import connect
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Transport
from agentmesh.errors import MeshError
from agentmesh.subjects import Subjects
from containers.cluster import NAMES, Containers, cluster
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from live.traffic import Traffic
from support import eventually, run

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(600)]

LONG_S = 500
AGENTS = ("a1", "a2", "a3", "a4")
ASK_S = 45.0
"""Much longer than an election takes: the loss of one server must not show in the answers."""
SHORT_S = 2.0
"""Shorter than the outage of all: these callers must be told in time."""


@pytest.mark.usefixtures("engine")
def test_a_killed_leader_and_one_cut_off_its_network_cost_time_and_nothing_else(subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        context = tmp_path / "image"
        context.mkdir()
        with cluster(context) as servers:
            try:
                await _story(servers, subjects, tmp_path)
            except BaseException:
                print(servers.logs())
                raise

    run(main(), LONG_S)


async def _story(servers: Containers, subjects: Subjects, logs: Path) -> None:
    await _make_streams(servers, subjects)
    async with process_mesh(servers, subjects, logs, "n1", "n2") as mesh:
        for agent in AGENTS:
            await mesh.client.start_agent(agent, kind="Recorder", timeout=PATIENCE_S)
        traffic = Traffic(mesh, AGENTS, ASK_S)
        traffic.start()
        try:
            await traffic.answered(5, "before anything happens")
            journal = subjects.stream("journal")
            killed = await leader(mesh.transport, journal)
            await asyncio.to_thread(servers.kill, killed)
            await traffic.answered(5, "after the leader was killed")
            await asyncio.to_thread(servers.start, killed)
            await _whole(mesh, killed)
            cut_off = await leader(mesh.transport, journal)
            await asyncio.to_thread(servers.cut_off, cut_off)
            await traffic.answered(5, "while the next leader is cut off")
            assert not traffic.errors(), "a majority was there all the time"
            await _without_a_majority(servers, mesh, next(name for name in NAMES if name != cut_off))
            await traffic.answered(5, "since two of three are back")
            await asyncio.to_thread(servers.plug_in, cut_off)
            await _whole(mesh, cut_off)
            await traffic.answered(5, "since all three are back")
            await traffic.end()
            await traffic.audit()
        finally:
            await traffic.close()


async def _make_streams(servers: Containers, subjects: Subjects) -> None:
    async with asyncio.timeout(PATIENCE_S):
        transport = await connect(servers.url, name="setup", wait_s=math.inf)
    try:
        await ensure(transport, subjects, replicas=len(NAMES))
    finally:
        await transport.close()


async def _without_a_majority(servers: Containers, mesh: ProcessMesh, second: str) -> None:
    """Kill a second server: nothing can be stored. A caller gets that error within its timeout; then the server comes back."""
    await asyncio.to_thread(servers.kill, second)
    try:
        hasty = Traffic(mesh, AGENTS, SHORT_S)
        hasty.start()
        try:
            await eventually(lambda: len(hasty.errors()) >= len(AGENTS), PATIENCE_S, "errors")
        finally:
            await hasty.end()
        assert {error.code for error in hasty.errors()} <= {"unavailable", "timeout"}, hasty.errors()
    finally:
        await asyncio.to_thread(servers.start, second)


async def leader(transport: Transport, stream: str) -> str:
    """Name of the server that leads `stream`, once one does."""
    found = ""

    async def elected() -> bool:
        nonlocal found
        try:
            found = json.loads(await call_api(transport, f"STREAM.INFO.{stream}"))["cluster"].get("leader") or ""
        except MeshError:
            return False
        return bool(found)

    await eventually(elected, PATIENCE_S, f"a leader of {stream}")
    return found


async def _whole(mesh: ProcessMesh, name: str) -> None:
    """Wait until every replica of the journal is there and up to date, that of `name` too."""

    async def current() -> bool:
        try:
            info = json.loads(await call_api(mesh.transport, f"STREAM.INFO.{mesh.subjects.stream('journal')}"))["cluster"]
        except MeshError:
            return False
        replicas = info.get("replicas") or []
        return len(replicas) == len(NAMES) - 1 and all(r["current"] and not r.get("offline") for r in replicas)

    await eventually(current, PATIENCE_S, f"the replica on {name}")
