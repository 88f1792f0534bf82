"""Turns that go on elsewhere, since their nodes are replaced one after the other, and nothing is repeated (case 670).

The number of agents and of steps is a small one; `MOVES_AGENTS` and `MOVES_STEPS` of the environment ask for more.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from agentmesh.errors import Conflict
from agentmesh.subjects import Subjects
from agentmesh_client.admin import Operator
from agentmesh_client.streaming import Ended, Missed, Restarted, Text
from fakes.messages import Answer, Call, FakeMessages, Item, Tool
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from live.test_steps_anthropic import CALLS, SDK, TOOLERS, counting, environment, lines
from support import Server, eventually, run

AGENTS = int(os.environ.get("MOVES_AGENTS", "12"))
STEPS = int(os.environ.get("MOVES_STEPS", "20"))
NODES = ("n1", "n2", "n3", "n4")
LONG_S = 300.0
HELD = 5
"""The call of a model that is held."""


class Model:
    """Takes its time, and calls a tool once an answer: as many as there are steps, and on until `enough` is set."""

    def __init__(self) -> None:
        self.enough = threading.Event()

    def __call__(self, call: Call) -> Answer:
        number = int(call.conversation.split()[-1]) * 1000 + call.answers
        late = call.answers >= STEPS
        delay_s = 0.5 if late and not self.enough.is_set() else 0.05
        if late and self.enough.is_set():
            return Answer(text=said(call.answers), delay_s=delay_s)
        return Answer(
            text=said(call.answers), delay_s=delay_s, tools=(Tool("count", {"number": number + 1}, f"c{call.answers}"),)
        )


def said(step: int) -> str:
    """The text of an answer."""
    return f"[{step}]" + "." * 24


def repeated(made: Counter[tuple[str, int]], ran: Counter[str]) -> Counter[int]:
    """How many calls of models and runs of tools were repeated, by the number of the agent."""
    found: Counter[int] = Counter()
    for (conversation, _), count in made.items():
        found[int(conversation.split()[-1])] += count - 1
    for line, count in ran.items():
        found[(int(line.split()[-1]) - 1) // 1000] += count - 1
    return found


class Watched:
    """What readers of live events saw."""

    def __init__(self) -> None:
        self.void = 0
        self.missed = 0
        self.starts: Counter[int] = Counter()
        """By the number of an agent: how often its turn went on elsewhere."""
        self.texts: dict[str, str] = {}
        self.longest_s = 0.0
        self.answered: list[str] = []

    async def follow(self, mesh: ProcessMesh, agent: str, number: int) -> None:
        clock = asyncio.get_running_loop().time
        last = None
        async with mesh.client.stream(agent, f"count {number}", timeout=LONG_S) as turn:
            async for event in turn:
                if last is not None:
                    self.longest_s = max(self.longest_s, clock() - last)
                last = clock()
                match event:
                    case Restarted(n=n, void_from=void_from):
                        self.starts[number] += 1
                        self.void += n - void_from
                    case Missed(count=count):
                        self.missed += count
                    case Text(text=text):
                        self.texts[agent] = self.texts.get(agent, "") + text
                    case Ended(outcome=outcome):
                        assert outcome.ok, outcome
                        self.answered.append(agent)


@pytest.mark.case(670)
@pytest.mark.case(714)
@pytest.mark.slow
@pytest.mark.parametrize("how", ["drained", "killed", "rebalanced", "moved"])
def test_turns_go_on_elsewhere_and_nothing_is_repeated(server: Server, subjects: Subjects, tmp_path: Path, how: str) -> None:
    """Where nodes are killed, one call of each agent may be repeated for each kill."""
    runs, watched, model = tmp_path / "runs", Watched(), Model()

    async def main(fake: FakeMessages) -> None:
        # Nobody is to be taken for dead, and no call to be cut off, because the machine is busy.
        patient = {} if how == "killed" else {"MESH_LEASE_TTL_S": "30", "MESH_DRAIN_S": "120"}
        async with process_mesh(server, subjects, tmp_path, env=environment(fake, runs, **patient), modules=SDK) as mesh:
            for own_id in NODES:
                await mesh.start("node", own_id, "--agents", TOOLERS)
            names = [f"a{number}" for number in range(AGENTS)]
            for name in names:
                await mesh.client.start_agent(name, kind="Teller", timeout=PATIENCE_S)
            turns = [asyncio.create_task(watched.follow(mesh, name, number + 1)) for number, name in enumerate(names)]
            await eventually(lambda: len(fake.calls) >= 2 * AGENTS, PATIENCE_S, "two calls of each")
            for number, own_id in enumerate(NODES):
                await mesh.start("node", f"m{number}", "--agents", TOOLERS)
                if how == "drained":
                    assert await mesh.hosts[own_id].terminate() == 0, mesh.hosts[own_id].log
                elif how == "killed":
                    await mesh.hosts[own_id].kill()
            operator = Operator(mesh.transport, mesh.subjects)
            if how == "rebalanced":
                assert await operator.rebalance() > 0
            if how == "moved":
                for number, name in enumerate(names):
                    assert await operator.move(name, f"m{number % len(NODES)}")
                await asyncio.gather(*(operator.arrived(n, f"m{i % len(NODES)}", PATIENCE_S) for i, n in enumerate(names)))
            assert not any(turn.done() for turn in turns), "each turn lasts until all nodes are replaced"
            model.enough.set()
            await asyncio.gather(*turns)

    with FakeMessages(model) as fake:
        run(main(fake), LONG_S)
        # What a killed node was just sending has no messages.
        made = Counter((call.conversation, call.answers) for call in fake.calls if call.messages)
    ran = Counter(lines(runs))
    again = made.total() - len(made), ran.total() - len(ran)
    print(
        f"repeated: {again[0]} calls of models, {again[1]} of tools; {watched.starts.total()} times turns went on elsewhere; "
        f"longest pause of a stream {watched.longest_s:.3f} s"
    )
    last = {name: max(step for conversation, step in made if conversation == name) for name, _ in made}
    wanted = {(name, step) for name in last for step in range(last[name] + 1)}
    assert set(made) == wanted, f"others: {set(made) ^ wanted}"
    assert len(last) == AGENTS and min(last.values()) >= STEPS
    assert len(ran) == sum(last.values())
    assert len(watched.answered) == AGENTS and watched.starts
    if how in ("drained", "moved"):
        assert watched.starts.total() == AGENTS, "each agent moves once: to a node that is not replaced next"
    if how == "killed":
        more = {number: count for number, count in repeated(made, ran).items() if count > watched.starts[number]}
        assert not more, f"more than the call in flight was repeated: {more}, and they went on {watched.starts}"
        return
    assert again == (0, 0)
    assert (watched.void, watched.missed) == (0, 0), "text was shown twice, or not at all"
    whole = ("".join(map(said, range(steps + 1))) for steps in last.values())
    assert sorted(watched.texts.values()) == sorted(whole)


@pytest.mark.case(716)
@pytest.mark.case(717)
@pytest.mark.slow
def test_a_turn_keeps_to_its_code_while_a_node_serves_that(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    """Two nodes of one version and a newer one of another: the turn goes from the first to the second, and only then on."""
    model, versions = Model(), {}
    for name, more in (("old", ""), ("new", "# changed")):
        versions[name] = tmp_path / name / "toolers.py"
        versions[name].parent.mkdir()
        versions[name].write_text(Path(TOOLERS).read_text() + more)

    async def main(fake: FakeMessages) -> None:
        async with process_mesh(server, subjects, tmp_path, env=environment(fake, tmp_path / "runs"), modules=SDK) as mesh:
            await mesh.start("node", "n1", "--agents", str(versions["old"]))
            await mesh.client.start_agent("a0", kind="Teller", timeout=PATIENCE_S)
            asking = asyncio.create_task(mesh.client.ask("a0", "count 1", timeout=LONG_S))
            await mesh.start("node", "n2", "--agents", str(versions["old"]))
            await mesh.start("node", "n3", "--agents", str(versions["new"]))
            told = {node.id: node.lease.code["Teller"] for node in await mesh.client.nodes()}
            assert told["n1"] == told["n2"] != told["n3"]
            await eventually(lambda: len(fake.calls) >= 2, PATIENCE_S, "two calls")
            assert await mesh.hosts["n1"].terminate() == 0
            assert await mesh.client.whereis("a0") == "n2", "n3 is newer, and as empty"
            calls = len(fake.calls)
            await eventually(lambda: len(fake.calls) > calls, PATIENCE_S, "a call from there")
            assert await mesh.hosts["n2"].terminate() == 0
            assert await mesh.client.whereis("a0") == "n3"
            model.enough.set()
            assert (await asking).text
            (turn,) = await mesh.client.history("a0")
            assert turn.code == (told["n1"], told["n3"])

    with FakeMessages(model) as fake:
        run(main(fake), LONG_S)
        made = Counter((call.conversation, call.answers) for call in fake.calls)
    assert made.total() == len(made), "no call was made again"


@pytest.mark.case(712)
@pytest.mark.slow
@pytest.mark.parametrize("dies", ["leader", "owner", "target"])
def test_a_turn_that_is_ordered_elsewhere_goes_on_though_a_process_dies(
    server: Server, subjects: Subjects, tmp_path: Path, dies: str
) -> None:
    """The order is given while the model answers, and one of those that carry it out is killed before that call ends."""
    runs, held, opened, play = tmp_path / "runs", threading.Event(), threading.Event(), counting("count")

    def script(call: Call) -> Item:
        if call.answers == HELD and not opened.is_set():
            held.set()
            opened.wait(LONG_S)
        return play(call)

    async def main(fake: FakeMessages) -> None:
        env = environment(fake, runs, MESH_DRAIN_S="60")
        async with process_mesh(server, subjects, tmp_path, env=env, modules=SDK) as mesh:
            await mesh.start("node", "n1", "--agents", TOOLERS)
            await mesh.client.start_agent("a", kind="Teller", timeout=PATIENCE_S)
            for own_id in ("n2", "n3"):
                await mesh.start("node", own_id, "--agents", TOOLERS)
            await mesh.start("supervisor", "s2")
            asking = asyncio.create_task(mesh.client.ask("a", "count to twenty", timeout=LONG_S))
            await eventually(held.is_set, PATIENCE_S, "the call that is held")
            operator = Operator(mesh.transport, mesh.subjects)
            assert await operator.move("a", "n2")
            await mesh.hosts[{"leader": "s1", "owner": "n1", "target": "n2"}[dies]].kill()
            if dies == "target":
                with pytest.raises(Conflict, match="cannot take it any more"):
                    await operator.arrived("a", "n2", PATIENCE_S)
            opened.set()
            if dies != "target":
                await operator.arrived("a", "n2", PATIENCE_S)
            answer = await asking
            assert answer.text == "tenth: 10"
            assert (answer.node == "n2") == (dies != "target")

    with FakeMessages(script) as fake:
        run(main(fake), LONG_S)
        made = Counter(call.answers for call in fake.calls if call.messages)
    again = {step: times - 1 for step, times in made.items() if times > 1}
    assert again == ({HELD: 1} if dies == "owner" else {})
    assert lines(runs) == [f"count {number}" for number in range(1, CALLS + 1)]
