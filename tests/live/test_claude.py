"""Claude Code in a mesh of processes: the real one, against a model server on loopback that counts what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.errors import Interrupted
from agentmesh.records import encode_record
from agentmesh.subjects import Subjects
from agentmesh_node.backends.claude.store import JetStreamSessionStore
from agentmesh_node.backends.claude.transcript import counts
from fakes.messages import Answer, Call, FakeMessages, Tool
from live import claude_agents
from live.mesh import PATIENCE_S, ProcessMesh, process_mesh
from node.backends.claude_desk import KEY, childless, children
from support import Server, eventually, run

SDK = ("claude_agent_sdk", "agentmesh_node.backends.claude.backend")
LONG_S = 110
NOTE = re.compile(r"\n\n\[Note of the mesh: (.+)\]", re.DOTALL)
KEPT = re.compile(r'"entry":"([^"]+)"')


@pytest.fixture
def fake() -> Iterator[FakeMessages]:
    with FakeMessages() as found:
        yield found


@contextlib.asynccontextmanager
async def claude_mesh(
    server: Server, subjects: Subjects, root: Path, fake: FakeMessages, *, drain_s: int = 1
) -> AsyncIterator[ProcessMesh]:
    """A supervisor, and two nodes that serve agents with Claude Code; their files lie under `root`."""
    env = {
        **{name: "" for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE"))},
        "ANTHROPIC_BASE_URL": fake.url,
        "ANTHROPIC_API_KEY": KEY,
        "MESH_FILES": str(root / "files"),
        "MESH_DRAIN_S": str(drain_s),
    }
    agents = str(claude_agents.__file__)
    async with process_mesh(server, subjects, root, env=env, modules=SDK) as mesh:
        try:
            await asyncio.gather(*(mesh.start("node", own_id, "--agents", agents) for own_id in ("n1", "n2")))
            yield mesh
        except BaseException:
            mesh.complain()
            raise
    await childless(root / "files")


async def state_of(mesh: ProcessMesh) -> dict[str, Any]:
    found: dict[str, Any] = (await mesh.client.status("coder", content=True, timeout=PATIENCE_S)).agent_state
    return found


def told(call: Call) -> str:
    return json.dumps(call.messages)


async def sessions(mesh: ProcessMesh) -> set[str]:
    """The agent's transcripts in the mesh."""
    return {session for _, session in await JetStreamSessionStore(mesh.transport, mesh.subjects, "coder").sessions()}


async def result_kept(mesh: ProcessMesh) -> bool:
    """Whether the newest mark in the journal stands behind the result of a tool."""
    store = JetStreamSessionStore(mesh.transport, mesh.subjects, "coder")
    kept = [entry for record in await mesh.records("coder") for entry in KEPT.findall(encode_record(record).decode())]
    found: list[Any] = []
    for project, session in await store.sessions():
        found += await store.load({"project_key": project, "session_id": session}) or []
    return any(e["type"] == "user" and counts(e) for e in found if kept and e.get("uuid") == kept[-1])


def lends(to: Path) -> Tool:
    return Tool("mcp__agent__lend", {"title": str(to)})


@pytest.mark.slow
@pytest.mark.case(202)
@pytest.mark.case(204)
@pytest.mark.case(205)
@pytest.mark.parametrize("how", ["killed", "terminated", "stalled"])
def test_a_turn_goes_on_elsewhere_behind_what_was_paid_for(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages, how: str
) -> None:
    lent, held, release = tmp_path / "lent", threading.Event(), threading.Event()

    answers = ["welcome", Answer(text="I lend it", tools=[lends(lent)]), "lost on the way", "it is lent", "and I remember"]

    def script(call: Call) -> Any:
        if call.number == 2:
            held.set()
            release.wait(60)
        return answers[call.number]

    fake.play(script)

    async def main() -> None:
        async with claude_mesh(server, subjects, tmp_path, fake) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", timeout=PATIENCE_S)
            assert (await mesh.client.ask("coder", "hello", timeout=PATIENCE_S)).text == "welcome"
            asked = asyncio.create_task(mesh.client.ask("coder", "lend me a book", timeout=PATIENCE_S))
            await eventually(held.is_set, PATIENCE_S, "the call that is in flight")

            await eventually(lambda: result_kept(mesh), PATIENCE_S, "the step behind the tool's result")
            victim = await mesh.host_of("coder")
            assert children(tmp_path / "files" / subjects.root / victim.id)
            match how:
                case "killed":
                    await victim.kill()
                case "terminated":
                    assert await victim.terminate() == 0
                case "stalled":
                    victim.freeze()
            if how != "stalled":  # nothing of Claude Code outlives its node
                await childless(tmp_path / "files" / subjects.root / victim.id)
                release.set()
            answer = await asked
            if how == "stalled":
                # The former owner's Claude Code has its answer now, and the former owner wakes up to it.
                release.set()
                victim.thaw()
                await childless(tmp_path / "files" / subjects.root / victim.id)
            assert (answer.text, answer.turn) == ("it is lent", 2)
            assert answer.node in {"n1", "n2"} - {victim.id}
            # One book was lent; of four model calls only the one that was in flight was made again.
            assert len(lent.read_text().splitlines()) == 1
            assert len(fake.calls) == 4
            assert "welcome" in told(fake.calls[3])
            assert "I lend it" in told(fake.calls[3])
            state = await state_of(mesh)
            assert state["texts"] == ["welcome", "it is lent"]
            assert ["tool_result", True] in state["seen"]
            assert (await mesh.client.ask("coder", "do you?", timeout=PATIENCE_S)).text == "and I remember"
            assert "it is lent" in told(fake.calls[4])

    run(main(), LONG_S)


@pytest.mark.slow
@pytest.mark.case(723)
def test_a_node_that_leaves_hands_the_turn_on_as_soon_as_its_tools_have_ended(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    began, go, ran, release = (tmp_path / name for name in ("began", "go", "ran", "release"))
    command = f"touch {began}; while [ ! -e {go} ]; do sleep 0.05; done; echo once >> {ran}"
    bash = Tool("Bash", {"command": command, "description": "wait"})

    def script(call: Call) -> Any:
        if call.number == 2:  # it began when the tools had ended: the node that leaves does not wait for it
            while not release.exists() and not fake.closing.wait(0.05):
                pass
        answers = ["welcome", Answer(text="I wait", tools=[bash]), "lost on the way", "it has run"]
        return answers[min(call.number, 3)]

    fake.play(script)

    async def main() -> None:
        async with claude_mesh(server, subjects, tmp_path, fake, drain_s=60) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", timeout=PATIENCE_S)
            await mesh.client.ask("coder", "hello", timeout=PATIENCE_S)
            asked = asyncio.create_task(mesh.client.ask("coder", "run it", timeout=PATIENCE_S))
            await eventually(began.exists, PATIENCE_S, "the command")
            victim = await mesh.host_of("coder")
            ended = asyncio.create_task(victim.terminate())
            await eventually(lambda: "the end of this node waits for a turn" in victim.log, PATIENCE_S, "it waits for the tool")
            go.touch()
            answer = await asked
            assert await ended == 0 and not release.exists()
            assert (answer.text, answer.turn) == ("it has run", 2)
            assert answer.node in {"n1", "n2"} - {victim.id}
            assert ran.read_text() == "once\n"
            assert any(b'"moves":1' in encode_record(record) for record in await mesh.records("coder"))
            assert "I wait" in told(fake.calls[-1]) and len(fake.calls) <= 4
            release.touch()

    run(main(), LONG_S)


@pytest.mark.case(92)
@pytest.mark.case(387)
def test_an_interrupt_ends_claude_code_and_the_conversation_is_as_before(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    started = tmp_path / "started"
    forever = f"touch {started}; python3 -c 'import time; time.sleep(600)'"
    fake.play(
        ["welcome", Answer(text="this takes long", tools=[Tool("Bash", {"command": forever, "description": "wait"})]), "back"]
    )

    async def main() -> None:
        async with claude_mesh(server, subjects, tmp_path, fake) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", timeout=PATIENCE_S)
            await mesh.client.ask("coder", "hello", timeout=PATIENCE_S)
            asked = asyncio.create_task(mesh.client.ask("coder", "take your time", timeout=PATIENCE_S))
            await eventually(started.exists, PATIENCE_S, "the command")
            await mesh.client.interrupt("coder")
            with pytest.raises(Interrupted):
                await asked
            await childless(tmp_path / "files")
            assert (await mesh.client.ask("coder", "still there?", timeout=PATIENCE_S)).text == "back"
            # The conversation is as before: neither the prompt, nor what the model said, nor its call is in it. The new prompt
            # has a note of the call, which may have been done.
            *before, newest = fake.calls[-1].messages
            assert "welcome" in json.dumps(before) and "still there?" in json.dumps(newest)
            assert "take your time" not in json.dumps(before)
            assert "this takes long" not in told(fake.calls[-1]) and "tool_use" not in told(fake.calls[-1])
            (note,) = NOTE.findall(fake.calls[-1].prompt)
            assert "turn 2 of this conversation ('take your time') ended early (interrupted)" in note
            assert "- Bash(" in note and str(started) in note and note.endswith(": interrupted; it may have been done")
            assert len(await sessions(mesh)) == 2

    run(main(), LONG_S)


def test_what_it_keeps_in_the_mesh_goes_with_the_agent(
    server: Server, subjects: Subjects, tmp_path: Path, fake: FakeMessages
) -> None:
    fake.play(["welcome"])

    async def main() -> None:
        async with claude_mesh(server, subjects, tmp_path, fake) as mesh:
            await mesh.client.start_agent("coder", kind="Coder", timeout=PATIENCE_S)
            await mesh.client.ask("coder", "hello", timeout=PATIENCE_S)
            assert len(await sessions(mesh)) == 1
            assert KEY.encode() not in b"".join(map(encode_record, await mesh.records("coder")))
            await mesh.client.stop("coder", timeout=PATIENCE_S)

            async def cleared() -> bool:
                return not await sessions(mesh)

            await eventually(cleared, PATIENCE_S, "the end of the transcripts")

    run(main(), LONG_S)
