"""Long tool loops of a real model client through meshes of processes that are killed: what is called again, and what is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmesh.edge.read import read_all
from agentmesh.errors import BackendError
from agentmesh.subjects import Subjects
from fakes.messages import Answer, Call, FakeMessages, Item, Refusal, Tool
from fakes.otlp import OtlpReceiver
from live import toolers
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from support import Server, eventually, run

SDK = ("anthropic", "agentmesh_node.backends.anthropic.backend")
LONG_S = 110
CALLS = 20
KEY = "sk-ant-in-no-record-0123456789"
TOOLERS = str(Path(toolers.__file__))


def counting(name: str) -> Callable[[Call], Item]:
    """A model that calls a tool twenty times, one call an answer, and then says how the tenth ended."""

    def script(call: Call) -> Item:
        if call.answers < CALLS:
            return Answer(text=f"step {call.answers}.", tools=(Tool(name, {"number": call.answers + 1}, f"c{call.answers + 1}"),))
        tenth = next(m["content"][0] for m in call.messages if m["content"][0].get("tool_use_id") == f"c{toolers.GATED}")
        return Answer(text=f"tenth: {tenth['content']}")

    return script


class Gate:
    """Holds one answer of the model back until it is opened."""

    def __init__(self, script: Callable[[Call], Item], number: int, fake: FakeMessages) -> None:
        self._script = script
        self._number = number
        self._fake = fake
        self.reached = threading.Event()

    def __call__(self, call: Call) -> Item:
        if call.number == self._number:
            self.reached.set()
            self._fake.closing.wait(LONG_S)  # its caller will be dead by then
        return self._script(call)


def environment(fake: FakeMessages, runs: Path, **more: str) -> dict[str, str]:
    return {"ANTHROPIC_BASE_URL": fake.url, "ANTHROPIC_API_KEY": KEY, "TOOL_RUNS": str(runs), **more}


async def tellers(mesh: ProcessMesh, *names: str) -> None:
    """Two nodes, and agents on them."""
    await asyncio.gather(*(mesh.start("node", own_id, "--agents", TOOLERS) for own_id in ("n1", "n2")))
    for name in names:
        await mesh.client.start_agent(name, kind="Teller", timeout=PATIENCE_S)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.case(215)
@pytest.mark.slow
def test_killed_while_the_model_answers_only_that_call_is_made_again(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    async def main(fake: FakeMessages) -> None:
        gate = Gate(counting("count"), 10, fake)
        fake.play(gate)
        async with process_mesh(server, subjects, tmp_path, env=environment(fake, runs), modules=SDK) as mesh:
            await tellers(mesh, "teller")
            asked = asyncio.create_task(mesh.client.ask("teller", "count to twenty", timeout=PATIENCE_S))
            await eventually(gate.reached.is_set, PATIENCE_S, "the eleventh model call")
            victim = await mesh.host_of("teller")
            await victim.kill()
            answer = await asked
            assert (answer.text, answer.node) == ("tenth: 10", "n2" if victim.id == "n1" else "n1")
            assert answer.usage is not None
            assert answer.usage["output_tokens"] == 5 * (CALLS + 1), (
                "the tokens of both owners, but not of the call that was lost"
            )
            assert [outcome.text for outcome in await mesh.results("teller", 1)] == ["tenth: 10"]

    with FakeMessages() as fake:
        run(main(fake), LONG_S)
        assert len(fake.calls) == CALLS + 1 + 1
        assert [call.answers for call in fake.calls] == [*range(11), *range(10, CALLS + 1)]
    assert lines(runs) == [f"count {number}" for number in range(1, CALLS + 1)]


@pytest.mark.case(215)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "again", "told"),
    [
        ("count", 1, "10"),
        ("put", 1, "10"),
        ("pay", 0, "The outcome of this call is unknown"),
        ("transfer", 0, "it went through"),
    ],
)
def test_killed_while_a_tool_runs_its_effect_says_what_becomes_of_it(
    *, server: Server, subjects: Subjects, tmp_path: Path, name: str, again: int, told: str
) -> None:
    runs, gate = tmp_path / "runs", tmp_path / "gate"

    async def main(fake: FakeMessages) -> None:
        async with process_mesh(server, subjects, tmp_path, env=environment(fake, runs, GATE=str(gate)), modules=SDK) as mesh:
            await tellers(mesh, "teller")
            asked = asyncio.create_task(mesh.client.ask("teller", "go", timeout=PATIENCE_S))
            await eventually(lambda: len(lines(runs)) == toolers.GATED, PATIENCE_S, "the tenth run")
            await (await mesh.host_of("teller")).kill()
            gate.touch()
            answer = await asked
            assert answer.text.startswith(f"tenth: {told}")

    with FakeMessages(counting(name)) as fake:
        run(main(fake), LONG_S)
        assert len(fake.calls) == CALLS + 1, "no model call is made again"
    ran = [line for line in lines(runs) if line.startswith(name)]
    assert len(ran) == CALLS + again
    tenth = [line for line in ran if line.startswith(f"{name} {toolers.GATED}")]
    assert len(tenth) == 1 + again
    assert len(set(tenth)) == 1, "an idempotent tool gets the same key again"
    assert len([line for line in lines(runs) if line.startswith("asked")]) == (1 if name == "transfer" else 0)


def asking(call: Call) -> Item:
    """A model that hands each question on to the other agent, once; the one that is asked `plainly` answers itself."""
    if call.prompt.endswith("plainly"):
        return Answer(text="as I see it, yes")
    if call.answers == 0:
        return Answer(tools=(Tool("ask_second", {"prompt": f"{call.prompt}, plainly"}, "c1"),))
    return Answer(text=f"second says: {call.results[0]['content']}")


@pytest.mark.slow
def test_another_agent_is_asked_once_though_the_asker_dies_while_it_waits(
    server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"

    async def main(fake: FakeMessages) -> None:
        reached, opened = threading.Event(), threading.Event()

        def script(call: Call) -> Item:
            if call.prompt.endswith("plainly"):
                reached.set()
                opened.wait(LONG_S)
            return asking(call)

        fake.play(script)
        async with process_mesh(server, subjects, tmp_path, env=environment(fake, runs), modules=SDK) as mesh:
            await tellers(mesh, "first", "second")
            asked = asyncio.create_task(mesh.client.ask("first", "is it so", timeout=PATIENCE_S))
            await eventually(reached.is_set, PATIENCE_S, "the second agent's model call")
            await (await mesh.host_of("first")).kill()
            opened.set()
            answer = await asked
            assert answer.text == "second says: as I see it, yes"
            assert len(await mesh.client.history("second")) == 1, "it was asked once"
            assert [call.prompt for call in fake.calls].count("is it so") == 2, "one call before the wait, and one behind it"

    with FakeMessages() as fake:
        run(main(fake), LONG_S)


@pytest.mark.case(218)
@pytest.mark.slow
def test_agents_that_ask_each_other_in_a_circle_are_told_so(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    def script(call: Call) -> Item:
        if call.answers:
            return Answer(text=call.results[0]["content"])
        # `first` is asked from outside and asks `second`, which asks `first` back.
        other = "ask_second" if call.prompt == "go" else "ask_first"
        return Answer(tools=(Tool(other, {"prompt": "go on"}, "c1"),))

    async def main(fake: FakeMessages) -> None:
        async with process_mesh(server, subjects, tmp_path, env=environment(fake, tmp_path / "runs"), modules=SDK) as mesh:
            await tellers(mesh, "first", "second")
            answer = await mesh.client.ask("first", "go", timeout=PATIENCE_S)
            assert "cycle" in answer.text

    with FakeMessages(script) as fake:
        run(main(fake), LONG_S)
        assert len(fake.calls) == 4


@pytest.mark.slow
def test_the_key_is_nowhere(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    """After answers, tools, failures of every kind and a kill: not in a record, a message, a log, a span or an error."""

    def script(call: Call) -> Item:
        said = call.headers["authorization"]
        match call.prompt:
            case "refuse":
                return Refusal(status=401, message=f"bad credentials: {said}")
            case "overload":
                return Refusal(status=529, message=f"try later, {said}")
            case "break":
                return Answer(text="half an answer", break_after=4)
        if call.answers % 2 == 0:
            return Answer(tools=(Tool("count", {"number": 1}), Tool("count", {"number": "x"}), Tool("none")))
        return "done"

    async def main(fake: FakeMessages, spans: OtlpReceiver) -> str:
        env = environment(fake, tmp_path / "runs", OTEL_EXPORTER_OTLP_ENDPOINT=spans.endpoint, MESH_LOG_LEVEL="debug")
        async with process_mesh(server, subjects, tmp_path, env=env, modules=SDK) as mesh:
            await tellers(mesh, "teller")
            assert (await mesh.client.ask("teller", "hello", timeout=PATIENCE_S)).text == "done"
            errors = []
            for prompt in ("refuse", "overload", "break"):
                with pytest.raises(BackendError) as caught:
                    await mesh.client.ask("teller", prompt, timeout=PATIENCE_S)
                errors.append(repr((caught.value.message, caught.value.details)))
            assert [("unauthenticated" in e, "overloaded" in e, "stream_broken" in e) for e in errors] == [
                (True, False, False), (False, True, False), (False, False, True),
            ]  # fmt: skip
            await (await mesh.host_of("teller")).kill()
            assert (await mesh.client.ask("teller", "hello", timeout=PATIENCE_S)).text == "done"
            await asyncio.to_thread(spans.wait_for, "chat test-model", PATIENCE_S)
            stored = await everything(mesh)
            for host in mesh.hosts.values():
                if host.running:
                    await host.terminate()
            logs = [host.log for host in mesh.hosts.values()]
            return "\n".join([*errors, *stored, *logs, repr(mesh.events), repr(spans.spans)])

    with FakeMessages(script) as fake, OtlpReceiver() as spans:
        seen = run(main(fake, spans), LONG_S)
        assert {call.headers["authorization"] for call in fake.calls} == {f"Bearer {KEY}"}, "it was used"
        assert "chat test-model" in seen
        assert "execute_tool count" in seen
    assert "bad credentials: Bearer ***" in seen
    assert KEY not in seen


async def everything(mesh: ProcessMesh) -> list[str]:
    """All messages in the mesh's streams, headers and bodies."""
    streams = [mesh.subjects.stream("mail"), mesh.subjects.stream("journal"), mesh.subjects.stream("result")]
    found = [m for stream in streams for m in await read_all(mesh.transport, stream, f"{mesh.subjects.root}.>")]
    assert len({m.subject.split(".")[1] for m in found}) >= 3, "records, mail and outcomes"
    return [f"{message.headers} {message.data.decode()}" for message in found]
