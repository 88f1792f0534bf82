"""`Mesh.history` and `mesh history`: the turns that an agent has had, from its journal."""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import Any

import pytest

from agentmesh.errors import NotFound, PreTurnSkipped
from agentmesh.subjects import Subjects
from commands import mesh_command
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from live.test_between_agents import do, events_of, start
from support import Server, eventually, run


async def command(mesh: LocalMesh, *arguments: str, code: int = 0, errors: bool = False) -> str:
    """What `mesh ...` prints; with `errors`, or another `code`, on stderr."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    where = {"MESH_NATS_URL": mesh.server.url, "MESH_ROOT": mesh.subjects.root, "COLUMNS": "200"}
    done = await mesh_command(arguments, clean | where)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout if code == 0 and not errors else done.stderr


@pytest.mark.case(246)
def test_history_shows_who_asked_when_where_and_content_only_on_demand(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "boss", "worker")
            asked = await mesh.client.ask("boss", do(["tell", {"target": "worker", "prompt": "count them", "tag": "t"}]))
            await events_of(mesh, "boss", 1)
            await mesh.client.tell("worker", "fail:quota")
            await mesh.client.ask("worker", "third")
            (boss,) = await mesh.client.history("boss")
            assert (boss.turn, boss.ref, boss.sender, boss.node, boss.takeovers) == (1, asked.ref, None, "n1", 0)
            assert boss.prompt is None
            assert boss.started <= boss.ended
            first, second, third = await mesh.client.history("worker", content=True)
            assert (first.sender, first.prompt, first.answer) == ("boss", "count them", "count them")
            assert second.error is not None
            assert (second.error.code, second.answer) == ("backend_error", None)
            assert (third.turn, third.sender, third.prompt, third.answer) == (3, None, "third", "third")
            with pytest.raises(NotFound):
                await mesh.client.history("nobody")
            await mesh.client.stop("worker")
            ended = await mesh.client.history("worker", content=True)
            assert [(turn.turn, turn.prompt) for turn in ended] == [(1, "count them"), (2, "fail:quota"), (3, "third")]
            await start(mesh, "worker")
            assert await mesh.client.history("worker") == [], "the next life has a history of its own"

    run(main(), 110)


@pytest.mark.case(246)
def test_the_last_turns_survive_a_snapshot(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "busy", kind="Recorder")
            for base in range(0, 300, 50):
                await asyncio.gather(*(mesh.client.ask("busy", f"p{base + number}") for number in range(50)))
            assert any(record.snapshot is not None for record in (await mesh.records("busy"))[:1]), "the journal was cut short"
            turns = await mesh.client.history("busy", content=True)
            assert [turn.turn for turn in turns] == list(range(301 - len(turns), 301))
            assert 32 <= len(turns) < 300
            assert turns[-1].answer == "p299"

    run(main(), 110)


@pytest.mark.case(246)
@pytest.mark.parametrize("kept", [3, 60])
def test_how_many_turns_are_kept_is_a_setting(server: Server, subjects: Subjects, kept: int) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, history=kept, snapshot_records=4) as mesh:
            await start(mesh, "busy", kind="Recorder")
            for number in range(70):
                await mesh.client.ask("busy", f"p{number}")
            turns = [turn.turn for turn in await mesh.client.history("busy")]
            assert turns == list(range(71 - len(turns), 71))
            assert kept <= len(turns) <= kept + 4, "those that are kept, and those since the last snapshot"
            said = await command(mesh, "history", "busy", errors=True)
            first = re.search(r"turns before (\d+) are not kept any more; .* MESH_HISTORY", said)
            assert first is not None and turns[0] <= int(first[1]) <= 71 - kept, "a snapshot may have come in between"
            await mesh.client.stop("busy")
            assert [turn.turn for turn in await mesh.client.history("busy")][-kept:] == turns[-kept:]

    run(main(), 110)


@pytest.mark.case(246)
def test_a_takeover_shows_in_the_turn_that_lived_through_it(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, "n1", rest_s=0.1) as mesh:
            await start(mesh, "coder", kind="Recorder")
            await mesh.client.ask("coder", "one")

            async def at_rest() -> bool:
                return (await mesh.records("coder"))[-1].kind == "rest"

            await eventually(at_rest, PATIENCE_S, "its rest")
            await mesh.node("n2")
            await mesh.nodes["n1"].close()

            async def moved() -> bool:
                return await mesh.client.whereis("coder") == "n2"

            await eventually(moved, PATIENCE_S, "its place")  # a prompt that comes earlier lives through a takeover
            assert (await mesh.client.ask("coder", "two", timeout=PATIENCE_S)).node == "n2"
            one, two = await mesh.client.history("coder")
            assert (one.node, two.node) == ("n1", "n2")
            assert (one.takeovers, two.takeovers) == (0, 0), "an agent at rest was only placed elsewhere"

    run(main(), 110)


@pytest.mark.case(246)
@pytest.mark.case(210)
def test_the_commands_history_and_dead(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "frail")
            await mesh.client.ask("frail", "first\nprompt")
            await mesh.client.tell("frail", do(["raise", {"message": "broken"}]))
            await mesh.saw("dead_lettered", "frail")

            async def listed() -> bool:
                return bool(await mesh.client.dead_letters("frail"))

            await eventually(listed, PATIENCE_S, "the dead letter")
            lines = (await command(mesh, "history", "frail")).splitlines()
            assert lines[0].split() == ["TURN", "REF", "STARTED", "TOOK", "FROM", "NODE", "TAKEOVERS", "RESULT"]
            assert len(lines) == 3 and lines[2].split()[-1] == "failed", "the prompt that crashed it is shown, too"
            assert "first prompt" in await command(mesh, "history", "frail", "--content")
            turn, crashed = json.loads(await command(mesh, "history", "frail", "-o", "json", "--content"))
            assert turn | {"turn": 1, "node": "n1", "prompt": "first\nprompt", "answer": "first\nprompt"} == turn
            assert turn["started"].endswith("Z")
            assert (crashed["turn"], crashed["error"]["code"], "answer" in crashed) == (2, "failed", False)
            assert "no agent 'nobody'" in await command(mesh, "history", "nobody", code=3)

            (letter,) = json.loads(await command(mesh, "dead", "ls", "frail", "-o", "json"))
            assert letter["reason"]["code"] == "failed"
            assert "text" not in letter
            assert "3 times" in await command(mesh, "dead", "ls", "frail")
            shown = await command(mesh, "dead", "show", "frail", str(letter["seq"]))
            assert '"raise"' in shown
            ref = (await command(mesh, "dead", "retry", "frail", str(letter["seq"]))).strip()
            await mesh.saw("dead_lettered", "frail", 2)
            assert ref.isdigit()
            await command(mesh, "dead", "show", "frail", str(letter["seq"]), code=3)
            await command(mesh, "dead", "retry", "frail", str(letter["seq"]), code=3)
            await command(mesh, "dead", "purge", "frail", code=2)
            await eventually(listed, PATIENCE_S, "the letter that failed again")
            purged: Any = json.loads(await command(mesh, "dead", "purge", "frail", "--all", "-o", "json"))
            assert purged == {"v": 1, "agent": "frail", "purged": 1}
            assert (await command(mesh, "dead", "ls", "frail", "-o", "json")).strip() == "[]"

    run(main(), 110)


def test_a_skipped_prompt_is_no_turn(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await start(mesh, "picky", kind="Picky")
            with pytest.raises(PreTurnSkipped):
                await mesh.client.ask("picky", "skip me")
            assert await mesh.client.history("picky") == []

    run(main(), 110)
