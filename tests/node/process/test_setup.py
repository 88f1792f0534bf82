"""`mesh setup`: what it says, makes and refuses; and a server of our own, whose store decides."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentmesh.edge import stream_configs as configs
from agentmesh.edge.api import call_api
from agentmesh.edge.manage import stream_state
from agentmesh.edge.publish import store
from agentmesh.edge.streams import Absent, StreamSettings, absent, ensure
from agentmesh.edge.transport import Transport
from agentmesh.errors import StreamMissing, Unavailable
from agentmesh.subjects import Subjects
from agentmesh_node.__main__ import main as command
from agentmesh_node.process import setup as verb
from agentmesh_node.process.address import MeshAddress
from agentmesh_node.process.nats_server import EmbeddedServer
from agentmesh_node.process.setup import set_up_own, streams_there
from support import Server, connected, eventually, run


def at(url: str, subjects: Subjects) -> MeshAddress:
    return MeshAddress(servers=[url], root=subjects.root)


def lacks(server: Server, subjects: Subjects) -> list[str]:
    async def main() -> list[str]:
        async with connected(server.url) as t:
            return (await absent(t, subjects)).lost

    return run(main())


@pytest.mark.case(260)
def test_a_new_mesh_is_made_only_if_somebody_says_that_it_is_new(
    server: Server, subjects: Subjects, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["setup", "--nats", server.url, "--root", subjects.root]
    assert command(where) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"mesh: this account has no stream of mesh '{subjects.root}'")
    assert "`mesh setup --new`" in said.err
    assert len(lacks(server, subjects)) == 8
    assert command([*where, "--dry-run", "--new"]) == 0
    would = capsys.readouterr().out
    assert f"make {subjects.stream('mail')}: " in would and "; 1 copy" in would
    assert len(lacks(server, subjects)) == 8, "nothing was made"
    assert command([*where, "--new"]) == 0
    assert capsys.readouterr().out == f"{would}mesh '{subjects.root}' has all its streams\n"
    assert lacks(server, subjects) == []
    assert command(where) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"nothing to do for mesh '{subjects.root}'"


@pytest.mark.case(263)
def test_it_says_in_peoples_units_what_it_adds(server: Server, subjects: Subjects, capsys: pytest.CaptureFixture[str]) -> None:
    async def older() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects, results_age_s=300)
            stream = subjects.stream("timer")
            config = (await stream_state(t, stream)).config
            await call_api(t, f"STREAM.UPDATE.{stream}", config | {"subjects": config["subjects"][:1]})

    run(older())
    assert command(["setup", "--nats", server.url, "--root", subjects.root, "--results-age", "600", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"change {subjects.stream('result')}: max_age from 300 s to 600 s" in lines
    assert [line for line in lines if line.startswith(f"change {subjects.stream('timer')}: it takes {subjects.root}.")]


def test_without_a_server_it_ends_with_5(subjects: Subjects, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["setup", "--nats", "nats://127.0.0.1:1", "--root", subjects.root, "--wait", "0.2"]) == 5
    assert capsys.readouterr().err.startswith("mesh: no NATS server answers")


@pytest.mark.case(261)
def test_a_process_waits_for_streams_says_so_once_and_makes_none(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verb, "LOOK_S", 0.01)
    monkeypatch.setattr(verb, "LAST_LOOKS", 10**6)  # until the last stream is made, however slow that is
    told: list[str] = []

    async def main() -> None:
        waiting = asyncio.create_task(streams_there(at(server.url, subjects), "n1", told.append))
        await eventually(lambda: told, what="the reason")
        async with connected(server.url) as t:
            assert len((await absent(t, subjects)).lost) == 8
            assert not waiting.done()
            await ensure(t, subjects)
            await waiting

    with caplog.at_level(logging.WARNING):
        run(main())
    (reason,) = told
    assert reason.startswith("stream_missing: ") and "run `mesh setup`" in reason
    (line,) = [record.getMessage() for record in caplog.records if record.name == "agentmesh.service"]
    assert line == reason


@pytest.mark.case(590)
def test_a_process_that_waits_for_streams_says_once_for_each_outage_that_it_cannot_look(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verb, "LOOK_S", 0.001)
    down, looks, told = False, 0, list[str]()

    async def look(t: Transport, subjects: Subjects, **options: float) -> Absent:
        nonlocal looks
        looks += 1
        if down:
            assert options == {"patience_s": 0.0}, "the wait here has no end: no line states one"
            raise Unavailable("the mesh's streams cannot be used: JetStream is off")
        return await absent(t, subjects, **options)

    async def looked(more: int) -> None:
        wanted = looks + more
        await eventually(lambda: looks >= wanted, what="a look")

    async def main() -> None:
        nonlocal down
        waiting = asyncio.create_task(streams_there(at(server.url, subjects), "n1", told.append))
        await eventually(lambda: told, what="the reason")
        for _ in range(2):
            down = True
            await looked(3)
            down = False
            await looked(2)
        async with connected(server.url) as t:
            await ensure(t, subjects)
        await waiting

    monkeypatch.setattr("agentmesh.edge.streams.absent", look)
    with caplog.at_level(logging.WARNING):
        run(main())
    outages = [record.getMessage() for record in caplog.records if "cannot be seen now" in record.getMessage()]
    assert len(outages) == 2
    assert outages[0].endswith("JetStream is off; still waiting")


@pytest.mark.case(460)
def test_a_process_that_waits_for_streams_can_be_ended_at_any_step(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verb, "LOOK_S", 0.001)
    defects: list[dict[str, Any]] = []

    async def ended_at(step: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: defects.append(context))
        waiting = asyncio.create_task(streams_there(at(server.url, subjects), "n1", lambda reason: None))
        for _ in range(step):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with caplog.at_level(logging.ERROR):
        for step in range(0, 200, 4):
            run(ended_at(step))
        gc.collect()
    assert defects == [] and caplog.records == []


@pytest.mark.case(461)
def test_setup_says_at_once_which_server_it_waits_for(subjects: Subjects, caplog: pytest.LogCaptureFixture) -> None:
    assert command(["setup", "--nats", "nats://127.0.0.1:1", "--root", subjects.root, "--wait", "0.3"]) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "no NATS server answers at 127.0.0.1:1 yet (nobody listens there); waiting up to 0.3 s"
    ]


@pytest.mark.case(262)
def test_what_an_older_mesh_lacks_is_said_once_and_keeps_nobody_waiting(
    server: Server, subjects: Subjects, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(configs, "LATER", {"dead": "dead letters"})
    told: list[str] = []

    async def main() -> None:
        async with connected(server.url) as t:
            await ensure(t, subjects)
            await call_api(t, f"STREAM.DELETE.{subjects.stream('dead')}")
        await streams_there(at(server.url, subjects), "n1", told.append)

    with caplog.at_level(logging.WARNING):
        run(main())
    assert told == []
    (line,) = [record.getMessage() for record in caplog.records if record.name == "agentmesh.service"]
    assert (
        line == f"{subjects.stream('dead')} is not there, so this process works without dead letters: run `mesh setup` to add it"
    )


# --- a server of our own --------------------------------------------------------------------------------------------
@pytest.mark.processes
@pytest.mark.case(260)
def test_an_own_server_gets_streams_if_nothing_was_ever_stored_there(tmp_path: Path, subjects: Subjects) -> None:
    async def main() -> None:
        async with EmbeddedServer(tmp_path / "nats") as server:
            assert server.is_new()
            await set_up_own(server, at(server.url, subjects), StreamSettings())
            assert not server.is_new()
            async with connected(server.url) as t:
                await store(t, subjects.inbox("a"), b"x")
        async with EmbeddedServer(tmp_path / "nats") as server:
            assert not server.is_new()
            await set_up_own(server, at(server.url, subjects), StreamSettings())
            await set_up_own(server, at(server.url, Subjects(f"{subjects.root}x")), StreamSettings())  # the store can be read
            async with connected(server.url) as t:
                for stream in await stream_names(t):
                    await call_api(t, f"STREAM.DELETE.{stream}")
            with pytest.raises(StreamMissing, match="has held a mesh"):
                await set_up_own(server, at(server.url, subjects), StreamSettings())

    run(main())


@pytest.mark.processes
def test_a_first_setup_that_was_cut_off_is_still_the_first(tmp_path: Path, subjects: Subjects) -> None:
    async def main() -> None:
        async with EmbeddedServer(tmp_path / "nats") as server, connected(server.url) as t:
            name = subjects.stream("mail")
            made = configs.stream_configs(subjects, replicas=1, max_payload=t.max_payload)[name]
            await call_api(t, f"STREAM.CREATE.{name}", made)
        async with EmbeddedServer(tmp_path / "nats") as server:
            assert server.is_new()
            await set_up_own(server, at(server.url, subjects), StreamSettings())
            assert not server.is_new()

    run(main())


async def stream_names(t: Transport) -> list[str]:
    found: list[str] = msgspec.json.decode(await call_api(t, "STREAM.NAMES"))["streams"]
    return found
