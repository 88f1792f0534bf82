"""What supervision promises, on real processes: supervisors that are killed, nodes that hang, inputs that kill nodes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentmesh.edge.read import read_all
from agentmesh.errors import AgentFailed, MeshError
from agentmesh.registry_values import Restart
from agentmesh.subjects import Subjects
from live import deadly
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, run

DEADLY = ("--agents", str(deadly.__file__))
LONG_S = 150


@contextlib.asynccontextmanager
async def kept_alive(mesh: ProcessMesh, *nodes: str) -> AsyncIterator[list[int]]:
    """Nodes of the kinds of `deadly`, started again whenever they end; yields their exit codes."""
    codes: list[int] = []

    async def keep(own_id: str) -> None:
        while True:
            host = await mesh.start("node", own_id, *DEADLY)
            codes.append(await host.ended())

    tasks = [asyncio.create_task(keep(own_id)) for own_id in nodes]
    await eventually(lambda: all(f"node {n} ready" in mesh.hosts[n].log for n in nodes if n in mesh.hosts), PATIENCE_S)
    try:
        yield codes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


# --- supervisors --------------------------------------------------------------------------------------------------
@pytest.mark.case(223)
def test_a_killed_leader_stops_no_agent_and_a_standby_handles_a_node_that_dies_with_it(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            await mesh.saw("leading", supervisor="s1")
            await mesh.start("supervisor", "s2")
            await mesh.client.start_agent("a", kind="Recorder")
            owner = await mesh.host_of("a")
            await mesh.hosts["s1"].kill()
            assert (await mesh.client.ask("a", "without a leader")).node == owner.id
            await owner.kill()
            answer = await mesh.client.ask("a", "after both", timeout=PATIENCE_S)
            assert answer.node != owner.id
            await mesh.saw("leading", supervisor="s2")

    run(scenario(), LONG_S)


@pytest.mark.case(224)
def test_with_all_supervisors_down_agents_work_and_one_that_returns_repairs(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path, "n1", "n2") as mesh:
            for agent in ("a", "b"):
                await mesh.client.start_agent(agent, kind="Recorder")
            victim = await mesh.host_of("a")
            other = "b"
            assert await mesh.host_of(other) is not victim
            await mesh.hosts["s1"].kill()
            await victim.kill()
            assert (await mesh.client.ask(other, "still here")).text == "still here"
            asking = asyncio.create_task(mesh.client.ask("a", "any owner", timeout=PATIENCE_S))
            await mesh.start("supervisor", "s1")
            assert (await asking).node not in (None, victim.id)

    run(scenario(), LONG_S)


# --- nodes that hang ----------------------------------------------------------------------------------------------
@pytest.mark.case(227)
def test_a_callback_that_blocks_the_loop_for_long_causes_no_takeover_and_is_named(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            node = await mesh.start("node", "n1", *DEADLY)
            await mesh.client.start_agent("a", kind="Deadly")
            await mesh.start("node", "n2", *DEADLY)
            generation = (await mesh.client.status("a")).generation
            answer = await mesh.client.ask("a", "block:10", timeout=PATIENCE_S)
            assert answer.node == "n1"
            assert (await mesh.client.status("a")).generation == generation
            assert not mesh.seen("node_gone") and not mesh.seen("moved")
            reported = [line for line in node.log.splitlines() if "callback blocked the loop" in line]
            assert len(reported) == 1
            assert '"agent": "a"' in reported[0] and '"callback": "handle_response"' in reported[0]

    run(scenario(), LONG_S)


def test_a_loop_that_hangs_ends_its_process_and_its_agents_go_on_elsewhere(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path, env={"MESH_STALL_LIMIT_S": "2"}) as mesh:
            node = await mesh.start("node", "n1", *DEADLY)
            for agent in ("a", "bystander"):
                await mesh.client.start_agent(agent, kind="Deadly")
            await mesh.client.tell("a", "hang")
            asking = asyncio.create_task(mesh.client.ask("bystander", "are you there?", timeout=PATIENCE_S))
            assert await node.ended() == 70
            assert "the loop hangs" in node.log
            async with kept_alive(mesh, "n2"):
                assert (await asking).text == "are you there?"

    run(scenario(), LONG_S)


# --- inputs that kill nodes -----------------------------------------------------------------------------------------
@pytest.mark.case(209)
def test_a_prompt_that_kills_its_node_becomes_a_dead_letter_and_bystanders_are_answered(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh, kept_alive(mesh, "n1", "n2") as codes:
            for agent in ("poisoned", "b0", "b1", "b2", "b3"):
                await mesh.client.start_agent(agent, kind="Deadly", timeout=PATIENCE_S)
            killing = asyncio.create_task(mesh.client.ask("poisoned", "die now", timeout=PATIENCE_S))
            behind = asyncio.create_task(mesh.client.ask("poisoned", "behind it", timeout=PATIENCE_S))
            asked: list[str] = []

            async def bystander(agent: str) -> None:
                for number in itertools.count():
                    if killing.done():
                        return
                    prompt = f"{agent} {number}"
                    asked.append(prompt)
                    assert (await mesh.client.ask(agent, prompt, timeout=PATIENCE_S)).text == prompt

            async with asyncio.TaskGroup() as bystanders:
                for number in range(4):
                    bystanders.create_task(bystander(f"b{number}"))
                with pytest.raises(MeshError) as refused:
                    await killing
            assert refused.value.code == "dead_letter"
            assert (await behind).text == "behind it"
            assert codes == [9, 9, 9, 9], "the first death charges nobody, three more are the limit"
            letters = await read_all(mesh.transport, subjects.stream("dead"), subjects.dead("poisoned"))
            assert [(letter.data, letter.headers["Mesh-Reason"]) for letter in letters] == [(b"die now", "dead_letter")]
            for number in range(4):
                state = (await mesh.client.status(f"b{number}", True)).agent_state
                assert state["prompts"] == [prompt for prompt in asked if prompt.startswith(f"b{number} ")]

    run(scenario(), LONG_S)


# --- the restart policy ---------------------------------------------------------------------------------------------
@pytest.mark.case(229)
def test_permanent_agents_restart_until_the_window_is_full_and_then_are_failed(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            await mesh.start("node", "n1", *DEADLY)
            runs = tmp_path / "runs"
            restart = Restart(policy="permanent", max=2, within_s=60)
            await mesh.client.start_agent("a", kind="Frail", options={"runs": str(runs)}, restart=restart)
            waiting = asyncio.create_task(mesh.client.ask("a", "crash", timeout=PATIENCE_S))

            async def failed() -> bool:
                (entry,) = await mesh.client.list_agents()
                return entry.spec.status == "failed"

            await eventually(failed, PATIENCE_S, "the agent being failed")
            (entry,) = await mesh.client.list_agents()
            assert entry.spec.reason is not None
            assert "crashed 3 times in 60 s" in entry.spec.reason.message and "told to crash" in entry.spec.reason.message
            assert runs.read_text().split() == ["crash"] * 3
            with pytest.raises(AgentFailed):
                await mesh.client.ask("a", "hello", timeout=60)
            assert await mesh.client.cancel("a", (await mesh.saw("prompt_start", "a"))["ref"])
            with pytest.raises(MeshError, match="cancelled"):
                await waiting
            assert await mesh.client.resume("a")
            assert (await mesh.client.ask("a", "hello", timeout=PATIENCE_S)).text == "hello"
            (entry,) = await mesh.client.list_agents()
            assert (entry.spec.status, entry.spec.reason) == ("running", None)

    run(scenario(), LONG_S)


@pytest.mark.case(229)
def test_a_temporary_agent_ends_with_its_first_crash(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            await mesh.start("node", "n1", *DEADLY)
            options = {"runs": str(tmp_path / "runs")}
            await mesh.client.start_agent("t", kind="Frail", options=options, restart="temporary")
            with pytest.raises(MeshError) as ended:
                await mesh.client.ask("t", "crash", timeout=PATIENCE_S)
            assert ended.value.code == "stopped"
            (entry,) = await mesh.client.list_agents(stopped=True)
            assert entry.spec.reason is not None and "told to crash" in entry.spec.reason.message

    run(scenario(), LONG_S)


@pytest.mark.case(229)
def test_a_transient_agent_restarts_after_a_crash_and_stays_ended_after_a_stop(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with process_mesh(server, subjects, tmp_path) as mesh:
            await mesh.start("node", "n1", *DEADLY)
            runs = tmp_path / "runs"
            await mesh.client.start_agent("t", kind="Frail", options={"runs": str(runs)}, restart="transient")
            await mesh.client.tell("t", "crash")
            await eventually(lambda: runs.exists() and runs.read_text().count("crash") >= 2, PATIENCE_S, "a restart")
            await mesh.client.stop("t")
            (entry,) = await mesh.client.list_agents(stopped=True)
            assert entry.spec.status == "stopped"

    run(scenario(), LONG_S)
