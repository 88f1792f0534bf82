"""What a node's log says of its agents: taken, handed over, ended, failed, drained; and that another process has its id."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agentmesh.errors import AgentFailed
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, local_mesh
from live.test_mailbox import CRASH
from support import Server, eventually, run


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Gives the lines so far that begin with a text, each as its agent."""
    caplog.set_level(logging.INFO)

    def found(begins: str) -> list[str | None]:
        return [getattr(record, "agent", None) for record in caplog.records if record.getMessage().startswith(begins)]

    return found


def test_a_nodes_log_has_each_agent_that_comes_and_goes(server: Server, subjects: Subjects, lines: Any) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, passivate_s=0.5, rest_s=0.1) as mesh:
            for name in ("coder", "frail"):
                await mesh.client.start_agent(name, kind="Puppet")
            for number in range(3):  # asleep and awake again: it is still the same node's
                await mesh.client.ask("coder", f"hello {number}", timeout=PATIENCE_S)
                await eventually(lambda: mesh.nodes["n1"].catalog.agents["coder"].owner is None, PATIENCE_S, "asleep")
            assert sorted(lines("agent taken")) == ["coder", "frail"]
            for _ in range(2):
                with pytest.raises(AgentFailed):
                    await mesh.client.ask("frail", CRASH, timeout=PATIENCE_S)
            await eventually(lambda: lines("agent failed") == ["frail"], PATIENCE_S, "the failure")
            await mesh.client.stop("frail")
            await eventually(lambda: lines("agent ended") == ["frail"], PATIENCE_S, "the end")
            await mesh.node("n2")
            await mesh.nodes["n1"].drain()
            assert (lines("draining"), lines("agent handed over"), lines("drained")) == ([None], ["coder"], [None])
            await mesh.client.ask("coder", "who has it now?", timeout=PATIENCE_S)
            assert lines("agent taken").count("coder") == 2

    run(main(), 110)


def test_a_node_whose_id_is_taken_yields_in_one_line(server: Server, subjects: Subjects, lines: Any) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            first = mesh.nodes.pop("n1")
            await mesh.node("n1")
            await asyncio.wait_for(first.drained.wait(), PATIENCE_S)
            await first.drain()
            assert len(lines("another process runs under this id")) == 1
            assert lines("draining") == []
            await first.close()
            assert await mesh.client.whereis("coder") == "n1"
            assert (await mesh.client.ask("coder", "still there?", timeout=PATIENCE_S)).text == "still there?"
            assert len(lines("another process runs under this id")) == 1
            assert [node.id for node in await mesh.client.nodes()] == ["n1"], "the newer one's lease stands"

    run(main(), 110)
