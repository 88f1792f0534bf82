"""A real server whose mail is put back to an older state than the results: CLI, SDK and a plain client get their own answers or
none (docs/design/020-outcomes-name-their-message.md)."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from pathlib import Path

import pytest

from agentmesh.edge.publish import store
from agentmesh.edge.results import OlderMail, read_outcome
from agentmesh.errors import AgentFailed, StoreLost
from agentmesh.subjects import Subjects
from agentmesh_client.cli import exits
from agentmesh_client.doctor.stored import look
from live.mesh import PATIENCE_S, local_mesh
from live.test_history import command
from support import Server, connected, eventually, run

OLD, NEW = "the old question", "the new question"


def streams(server: Server, subjects: Subjects, *, journals: bool) -> list[Path]:
    """The directories of the streams that are put back."""
    others = {subjects.stream("result")}
    found = [path for path in server.streams() if path.name not in others]
    return found if journals else [path for path in found if path.name == subjects.stream("mail")]


async def lose(server: Server, subjects: Subjects, tmp_path: Path, by: int, *, journals: bool) -> str:
    """A mesh whose agent has answered OLD; then streams are as they were before that. Returns the old ref."""
    async with local_mesh(server, subjects) as mesh:
        await mesh.client.start_agent("coder", kind="Recorder", timeout=PATIENCE_S)
        await mesh.client.ask("coder", "hello", timeout=PATIENCE_S)
    await asyncio.to_thread(server.stop)
    chosen = streams(server, subjects, journals=journals)
    for path in chosen:
        await asyncio.to_thread(shutil.copytree, path, tmp_path / path.name)
    await asyncio.to_thread(server.start)
    async with local_mesh(server, subjects) as mesh:
        ref = (await mesh.client.ask("coder", OLD, timeout=PATIENCE_S)).ref
        for _ in range(by - 1):
            await store(mesh.client.transport, subjects.inbox("nobody"), b"hello")

        async def stored() -> bool:
            return await read_outcome(mesh.client.transport, subjects, "coder", ref) is not None

        await eventually(stored, PATIENCE_S, "the old outcome")
    await asyncio.to_thread(server.stop)
    for path in chosen:
        await asyncio.to_thread(shutil.rmtree, path)
        await asyncio.to_thread(shutil.copytree, tmp_path / path.name, path)
    await asyncio.to_thread(server.start)
    return ref


@pytest.mark.case(270)
@pytest.mark.case(272)
@pytest.mark.parametrize("by", [1, 1000])
def test_a_new_question_under_an_old_ref_gets_its_own_answer(
    fresh_server: Server, subjects: Subjects, tmp_path: Path, by: int
) -> None:
    async def main() -> None:
        ref = await lose(fresh_server, subjects, tmp_path, by, journals=True)
        async with connected(fresh_server.url) as plain:
            stored = await store(plain, subjects.inbox("coder"), NEW.encode())
            assert str(stored.seq) == ref, "the sequence is given again"
            found = await look(plain, subjects)
            assert found.older_mail == OlderMail(int(ref), int(ref))
        async with local_mesh(fresh_server, subjects) as mesh:
            newest = await mesh.client.poll("coder", ref)
            assert newest.outcome is None or newest.outcome.text == NEW

            async def answered() -> bool:
                return (await mesh.client.poll("coder", ref)).done

            await eventually(answered, PATIENCE_S, "the new answer")
            assert await command(mesh, "poll", "coder", ref) == f"{NEW}\n"
            shown = json.loads(await command(mesh, "poll", "coder", ref, "-o", "json"))["outcome"]
            assert shown["text"] == NEW and shown["stored"] and "msg_id" not in shown
            for text in ("another", "and another"):
                assert await command(mesh, "ask", "coder", text) == f"{text}\n"

    run(main(), 110)


@pytest.mark.case(270)
@pytest.mark.case(273)
@pytest.mark.parametrize("by", [1, 1000])
def test_an_agent_that_has_consumed_more_answers_nobody_and_nodes_and_doctor_say_why(
    fresh_server: Server, subjects: Subjects, tmp_path: Path, by: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        ref = await lose(fresh_server, subjects, tmp_path, by, journals=False)
        async with connected(fresh_server.url) as plain:
            found = await look(plain, subjects)
            assert found.older_mail is not None and found.older_mail.answered == int(ref)
            assert str((await store(plain, subjects.inbox("coder"), NEW.encode())).seq) == ref
        with caplog.at_level(logging.CRITICAL, "agentmesh.node"):
            async with local_mesh(fresh_server, subjects) as mesh:
                with pytest.raises(StoreLost):  # the old outcome is nobody's
                    await mesh.client.poll("coder", ref, timeout=PATIENCE_S)

                async def shown() -> bool:
                    return bool((await look(mesh.client.transport, subjects)).stuck)

                await eventually(shown, PATIENCE_S, "the spec says so")
                with pytest.raises((AgentFailed, StoreLost)):
                    await mesh.client.ask("coder", NEW, timeout=PATIENCE_S)
                assert "its stream was put back" in await command(mesh, "ask", "coder", NEW, code=exits.FAILED)
                assert "its stream was put back" in await command(mesh, "poll", "coder", ref, code=exits.FAILED)

    run(main(), 110)
    assert any("store has lost data" in record.getMessage() for record in caplog.records)
