"""Agents that the real Codex runs, on a whole mesh, against a fake model server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.agent import agents_in
from agentmesh.edge.read import read_all
from agentmesh.errors import BackendError
from agentmesh.records import encode_record
from agentmesh.subjects import Subjects
from fakes.responses import Call, Reply, ResponsesServer, Text, say, shell
from live import codexes
from live.mesh import PATIENCE_S, Host, ProcessMesh, local_mesh, process_mesh
from node.backends.codex import KEY, KEY_NAME, options, processes
from support import Server, eventually, run

LONG_S = 110
SERVES = agents_in(vars(codexes))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_NAME, KEY)


@pytest.fixture
def fake() -> Iterator[ResponsesServer]:
    with ResponsesServer() as server:
        yield server


def given(fake: ResponsesServer, work: Path, **more: Any) -> dict[str, Any]:
    """An agent's options: it works in `work`, which all nodes share."""
    work.mkdir(exist_ok=True)
    return {"codex": options(fake, cwd=str(work), **more)}


async def node(mesh: ProcessMesh, own_id: str) -> Host:
    return await mesh.start("node", own_id, "--agents", str(Path(codexes.__file__)))


def test_an_agent_answers_by_codex_and_shows_what_it_does(
    fake: ResponsesServer, server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    fake.script = [Reply((Text("I look"), shell("echo found"))), say("it is there"), say("as I said")]

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES, files=str(tmp_path / "files")) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", options=given(fake, tmp_path / "work"))
            async with mesh.client.stream("coder", "look") as live:
                kinds = [type(event).__name__ async for event in live]
            assert [kind for kind in kinds if kind.startswith("Tool")] == ["ToolUse", "ToolResult"]
            assert kinds.count("Text") == 4
            outcome = await mesh.client.ask("coder", "and?")
            assert outcome.text == "as I said"
            assert outcome.usage is not None
            assert outcome.usage["output_tokens"] == 3
            await mesh.client.stop("coder")
            assert not await read_all(mesh.transport, subjects.blob_stream, subjects.blob_chunks("*"))

    run(main(), LONG_S)


@pytest.mark.case(387)
def test_an_interrupt_ends_codex_and_its_commands_and_the_thread_goes_on(
    fake: ResponsesServer, server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    mark = f"{secrets.randbelow(10**9)}.5"
    fake.script = [say("first"), Reply((shell(f"sleep {mark}", wait_ms=30_000),)), say("third")]

    async def main() -> None:
        async with local_mesh(server, subjects, serves=SERVES, files=str(tmp_path / "files")) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", options=given(fake, tmp_path / "work"))
            await mesh.client.ask("coder", "one")
            async with mesh.client.stream("coder", "two") as live:
                # Codex tells of a command a moment after it has begun it.
                await anext(event async for event in live if type(event).__name__ == "ToolUse")
                await eventually(lambda: len(processes(f"sleep {mark}")) > 0, PATIENCE_S, "the command")
                assert await mesh.client.interrupt("coder")
                outcome = await live.outcome()
            assert outcome.error is not None and outcome.error.code == "interrupted"
            assert outcome.tools == {"shell": {"interrupted": 1}}
            await eventually(lambda: not processes(f"sleep {mark}"), PATIENCE_S, "the end of the command")
            await mesh.client.ask("coder", "three", timeout=PATIENCE_S)
            # The thread is as before; the prompt has a note of what the turn did, which may have been done.
            first, third = fake.requests[-1].texts("user")
            prompt, note = third.split("\n\n", 1)
            assert (first, prompt) == ("one", "three")
            assert note.startswith("[Note of the mesh: turn 2 ") and "ended early (interrupted)" in note
            assert f"sleep {mark}" in note and note.endswith("interrupted; it may have been done]")
            assert not fake.requests[-1].outputs()

    run(main(), LONG_S)


async def saved(mesh: ProcessMesh) -> bool:
    """Whether a step names the thread as it is behind an answer whose tools have run."""
    return any(b'"step":"saved"' in encode_record(record) for record in await mesh.records("coder"))


def test_a_turn_whose_node_is_killed_goes_on_elsewhere_and_pays_for_no_answer_twice(
    fake: ResponsesServer, server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    second = Reply((Text("marking"), shell("echo line >> log"), Call("mark", {"file": str(marks)})))
    fake.script = [say("hello"), second, Reply((Text("half an ans"),), end="open"), say("all done"), say("yes")]

    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, env={"MESH_FILES": str(tmp_path / "files")}) as mesh:
            for own_id in ("n1", "n2"):
                await node(mesh, own_id)
            work = tmp_path / "work"
            await mesh.client.start_agent("coder", kind="Marker", options=given(fake, work), timeout=PATIENCE_S)
            await mesh.client.ask("coder", "hi", timeout=PATIENCE_S)
            asked = asyncio.create_task(mesh.client.ask("coder", "mark it", timeout=PATIENCE_S))
            await asyncio.to_thread(fake.wait_for_calls, 3, PATIENCE_S)
            await eventually(lambda: saved(mesh), PATIENCE_S, "the step behind the tools, which may be taken after the call")
            victim = await mesh.host_of("coder")
            await victim.kill()
            answer = await asked
            assert (answer.text, answer.node) == ("all done", "n2" if victim.id == "n1" else "n1")
            assert fake.calls == 4, "only the answer that was on its way is asked for again"
            assert fake.requests[3].texts("user") == ["hi", "mark it"]
            assert fake.requests[3].outputs()[1] == "marked"
            assert (work / "log").read_text() == "line\n"
            assert marks.read_text() == "mark\n"
            await mesh.client.ask("coder", "really?", timeout=PATIENCE_S)
            assert fake.requests[4].texts("assistant")[-1] == "all done"

    run(main(), LONG_S)


@pytest.mark.case(723)
def test_a_node_that_leaves_hands_the_turn_on_as_soon_as_its_tools_have_ended(
    fake: ResponsesServer, server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    marks, work = tmp_path / "marks", tmp_path / "work"
    held = shell("touch began; while [ ! -e go ]; do sleep 0.05; done; echo line >> log", wait_ms=60_000)
    second = Reply((Text("marking"), Call("mark", {"file": str(marks)}), held))
    fake.script = [say("hello"), second, *(say("all done") for _ in range(3))]

    async def main() -> None:
        env = {"MESH_FILES": str(tmp_path / "files"), "MESH_DRAIN_S": "60"}
        async with process_mesh(server, subjects, tmp_path, env=env) as mesh:
            for own_id in ("n1", "n2"):
                await node(mesh, own_id)
            await mesh.client.start_agent("coder", kind="Marker", options=given(fake, work), timeout=PATIENCE_S)
            await mesh.client.ask("coder", "hi", timeout=PATIENCE_S)
            asked = asyncio.create_task(mesh.client.ask("coder", "mark it", timeout=PATIENCE_S))
            await eventually((work / "began").exists, PATIENCE_S, "the command")
            leaving = await mesh.host_of("coder")
            ended = asyncio.create_task(leaving.terminate())
            await eventually(lambda: "the end of this node waits for a turn" in leaving.log, PATIENCE_S, "it waits for the tool")
            (work / "go").touch()
            answer = await asked
            assert await ended == 0
            assert (answer.text, answer.node) == ("all done", "n2" if leaving.id == "n1" else "n1")
            assert any(b'"moves":1' in encode_record(record) for record in await mesh.records("coder"))
            assert fake.calls <= 4, "only the call that was just being made is made again"
            assert fake.requests[-1].texts("user") == ["hi", "mark it"]
            assert ((work / "log").read_text(), marks.read_text()) == ("line\n", "mark\n")

    run(main(), LONG_S)


def test_no_child_outlives_a_node_that_is_killed_or_told_to_end(
    fake: ResponsesServer, server: Server, subjects: Subjects, tmp_path: Path
) -> None:
    mark = f"{secrets.randbelow(10**9)}.5"
    fake.script = lambda body: Reply((shell(f"sleep {mark}", wait_ms=30_000),))

    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, env={"MESH_FILES": str(tmp_path / "files")}) as mesh:
            for own_id, how in (("n1", "kill"), ("n2", "terminate")):
                host = await node(mesh, own_id)
                if own_id == "n1":
                    work = tmp_path / "work"
                    await mesh.client.start_agent("coder", kind="Coder", options=given(fake, work), timeout=PATIENCE_S)
                    await mesh.client.tell("coder", "wait")
                await eventually(lambda: len(processes(f"sleep {mark}")) > 0, PATIENCE_S, f"the command on {own_id}")
                await (host.kill() if how == "kill" else host.terminate())
                await eventually(lambda: not processes(f"sleep {mark}"), PATIENCE_S, "the end of the command")

    run(main(), LONG_S)


def test_the_key_is_nowhere_in_the_mesh(fake: ResponsesServer, server: Server, subjects: Subjects, tmp_path: Path) -> None:
    refusal = Reply(status=401, failure={"message": f"the key {KEY} is bad"})
    fake.script = [Reply((shell(f"env; echo {KEY}"),)), say("done"), refusal]

    async def main() -> None:
        async with process_mesh(server, subjects, tmp_path, env={"MESH_FILES": str(tmp_path / "files")}) as mesh:
            host = await node(mesh, "n1")
            agent = given(fake, tmp_path / "work")
            await mesh.client.start_agent("coder", kind="Coder", options=agent, timeout=PATIENCE_S)
            await mesh.client.ask("coder", "tell me", timeout=PATIENCE_S)
            with pytest.raises(BackendError) as caught:
                await mesh.client.ask("coder", "once more", timeout=PATIENCE_S)
            assert caught.value.details["reason"] == "unauthenticated"
            assert KEY not in str(caught.value) + repr(caught.value.details)
            journal, results = subjects.stream("journal"), subjects.stream("result")
            for stream, subject in ((journal, subjects.journal("coder")), (results, subjects.result("coder", "*"))):
                found = await read_all(mesh.transport, stream, subject)
                assert found
                assert all(KEY.encode() not in message.data for message in found)
            assert KEY not in repr(mesh.events)
            assert KEY not in host.log

    run(main(), LONG_S)
