"""An agent whose answers have a type, while nodes of both builds run: at worst its answers are those of the build before, which
checks none; nothing is lost, and with the newer build the type is back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmesh_client import Mesh
from compat.two_builds import builds
from compat.two_builds.stage import NEW_NODES, NEW_SUPERVISOR, OLD_NODES, OLD_SUPERVISOR, PATIENCE_S, Stage
from compat.two_builds.typed_agents import RUNS, WORDS, Sum, enough
from support import Server, run

NAME = "adder"
OLD, NEW = OLD_NODES[0], NEW_NODES[0]
FITS = '{"total":4}'
WHOLE_S = 330.0


@pytest.mark.slow
@pytest.mark.case(769)
@pytest.mark.timeout(WHOLE_S + 60)
def test_an_agent_with_a_type_goes_through_nodes_that_know_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, logs, runs = tmp_path / "old", tmp_path / "logs", tmp_path / "runs"
    old.mkdir()
    logs.mkdir()
    runs.touch()
    monkeypatch.setenv(RUNS, str(runs))
    builds.unpack(old)
    with Server() as server:
        stage = Stage(server, old, logs, agents="typed_agents.py")
        try:
            run(_play(stage, runs), timeout=WHOLE_S)
        except BaseException:
            print("\n".join(stage.notes), stage.said())
            raise


async def _play(stage: Stage, runs: Path) -> None:
    async with stage.running(NEW_SUPERVISOR, NEW, OLD_SUPERVISOR, callers=(), prepare=_begin, users=False):
        mesh = stage.mesh
        assert await _has_schema(mesh)
        first = asyncio.create_task(mesh.ask_outcome(NAME, "add 2 2", timeout=PATIENCE_S))
        await stage.until(lambda: runs.read_text(), "the model is told that its answer does not fit")
        await stage.start(OLD)
        await stage.kill(NEW)
        # Between the two answers: the older node knows of no second one, and ends the turn with the first.
        outcome = await first
        assert (outcome.ok, outcome.text, outcome.node) == (True, WORDS, OLD)
        second = await mesh.ask_outcome(NAME, "add 2 2", timeout=PATIENCE_S)
        assert (second.ok, second.text, second.node) == (True, WORDS, OLD)
        await stage.start(NEW)
        await stage.terminate(OLD)
        enough(runs).touch()
        third = await mesh.ask(NAME, "add 2 2", timeout=PATIENCE_S, answer_type=Sum)
        assert (third.text, third.answer) == (FITS, Sum(4))
        await stage.until(lambda: _has_schema(mesh), "the schema is in the spec again")
        status = await mesh.status(NAME, content=True, timeout=PATIENCE_S)
        assert status.agent_state == {"answers": [WORDS, WORDS, FITS]}, "each turn took effect once"


async def _begin(mesh: Mesh) -> None:
    await mesh.start_agent(NAME, kind="Adder", restart="permanent", timeout=PATIENCE_S)


async def _has_schema(mesh: Mesh) -> bool:
    (entry,) = await mesh.list_agents()
    return entry.spec.answer_schema is not None
