"""Turns of many steps that go from one build to the other while nodes of both are drained: at worst as between two nodes of the
build before, which pays the call in flight again."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from agentmesh.errors import BadRequest
from agentmesh_client import Mesh
from agentmesh_client.admin import Operator
from compat.two_builds import builds
from compat.two_builds.agents import RUNS, enough
from compat.two_builds.stage import NEW_NODES, NEW_SUPERVISOR, OLD_NODES, OLD_SUPERVISOR, PATIENCE_S, Stage
from judge.moves import hand_overs
from support import Server, run

AGENTS = tuple(f"l{number}" for number in range(4))
OLD, NEW = OLD_NODES[0], NEW_NODES[0]
WHOLE_S = 200.0


@pytest.mark.slow
@pytest.mark.case(733)
@pytest.mark.timeout(WHOLE_S + 60)
@pytest.mark.parametrize("how", ["drained", "ordered"])
def test_a_turn_goes_on_with_either_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    old, logs, runs = tmp_path / "old", tmp_path / "logs", tmp_path / "runs"
    old.mkdir()
    logs.mkdir()
    monkeypatch.setenv(RUNS, str(runs))
    builds.unpack(old)
    with Server() as server:
        stage = Stage(server, old, logs)
        try:
            run(_drained(stage, runs) if how == "drained" else _ordered(stage, runs), timeout=WHOLE_S)
        except BaseException:
            print("\n".join(stage.notes), stage.said())
            raise


async def _drained(stage: Stage, runs: Path) -> None:
    async with stage.running(NEW_SUPERVISOR, NEW, OLD_SUPERVISOR, callers=(), prepare=_begin):
        await _further(stage, runs)
        await stage.start(OLD)
        await stage.terminate(NEW)
        # Handed on between two calls: the older node goes on behind the last step.
        await _further(stage, runs)
        assert set(_made(runs).values()) == {1}, "a call was made again behind a hand-over"
        assert {record.node for record, _ in stage.recorder.agents().values()} == {OLD}
        await stage.start(NEW)
        await stage.terminate(OLD)
        # The build before hands nothing on: what it cuts off is made again.
        await _further(stage, runs)
        assert {record.node for record, _ in stage.recorder.agents().values()} == {NEW}
        enough(runs).touch()
        answers = [await _answer(stage.mesh, name) for name in AGENTS]
        assert answers == [f"long {name}" for name in AGENTS]
        evidence, missing = await stage.evidence()
        assert not missing
    made = _made(runs)
    steps = {name: sum(agent == name for agent, _ in made) for name in AGENTS}
    assert set(made) == {(name, number) for name in AGENTS for number in range(steps[name])}, "a call was left out"
    again = Counter(name for (name, _), count in made.items() for _ in range(count - 1))
    assert all(count <= 1 for count in again.values()), f"more than the call in flight was made again: {again}"
    assert {one.agent for one in hand_overs(evidence)} == set(AGENTS)


async def _ordered(stage: Stage, runs: Path) -> None:
    """A leader of this build follows an operator's orders; one of the build before does not know them."""
    async with stage.running(NEW_SUPERVISOR, NEW, callers=(), prepare=_begin, users=False):
        operator = Operator(stage.recorder.ears[0], stage.subjects)
        await _further(stage, runs)
        await stage.start(OLD)
        for name in AGENTS:
            assert await operator.move(name, OLD)
        await asyncio.gather(*(operator.arrived(name, OLD, PATIENCE_S) for name in AGENTS))
        await _further(stage, runs)
        assert set(_made(runs).values()) == {1}, "a call was made again behind a hand-over"
        for name in AGENTS:
            assert await operator.move(name, NEW)
        await _further(stage, runs)
        assert {record.node for record, _ in stage.recorder.agents().values()} == {OLD}, "it gives up no turn that runs"
        enough(runs).touch()
        assert [await _answer(stage.mesh, name) for name in AGENTS] == [f"long {name}" for name in AGENTS]
        await asyncio.gather(*(operator.arrived(name, NEW, PATIENCE_S) for name in AGENTS))
        await stage.start(OLD_SUPERVISOR)
        await stage.terminate(NEW_SUPERVISOR)
        await stage.until(lambda: stage.leads(OLD_SUPERVISOR), "the older supervisor leads")
        with pytest.raises(BadRequest, match="of a build that does not know `move`"):
            await operator.move(AGENTS[0], OLD)
        evidence, missing = await stage.evidence()
        assert not missing
    made = _made(runs)
    steps = {name: sum(agent == name for agent, _ in made) for name in AGENTS}
    assert set(made) == {(name, number) for name in AGENTS for number in range(steps[name])}, "a call was left out"
    assert {one.agent for one in hand_overs(evidence)} == set(AGENTS)


async def _begin(mesh: Mesh) -> None:
    for name in AGENTS:
        await mesh.start_agent(name, kind="Cell", restart="permanent")
        await mesh.tell(name, f"long {name}", idempotency_key=name)


async def _answer(mesh: Mesh, name: str) -> str | None:
    outcome = await mesh.ask_outcome(name, f"long {name}", timeout=PATIENCE_S, idempotency_key=name)
    return outcome.text


def _made(runs: Path) -> Counter[tuple[str, int]]:
    """How often each call was made."""
    made: Counter[tuple[str, int]] = Counter()
    for line in runs.read_text().splitlines() if runs.exists() else ():
        name, number = line.split()
        made[name, int(number)] += 1
    return made


async def _further(stage: Stage, runs: Path) -> None:
    """Return when each turn has made two more calls."""

    def newest() -> dict[str, int]:
        return {name: max((n for agent, n in _made(runs) if agent == name), default=-1) for name in AGENTS}

    before = newest()
    await stage.until(lambda: all(newest()[name] >= before[name] + 2 for name in AGENTS), "two more calls of each")
