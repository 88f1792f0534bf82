"""Attempts whose node is killed: which of them are told of, and how often one leaves nothing
(docs/design/039-attempts-that-nobody-ended.md)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from agentmesh import semconv
from agentmesh.trace.derived import traced_of
from agentmesh.trace.lost import attempts_ended
from agentmesh.trace.spans import ToldSpan
from agentmesh_node.owner.predecessors import FENCED_S
from agentmesh_node.telemetry.attempt_watch import LASTS_S, AttemptWatch
from judge.attempts import untold
from rules.scene import PATIENCE_S, Scene, do, open_gate, play
from sim.agents import Cell
from sim.checker import facts_in, gather
from sim.loop import process_name

AGENTS = ("a", "b", "c", "d")
KILLS = 200
SENT_S = 0.005
"""Longest that what a process has sent is on its way."""


def told(scene: Scene) -> dict[str, ToldSpan]:
    """The attempts that the stream of facts tells of, by their ids."""
    _, spans = facts_in(scene.server, scene.world.subjects)
    return {span.id: span for span in spans if span.op == "invoke_agent"}


def ended(scene: Scene) -> set[str]:
    """The attempts that records end."""
    return {attempt for agent in AGENTS for record in scene.records(agent) for attempt in attempts_ended(agent, record)}


async def rounds_of_kills(scene: Scene, count: int) -> list[tuple[float, str]]:
    """Ask all agents at a time, and kill the node of one of them meanwhile; so many times. Returns when which node was killed."""
    Cell.slowness = 0.15
    dice, loop = scene.world.dice("kills"), scene.world.loop
    killed: list[tuple[float, str]] = []
    await scene.start(*AGENTS, kind="Cell")
    for number in range(count):
        verbs = [dice.choice((f"add {agent}{number}", f"steps {agent}{number} 2")) for agent in AGENTS]
        asks = [
            loop.create_task(scene.mesh.ask(agent, verb, timeout=PATIENCE_S)) for agent, verb in zip(AGENTS, verbs, strict=True)
        ]
        await asyncio.sleep(dice.uniform(0.0, 0.1))
        node = scene.node_of(dice.choice(AGENTS))
        killed.append((loop.time(), node))
        scene.world.kill(node)
        await asyncio.sleep(dice.uniform(0.0, 0.3))
        scene.world.restart(node)
        await asyncio.gather(*asks)
    return killed


@pytest.mark.slow
@pytest.mark.case(542)
def test_over_two_hundred_kills_each_attempt_that_lasted_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: dict[str, tuple[float, str]] = {}
    watch = AttemptWatch.watch

    def noting(self: AttemptWatch, still: Any) -> None:
        attempt = still.args[0]
        began.setdefault(attempt.find(attempt).context.span_id, (asyncio.get_running_loop().time(), process_name()))
        watch(self, still)

    monkeypatch.setattr(AttemptWatch, "watch", noting)
    monkeypatch.setattr(Cell, "max_takeovers", 1000)
    killed: list[tuple[float, str]] = []
    silent: list[float] = []
    ends: Counter[str] = Counter()

    async def story(scene: Scene) -> None:
        killed.extend(await rounds_of_kills(scene, KILLS))
        await asyncio.sleep(2 * FENCED_S)
        assert list(untold(gather(scene.server, scene.world.subjects, []))) == []
        found, over = told(scene), ended(scene)
        for attempt, (at, node) in began.items():
            if attempt in over:
                continue
            if attempt in found:
                ends[str(found[attempt].attributes[semconv.ATTEMPT_END])] += 1
            else:
                silent.append(next(time for time, name in killed if name == node and time >= at) - at)

    play(story, nodes=("n1", "n2", "n3"), trace_facts="attempts")
    with capsys.disabled():
        print(
            f"\n{len(killed)} kills, {len(began)} attempts; of those that nobody ended {dict(ends)} are told of, and "
            f"{len(silent)} left nothing, the oldest after {max(silent, default=0) * 1000:.1f} ms"
        )
    assert set(ends) == {"lost"} and ends["lost"] > KILLS / 4
    assert silent, "no kill has met an attempt that had just begun"
    assert max(silent) < LASTS_S + SENT_S


@pytest.mark.slow
@pytest.mark.case(545)
def test_with_all_the_stream_has_each_attempt_that_a_record_ends_whatever_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "max_takeovers", 1000)

    async def story(scene: Scene) -> None:
        await rounds_of_kills(scene, KILLS // 4)
        await asyncio.sleep(2 * FENCED_S)
        found, over = told(scene), ended(scene)
        assert over and over <= set(found)
        assert {str(found[attempt].attributes[semconv.ATTEMPT_END]) for attempt in over} == {"ok"}

    play(story, nodes=("n1", "n2", "n3"), trace_facts="all")


@pytest.mark.case(611)
def test_only_what_lasts_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[str] = []
    watch = AttemptWatch.watch

    def noting(self: AttemptWatch, still: Any) -> None:
        watched.append(still.args[0].active.ref)
        watch(self, still)

    monkeypatch.setattr(AttemptWatch, "watch", noting)

    async def story(scene: Scene) -> None:
        await scene.start("a")
        for _ in range(3):
            await scene.mesh.ask("a", do(), timeout=PATIENCE_S)
        assert not watched and not scene.history_of("trace"), "all of it has ended at once"
        ask = asyncio.ensure_future(scene.mesh.ask("a", "gate:open " + do(), timeout=PATIENCE_S))
        await scene.until(lambda: scene.history_of("trace"), "the attempt has said that it began")
        open_gate("open")
        last = await ask
        assert watched == [last.ref] and len(scene.history_of("trace")) == 1
        infos = [record.turn for record in scene.records("a") if record.turn is not None]
        assert [info.trace is None for info in infos] == [True, True, True, False], "what is published under its id has it"

    play(story, nodes=("n1",))


@pytest.mark.case(542)
def test_an_attempt_that_a_drain_cuts_off_has_moved() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        ask = asyncio.ensure_future(scene.mesh.ask("a", "gate:open " + do(), timeout=PATIENCE_S))
        await scene.until(lambda: scene.history_of("trace"), "the attempt has said that it began")
        node = scene.node_of("a")
        scene.world.nodes[node].drained.set()
        await scene.until(lambda: told(scene), "the next owner has told of it")
        open_gate("open")
        await ask
        (moved,) = (span for span in told(scene).values())
        assert moved.attributes[semconv.ATTEMPT_END] == "moved" and moved.node == node and not moved.error
        (turn,) = (record.turn for record in scene.records("a") if record.turn is not None)
        trace = traced_of("a", scene.records("a")[-1].incarnation, turn)
        assert trace is not None and trace.span != moved.id, "the next attempt is another one"
        assert trace.parent == moved.parent and trace.trace == moved.trace, "under the same message"

    play(story, nodes=("n1", "n2"), drain_s=0.5)


@pytest.mark.case(542)
@pytest.mark.case(670)
def test_an_attempt_that_is_handed_on_between_two_calls_has_moved() -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a", kind="Cell")
        ask = asyncio.ensure_future(scene.mesh.ask("a", "slowly L1 8", timeout=PATIENCE_S))
        await scene.until(lambda: scene.kinds("a").count("step") > 1, "two steps are taken")
        node = scene.node_of("a")
        scene.world.nodes[node].drained.set()
        await ask
        await scene.until(lambda: told(scene), "the next owner has told of it")
        (moved,) = (span for span in told(scene).values())
        assert moved.attributes[semconv.ATTEMPT_END] == "moved" and moved.node == node and not moved.error
        (turn,) = (record.turn for record in scene.records("a") if record.turn is not None)
        assert turn.node != node and max(Cell.called.values()) == 1, "no call was made again"
        trace = traced_of("a", scene.records("a")[-1].incarnation, turn)
        assert trace is not None and trace.span != moved.id
        assert trace.parent == moved.parent and trace.trace == moved.trace, "under the same message"

    Cell.called.clear()
    play(story, nodes=("n1", "n2"))


@pytest.mark.case(543)
@pytest.mark.parametrize("fate", ["cancelled", "stopped", "killed again"])
def test_it_is_told_of_whatever_becomes_of_its_input(fate: str) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        ref = await scene.mesh.tell("a", "gate:never", timeout=PATIENCE_S)
        await scene.until(lambda: scene.history_of("trace"), "the attempt has said that it began")
        ((first,), _) = facts_in(scene.server, scene.world.subjects)
        nodes = [scene.node_of("a")]
        scene.world.kill(nodes[0])
        if fate == "killed again":
            await scene.until(lambda: scene.kinds("a").count("activated") == 2, "another node has it")
            nodes.append(scene.node_of("a"))
            scene.world.kill(nodes[1])
        elif fate == "cancelled":
            await scene.mesh.cancel("a", ref, tree=True, timeout=PATIENCE_S)
        else:
            await scene.mesh.stop("a", timeout=PATIENCE_S)
        await scene.until(lambda: first.span in told(scene), "it is told of")
        assert told(scene)[first.span].attributes[semconv.ATTEMPT_END] == "lost"

    play(story, nodes=("n1", "n2", "n3"))


def test_with_off_nothing_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        await scene.start("a")
        ask = asyncio.ensure_future(scene.mesh.ask("a", "gate:off " + do(), timeout=PATIENCE_S))
        await asyncio.sleep(1.0)
        open_gate("off")
        await ask
        assert scene.history_of("trace") == []
        assert all(record.turn is None or record.turn.trace is None for record in scene.records("a"))

    play(story, trace_facts="off")
