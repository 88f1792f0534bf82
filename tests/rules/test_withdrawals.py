"""Withdrawals on the way: behind their requests, whatever is lost, and before the first call of a new owner
(docs/architecture.md#withdrawals)."""

from __future__ import annotations

import pytest

from agentmesh.errors import MeshError
from rules.scene import PATIENCE_S, Scene, play
from rules.test_attacks import Deaf
from sim.agents import Cell
from sim.server import Faults


def calls_of(agent: str) -> int:
    return sum(call.agent == agent for call in Cell.calls)


def code(scene: Scene, agent: str, ref: str) -> str | None:
    outcome = scene.results(agent).get(ref)
    return None if outcome is None else "" if outcome.error is None else outcome.error.code


@pytest.mark.case(356)
def test_a_withdrawal_whose_request_was_not_heard_of_still_comes_behind_it() -> None:
    async def story(scene: Scene) -> None:
        Cell.calls.clear()
        await scene.start("a", "b", kind="Cell")
        await scene.mesh.ask("b", "add L0", timeout=PATIENCE_S)
        scene.server.faults = Deaf("mesh.live.peer-inbox.b")
        ref = await scene.mesh.tell("a", "wait L1 b", timeout=PATIENCE_S)
        await scene.until(lambda: scene.lane("peer-inbox", "b"), "the request")
        request = str(scene.lane("peer-inbox", "b")[0].seq)
        assert await scene.mesh.cancel("a", ref, tree=True)
        await scene.until(lambda: code(scene, "b", request) is not None, "its end")
        assert (code(scene, "a", ref), code(scene, "b", request)) == ("cancelled", "cancelled")
        scene.server.faults = Faults()
        assert calls_of("b") == 1, "of the first prompt only"
        await scene.until(lambda: not scene.ledger("a").delegated, "its way back")

    play(story)


@pytest.mark.case(357)
def test_an_agent_whose_node_dies_ends_what_was_withdrawn_meanwhile_without_a_call() -> None:
    async def story(scene: Scene) -> None:
        Cell.slowness = 0.0
        Cell.calls.clear()
        await scene.start("a", "b", kind="Cell")
        assert scene.node_of("a") != scene.node_of("b")
        await scene.start("c", kind="Cell")
        await scene.mesh.ask("c", "halt L0", timeout=PATIENCE_S)
        ref = await scene.mesh.tell("a", "wait L1 b c", timeout=PATIENCE_S)
        await scene.until(lambda: calls_of("b") == 1, "the turn of b")
        request = str(scene.lane("peer-inbox", "b")[0].seq)
        node = scene.node_of("b")
        scene.world.kill(node)
        assert await scene.mesh.cancel("a", ref, tree=True)
        await scene.until(lambda: scene.lane("peer-answer", "b"), "the withdrawal")
        await scene.until(lambda: code(scene, "b", request) is not None, "its end", seconds=120.0)
        assert code(scene, "b", request) == "cancelled" and calls_of("b") == 1
        await scene.until(lambda: len(scene.results("c")) == 2, "the end of what b had asked of c, which is halted")
        assert sorted(outcome.error.code if outcome.error else "" for outcome in scene.results("c").values()) == ["", "cancelled"]
        scene.world.restart(node)

    play(story, nodes=("n1", "n2"))


@pytest.mark.case(352)
@pytest.mark.case(18)
def test_an_asker_that_is_stopped_takes_its_questions_along_and_one_that_gives_up_does_not() -> None:
    async def story(scene: Scene) -> None:
        Cell.slowness = 0.0
        await scene.start("a", "b", kind="Cell")
        await scene.mesh.ask("b", "halt L0", timeout=PATIENCE_S)
        with pytest.raises(MeshError):
            await scene.mesh.ask("a", "wait L1 b", timeout=2.0)
        (request,) = [str(m.seq) for m in scene.lane("peer-inbox", "b")]
        assert code(scene, "b", request) is None, "a caller that gives up ends nothing"
        await scene.mesh.stop("a", timeout=PATIENCE_S)
        await scene.until(lambda: code(scene, "b", request) == "cancelled", "the end of the question")

    play(story)
