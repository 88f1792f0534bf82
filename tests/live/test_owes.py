"""Who waits for whom, of real agents: while they wait, after their nodes were killed, and while they sleep."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from agentmesh.subjects import Subjects
from agentmesh_client import WaitGraph
from live import steppers
from live.mesh import PATIENCE_S, LocalMesh, ProcessMesh, local_mesh
from live.test_between_agents import do, start
from live.test_history import command
from live.test_steps import LONG_S, program, stepping_mesh
from live.test_waits import has_step
from support import Server, eventually, run

type AnyMesh = LocalMesh | ProcessMesh

DEFER = ["then", {"decision": "defer"}]


async def shows(mesh: AnyMesh, *wanted: tuple[Any, ...]) -> WaitGraph:
    """The graph, once it has these waits: who, for whom, how, and what has become of the request."""
    found: list[WaitGraph] = []

    async def there() -> bool:
        found[:] = [await mesh.client.owes()]
        return sorted(map(str, wanted)) == sorted(
            str((entry.waiter, entry.agent, entry.kind, entry.stage)) for entry in found[0].waits
        )

    await eventually(there, PATIENCE_S, f"{wanted} in the graph")
    return found[0]


def standing(graph: WaitGraph) -> list[tuple[Any, ...]]:
    """All that is said of the waits but where the agents are."""
    return [(e.waiter, e.agent, e.kind, e.stage, e.ref, e.request, e.since, e.deadline) for e in graph.waits]


@pytest.mark.slow
@pytest.mark.case(500)
@pytest.mark.case(502)
def test_after_a_kill_the_same_agents_wait_for_each_other(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with stepping_mesh(server, subjects, tmp_path, "n1", "n2", "n3") as mesh:
            for agent in "ab":
                await mesh.client.start_agent(agent, kind="Doer", timeout=PATIENCE_S)
            gate = tmp_path / "gate"
            inner = [["call", str(tmp_path / "calls"), "b1"], ["gate", str(gate)]]
            asked = asyncio.create_task(mesh.client.ask("a", program(["ask", "b", inner, 300.0]), timeout=PATIENCE_S))
            waits = ((None, "a", "ask", "running"), ("a", "b", "turn", "running"))
            await eventually(lambda: has_step(mesh, "b"), PATIENCE_S, "b's first step")
            before = await shows(mesh, *waits)
            outer, wait = before.waits
            assert wait.request == outer.ref and wait.since is not None and wait.deadline is not None
            assert wait.deadline - wait.since > dt.timedelta(seconds=200)
            assert {entry.state for entry in before.waits} == {"running"}
            assert before.circles == () and (await mesh.client.owes("a")).waits == before.waits

            victim = await mesh.host_of("a")
            await victim.kill()
            assert standing(await shows(mesh, *waits)) == standing(before), "while it has no owner, or a new one"

            async def elsewhere() -> bool:
                return (await mesh.records("a"))[-1].node != victim.id

            await eventually(elsewhere, PATIENCE_S, "the takeover")
            after = await shows(mesh, *waits)
            assert standing(after) == standing(before)
            assert [entry.state for entry in after.waits] == ["running", "running"]

            for host in mesh.hosts.values():
                if host.running:
                    await host.kill()

            async def nobody_left() -> bool:
                return {entry.state for entry in (await mesh.client.owes()).waits} == {"not_placed"}

            await eventually(nobody_left, PATIENCE_S, "the end of the leases")
            without = await mesh.client.owes()  # of a mesh without any process
            assert standing(without) == standing(before)
            for own_id in ("s2", "m1"):
                verb = "supervisor" if own_id == "s2" else "node"
                await mesh.start(verb, own_id, *([] if verb == "supervisor" else ["--agents", str(steppers.__file__)]))
            gate.touch()
            assert json.loads((await asked).text) == [["b1"]]
            await shows(mesh)

    run(main(), LONG_S)


def ring(*agents: str) -> str:
    """A prompt for the first of these: each tells the next one, tagged, and keeps its own request open. The last tells the
    first."""
    prompt = do(DEFER)
    for agent in reversed((*agents[1:], agents[0])):
        prompt = do(["tell", {"target": agent, "prompt": prompt, "tag": f"for {agent}"}], DEFER)
    return prompt


@pytest.mark.case(503)
def test_a_circle_of_three_agents_by_tagged_tells_is_shown_also_while_they_sleep(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, rest_s=0.2, passivate_s=1.0) as mesh:
            await start(mesh, "a", "b", "c", "d")
            ref = await mesh.client.tell("a", ring("a", "b", "c"))
            waits = [(x, y, "tag", "deferred") for x, y in (("a", "b"), ("b", "c"), ("c", "a"))]
            found = await shows(mesh, (None, "a", "tell", "deferred"), *waits)
            (circle,) = found.circles
            assert (circle.agents, circle.blocked, circle.others, circle.deadline) == (("a", "b", "c"), False, (), None)
            assert {entry.request for entry in found.waits if entry.waiter == "a"} == {ref}
            assert all(entry.since is not None and entry.state == "idle" for entry in found.waits)

            async def asleep() -> bool:
                return all([(await mesh.records(name))[-1].kind == "rest" for name in "abcd"])

            await eventually(asleep, PATIENCE_S, "the rest of all")
            assert [(await mesh.records(name))[-1].open for name in "abcd"] == [3, 2, 2, 0]
            resting = await mesh.client.owes()
            assert (resting.waits, resting.circles) == (found.waits, found.circles)
            assert (resting.agents, resting.read) == (4, 3), "d is at rest, and nothing of it is open"
            assert (await mesh.client.owes("d")).waits == ()

            shown = await command(mesh, "owes")
            assert "circle: a -> b -> c -> a; they can still answer" in shown
            assert [line.split()[:4] for line in shown.splitlines()[1:5]] == [
                ["client", "a", "tell", "deferred"],
                *([x, y, "tag", "deferred"] for x, y in (("a", "b"), ("b", "c"), ("c", "a"))),
            ]
            told = json.loads(await command(mesh, "owes", "a", "-o", "json"))
            assert [(w["waiter"], w["agent"], w["kind"]) for w in told["waits"]] == [
                (None, "a", "tell"), ("a", "b", "tag"), ("b", "c", "tag"), ("c", "a", "tag"),
            ]  # fmt: skip
            assert told["v"] == 1 and told["circles"][0]["agents"] == ["a", "b", "c"]
            assert "nobody waits for d" in await command(mesh, "owes", "d", errors=True)
            assert "there is no agent 'nobody'" in await command(mesh, "owes", "nobody", code=3)

            assert await mesh.client.reply("c", next(e.ref or "" for e in found.waits if e.agent == "c"), "enough")
            broken = await shows(
                mesh, (None, "a", "tell", "deferred"), ("a", "b", "tag", "deferred"), ("c", "a", "tag", "deferred")
            )
            assert broken.circles == ()

    run(main(), 110)


@pytest.mark.case(502)
def test_a_halted_agent_its_queue_and_an_exclusive_request(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "tired", "desk")
            await mesh.client.ask("tired", do(["then", {"decision": "halt"}]))
            soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
            first = await mesh.client.tell("tired", "hello", deadline=soon)
            kept = await mesh.client.tell("desk", do(["then", {"decision": "exclusive"}]))
            behind = await mesh.client.tell("desk", "behind")
            found = await shows(
                mesh,
                (None, "tired", "tell", "queued"),
                (None, "desk", "tell", "deferred"),
                (None, "desk", "tell", "queued"),
            )
            by_ref = {entry.ref: entry for entry in found.waits}
            ends = by_ref[first].deadline
            assert by_ref[first].state == "halted" and ends is not None and abs(ends - soon) < dt.timedelta(seconds=1)
            assert by_ref[kept].exclusive and by_ref[kept].deadline is not None and not by_ref[behind].exclusive
            assert "deferred, exclusive" in await command(mesh, "owes", "desk")
            await mesh.client.resume("tired")
            assert await mesh.client.cancel("desk", kept)
            await shows(mesh)

    run(main(), 110)
