"""The verbs for those who run a mesh, on real processes: drain, cordon, rebalance, events."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agentmesh.subjects import Subjects
from client.test_cli import Shell
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, run


async def loads(mesh: ProcessMesh) -> dict[str, int]:
    """Placements per node."""
    found: dict[str, int] = {}
    for agent in await mesh.client.list_agents():
        if agent.node is not None:
            found[agent.node] = found.get(agent.node, 0) + 1
    return found


@pytest.mark.case(222)
def test_drain_hands_over_ends_the_process_and_says_when(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        shell = Shell(server, subjects)
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            for number in range(4):
                await mesh.client.start_agent(f"a{number}", kind="Recorder")
            assert (await shell.run("drain", "n1"))[0] == "n1 is gone\n"
            assert await mesh.hosts["n1"].ended() == 0
            assert await loads(mesh) == {"n2": 4}
            _, err = await shell.run("drain", "n1", expect=3)
            assert "nothing called n1 is there" in err

    run(scenario(), timeout=120)


@pytest.mark.case(228)
def test_cordon_keeps_new_agents_away_and_rebalance_evens_out(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        shell = Shell(server, subjects)
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            assert (await shell.run("cordon", "n2"))[0] == "n2 is cordoned\n"

            async def state(wanted: bool) -> bool:
                return [node.lease.cordoned for node in await mesh.client.nodes()] == [False, wanted]

            await eventually(lambda: state(True))
            for number in range(10):
                await mesh.client.start_agent(f"a{number}", kind="Recorder")
                await mesh.client.ask(f"a{number}", "one")
            assert await loads(mesh) == {"n1": 10}
            await shell.run("cordon", "n2", "--off")
            await eventually(lambda: state(False))
            assert await shell.json("rebalance") == {"v": 1, "moving": 5}

            async def even() -> bool:
                return await loads(mesh) == {"n1": 5, "n2": 5}

            await eventually(even, PATIENCE_S)
            for number in range(10):
                await mesh.client.ask(f"a{number}", "two")
                status = await mesh.client.status(f"a{number}", True)
                assert status.agent_state["prompts"] == ["one", "two"]
            assert await shell.json("rebalance") == {"v": 1, "moving": 0}

    run(scenario(), timeout=120)


@pytest.mark.case(713)
def test_an_agent_moves_when_its_turn_lets_it_and_the_order_says_so(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    """Its backend tells of no calls, so its turn ends first."""

    async def scenario() -> None:
        shell = Shell(server, subjects)
        async with process_mesh(server, subjects, tmp_path, "n1", "n2", env={"MESH_DRAIN_S": "60"}) as mesh:
            runs, gate = tmp_path / "runs", tmp_path / "gate"
            await mesh.client.start_agent("a", kind="Recorder", options={"runs": str(runs)})
            asking = asyncio.create_task(mesh.client.ask("a", f"gate:{gate} done", timeout=PATIENCE_S))
            await eventually(lambda: runs.exists() and "gate" in runs.read_text())
            here = (await mesh.host_of("a")).id
            there = {"n1": "n2", "n2": "n1"}[here]
            assert await shell.json("move", "a", there) == {"v": 1, "name": "a", "node": there, "state": "moving"}
            assert (await shell.run("move", "a", there, "--wait", "--timeout", "0.1", expect=4))[0] == ""
            moving = asyncio.create_task(shell.run("move", "a", there, "--wait"))
            waiting = asyncio.create_task(mesh.client.ask("a", "next", timeout=PATIENCE_S))
            await asyncio.sleep(0)
            assert await mesh.client.whereis("a") == here
            gate.touch()
            out, _ = await moving
            assert out == f"a is on {there}\n"
            assert ((await asking).text, (await waiting).text) == ("done", "next")
            assert await mesh.client.whereis("a") == there
            assert (await shell.run("move", "a", there))[0] == f"a is on {there}\n"
            for words, code in ((("nobody", there), 3), (("a", "nowhere"), 3), (("a b", there), 2)):
                assert (await shell.run("move", *words, expect=code))[1].startswith("mesh: ")

    run(scenario(), timeout=120)


def test_events_shows_decisions_with_their_reasons(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        shell = Shell(server, subjects)
        async with process_mesh(server, subjects, tmp_path, "n1") as mesh, shell.started("events", "-o", "jsonl") as events:
            assert events.stderr is not None and events.stdout is not None
            assert b"waiting for events" in await events.stderr.readline()
            await mesh.client.start_agent("a", kind="Recorder")
            async with asyncio.timeout(PATIENCE_S):
                event: dict[str, Any] = {}
                while event.get("kind") != "placed":
                    event = json.loads(await events.stdout.readline())
            assert (event["agent"], event["node"], event["supervisor"]) == ("a", "n1", "s1")
            assert event["reason"] == "it has no owner; n1 fits and has the fewest agents (0)"

    run(scenario(), timeout=120)


@pytest.mark.case(674)
def test_a_drain_says_which_turn_it_waits_for(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        shell = Shell(server, subjects)
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            runs, gate = tmp_path / "runs", tmp_path / "gate"
            await mesh.client.start_agent("a", kind="Recorder", options={"runs": str(runs)})
            asking = asyncio.create_task(mesh.client.ask("a", f"gate:{gate} done", timeout=PATIENCE_S))
            await eventually(lambda: runs.exists() and "gate" in runs.read_text())
            host = await mesh.host_of("a")
            draining = asyncio.create_task(shell.run("drain", host.id))
            said = "the end of this node waits for a turn"
            await eventually(lambda: host.log.count(said) > 1, PATIENCE_S, "two lines of its node: the command asks more often")
            gate.touch()
            out, err = await draining
            assert out == f"{host.id} is gone\n"
            assert "waiting for a turn of a, begun " in err
            assert (await asking).text == "done"

    run(scenario(), timeout=120)
