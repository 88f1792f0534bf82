"""What operators see of an agent at work: since when, for whom, in which tool; without waking those asleep."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from agentmesh.backend import Event
from agentmesh.subjects import Subjects
from agentmesh_node.backends.scripted import Delay
from live.agents import Recorder
from live.mesh import PATIENCE_S, local_mesh
from live.test_between_agents import do
from support import Server, eventually, run


class Searcher(Recorder):
    """Is in a tool until it is interrupted."""

    @staticmethod
    def script(prompt: str) -> list[Any]:
        calls = [("t1", "grep"), ("t2", "fetch")]
        return [
            *(Event("tool_use", {"id": call, "name": name, "input": {}}) for call, name in calls),
            Event("tool_result", {"id": "t2", "ok": True, "text": "there"}),
            Event("usage", {"input_tokens": 3, "cost_usd": 0.25}),
            Delay(3600),
            Event("result", {"text": "found"}),
        ]


@pytest.mark.case(320)
def test_an_agent_at_work_is_seen(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        kinds = {"Searcher": Searcher, "Recorder": Recorder}
        async with local_mesh(server, subjects, serves=kinds, passivate_s=0.5, rest_s=0.1) as mesh:
            before = dt.datetime.now(dt.UTC)
            for name, kind in (("busy", "Searcher"), ("asleep", "Recorder")):
                await mesh.client.start_agent(name, kind=kind)
            for text in ("find it", "and that"):
                await mesh.client.tell("busy", text)

            async def in_the_tool() -> bool:
                return (await mesh.client.status("busy")).tool == "grep"

            await eventually(in_the_tool, PATIENCE_S, "the tool")
            status = await mesh.client.status("busy")
            assert status.sender is None and status.since is not None
            assert before <= dt.datetime.fromisoformat(status.since) <= dt.datetime.now(dt.UTC)
            catalog = mesh.nodes["n1"].catalog
            await eventually(lambda: catalog.agents["asleep"].owner is None, PATIENCE_S, "asleep")
            asleep, busy = await mesh.client.list_agents(activity=True)
            assert (asleep.name, asleep.activity) == ("asleep", None)
            assert catalog.agents["asleep"].owner is None, "it is not woken by that"
            assert busy.activity is not None
            shown = busy.activity
            assert (shown.state, shown.queued, shown.tool, shown.since) == ("processing", 1, "grep", status.since)
            assert shown.usd == 0.25
            assert [entry.activity for entry in await mesh.client.list_agents()] == [None, None], "only where it is asked for"
            await mesh.client.interrupt("busy")
            await mesh.client.interrupt("busy")

    run(main(), 110)


@pytest.mark.case(320)
def test_for_whom_an_agent_works_is_seen(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            for name in ("boss", "worker"):
                await mesh.client.start_agent(name, kind="Puppet")
            gate = tmp_path / "gate"
            await mesh.client.ask("boss", do(["tell", {"target": "worker", "prompt": f"gate:{gate} done"}]))
            await mesh.saw("prompt_start", "worker")
            assert (await mesh.client.status("worker")).sender == "boss"
            gate.touch()
            await mesh.saw("prompt_stop", "worker")

            async def idle() -> bool:
                found = await mesh.client.status("worker")
                return (found.state, found.since, found.sender, found.tool) == ("idle", None, None, None)

            await eventually(idle, PATIENCE_S, "the turn's end")

    run(main(), 110)


@pytest.mark.case(320)
def test_a_supervisor_of_the_same_id_does_not_answer_in_the_nodes_place(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "s1") as mesh:  # the supervisor's id, as in `mesh up`
            await mesh.client.start_agent("coder", kind="Recorder")
            await mesh.client.ask("coder", "hello", timeout=PATIENCE_S)
            for _ in range(5):
                (entry,) = await mesh.client.list_agents(activity=True)
                assert entry.activity is not None and entry.activity.state == "idle"

    run(main(), 110)
