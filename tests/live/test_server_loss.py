"""The server goes, hangs, fills up, or loses a stream or its majority: what callers and operators are told meanwhile, and that
service returns by itself."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agentmesh.edge.api import call_api
from agentmesh.edge.failures import Uncertain
from agentmesh.edge.manage import purge
from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.edge.streams import ensure
from agentmesh.errors import AskTimeout, MeshError, NoLeader, StoreFull, StreamMissing, Unavailable
from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from live.test_kills import state_of
from live.traffic import Traffic
from support import Cluster, Server, connected, eventually, run

LONG_S = 110
SHORT_S = 4.0
"""The patience of callers who are to be told while an outage lasts."""


async def refused(mesh: LocalMesh, agent: str = "coder") -> MeshError:
    """What a caller is told within its timeout. A hang is a failure."""
    async with asyncio.timeout(SHORT_S + PATIENCE_S):
        with pytest.raises(MeshError) as told:
            await mesh.client.ask(agent, "meanwhile", timeout=SHORT_S)
    return told.value


async def reports(mesh: LocalMesh, code: str) -> None:
    """Wait until the node says that it is not ready, and why."""
    node = mesh.nodes["n1"]
    await eventually(lambda: code in (node.not_ready() or ""), PATIENCE_S, f"{code} at the node, not {node.not_ready()}")


async def serves(mesh: LocalMesh, agent: str = "coder") -> None:
    """The node is ready and the agent answers, without anybody's help."""
    assert (await mesh.client.ask(agent, "afterwards", timeout=PATIENCE_S)).text == "afterwards"
    node = mesh.nodes["n1"]
    await eventually(lambda: node.not_ready() is None, PATIENCE_S, f"readiness, not {node.not_ready()}")


# --- the server is away, or hangs -----------------------------------------------------------------------------------
def test_a_server_that_dies_and_returns_costs_waiting_callers_time_only(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(fresh_server, subjects, "n1", "n2") as mesh:
            agents = ("a1", "a2", "a3")
            for agent in agents:
                await mesh.client.start_agent(agent, kind="Recorder", timeout=PATIENCE_S)
            traffic = Traffic(mesh, agents, PATIENCE_S)
            traffic.start()
            try:
                for times in ("once", "twice"):
                    await traffic.answered(3, f"before the server dies {times}")
                    await asyncio.to_thread(fresh_server.kill)
                    assert (await refused(mesh, "a1")).code in ("unavailable", "timeout")
                    assert mesh.nodes["n1"].not_ready() == "no connection to NATS"
                    await asyncio.to_thread(fresh_server.start)
                await traffic.answered(3, "since it is back")
                await traffic.end()
                assert not traffic.errors(), "their patience was longer than the outage"
                await traffic.audit()
            finally:
                await traffic.close()

    run(main(), LONG_S)


def test_mail_that_is_stored_before_its_node_is_connected_again_is_found(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(fresh_server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            await mesh.client.ask("coder", "before")
            node = mesh.nodes["n1"]
            await asyncio.to_thread(fresh_server.kill)
            await eventually(lambda: node.not_ready() is not None, PATIENCE_S, "the loss at the node")
            await asyncio.to_thread(fresh_server.start)
            async with connected(fresh_server.url) as early:
                await store(early, subjects.inbox("coder"), b"early")
            await serves(mesh)
            assert (await state_of(mesh, "coder"))["prompts"] == ["before", "early", "afterwards"]

    run(main(), LONG_S)


def test_callers_of_a_frozen_server_wait_as_long_as_they_said(fresh_server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(fresh_server, subjects) as mesh:
            for agent in ("coder", "unread"):
                await mesh.client.start_agent(agent, kind="Recorder")
            await mesh.client.ask("coder", "before")
            newcomer = await mesh.connect()  # it has not read any spec
            fresh_server.freeze()
            try:
                await eventually(lambda: frozen(fresh_server.pid), PATIENCE_S, "the server's halt")
                loop = asyncio.get_running_loop()
                began = loop.time()
                patient = [
                    asyncio.create_task(client.ask(agent, "through it", timeout=PATIENCE_S))
                    for client, agent in ((mesh.client, "coder"), (newcomer, "unread"))
                ]
                hasty = [
                    asyncio.create_task(client.ask(agent, "hasty", timeout=SHORT_S))
                    for client, agent in ((mesh.client, "coder"), (newcomer, "unread"))
                ]
                told = await asyncio.gather(*hasty, return_exceptions=True)
                assert [type(error) for error in told] == [Unavailable, Unavailable], told
                assert loop.time() - began > 0.9 * SHORT_S, "they wait as long as they said"
                assert not any(task.done() for task in patient)
            finally:
                fresh_server.thaw()
            assert [(await task).text for task in patient] == ["through it"] * 2
            prompts = (await state_of(mesh, "coder"))["prompts"]
            assert prompts.count("through it") == 1
            assert prompts.count("hasty") <= 1, "who is told that it may be stored is told the truth"

    run(main(), LONG_S)


def frozen(pid: int) -> bool:
    """Whether the process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# --- it is full -----------------------------------------------------------------------------------------------------
FILLING = b"x" * 200_000
SMALL = 6 << 20


class Small(Server):
    """A server that may store little."""

    file_store = str(SMALL)


# The account's own limit is another one, with an error of its own.
ACCOUNT = f"accounts: {{ M: {{ jetstream: {{ max_file: {SMALL} }}, users: [{{ user: m, password: m }}] }} }}\nno_auth_user: m"


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["server", "account"])
def test_a_full_store_is_said_and_goes_on_when_there_is_room_again(
    subjects: Subjects, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(server: Server) -> None:
        async with local_mesh(server, subjects, results_bytes=1 << 20, trace_bytes=1 << 20) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            await mesh.client.ask("coder", "before")
            filler = subjects.inbox("filler")
            size = len(FILLING)
            while size > 1:  # the last gap too: a small prompt must not fit in
                try:
                    await store(mesh.transport, filler, FILLING[:size])
                except StoreFull:
                    size //= 2
            error = await refused(mesh)
            assert isinstance(error, StoreFull), error
            assert "free space" in error.message
            assert "max_file_store" in error.message
            await reports(mesh, "store_full")
            assert [record for record in caplog.records if "lease not renewed: store_full" in record.getMessage()]
            await purge(mesh.transport, subjects.stream("mail"), filler)
            await serves(mesh)
            assert (await state_of(mesh, "coder"))["prompts"] == ["before", "afterwards"]

    with caplog.at_level(logging.WARNING), Small() if kind == "server" else Server(config=ACCOUNT) as server:
        run(main(server), LONG_S)


class OnASmallDisk(Server):
    """A server whose disk is full long before its own limit is."""

    file_store = "1GB"

    def mount(self, size: str, *options: str) -> None:
        """Put a disk of `size` under its store, or make that one as large."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", self._dir], check=True)

    def close(self) -> None:
        self.kill()
        subprocess.run(["umount", self._dir], check=True)
        super().close()


@pytest.fixture
def small_disk() -> Iterator[OnASmallDisk]:
    server = OnASmallDisk()
    try:
        server.mount("8m")
    except (OSError, subprocess.CalledProcessError):
        Server.close(server)
        pytest.skip("a file system can be mounted by root alone")
    with server:
        yield server


@pytest.mark.processes
def test_a_full_disk_silences_the_server_and_the_node_says_why(
    small_disk: OnASmallDisk, subjects: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with local_mesh(small_disk, subjects, results_bytes=1 << 20, trace_bytes=1 << 20) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            await mesh.client.ask("coder", "before")
            with pytest.raises((Uncertain, StoreFull)):
                while True:
                    await store(mesh.transport, subjects.inbox("filler"), FILLING, timeout=SHORT_S)
            error = await refused(mesh)
            assert error.code in ("unavailable", "store_full"), error
            await reports(mesh, "store_full")
            assert "no space left" in (mesh.nodes["n1"].not_ready() or "")
            await asyncio.to_thread(small_disk.mount, "64m", "remount")
            await asyncio.to_thread(small_disk.restart)  # NATS does not go on by itself
            await serves(mesh)
            prompts = (await state_of(mesh, "coder"))["prompts"]
            assert (prompts[0], prompts[-1]) == ("before", "afterwards")
            assert prompts.count("meanwhile") <= 1

    with caplog.at_level(logging.WARNING):
        run(main(), LONG_S)


# --- a stream is gone -----------------------------------------------------------------------------------------------
async def delete(mesh: LocalMesh, stream: str) -> None:
    await call_api(mesh.transport, f"STREAM.DELETE.{stream}")


def test_a_deleted_mail_stream_is_said_and_its_successor_is_used(
    server: Server, subjects: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            before = await mesh.client.ask("coder", "before")
            await delete(mesh, subjects.stream("mail"))
            error = await refused(mesh)
            assert isinstance(error, StreamMissing), error
            assert "restore it from its backup" in error.message
            await reports(mesh, "stream_missing")
            assert [record for record in caplog.records if "the store cannot be used: stream_missing" in record.getMessage()]
            await ensure(mesh.transport, subjects)  # as `mesh setup --new` does
            await serves(mesh)
            after = await mesh.client.ask("coder", "once more")
            assert int(after.ref) > int(before.ref), "no ref is given twice: it would bring the first one's outcome"
            assert (await state_of(mesh, "coder"))["prompts"] == ["before", "afterwards", "once more"]
            assert len({outcome.ref for outcome in await mesh.results("coder")}) == 3

    with caplog.at_level(logging.WARNING):
        run(main(), LONG_S)


def test_a_deleted_journal_stops_its_agents_and_paints_nothing_over(
    server: Server, subjects: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects, passivate_s=0.5) as mesh:
            for agent in ("awake", "asleep"):
                await mesh.client.start_agent(agent, kind="Recorder")
                await mesh.client.ask(agent, "before")
            await delete(mesh, subjects.stream("journal"))
            with pytest.raises(AskTimeout):  # the prompt is stored, and nobody can answer it
                await mesh.client.ask("awake", "meanwhile", timeout=SHORT_S)
            await reports(mesh, "stream_missing")
            await ensure(mesh.transport, subjects)
            for agent in ("awake", "asleep"):
                await mesh.client.tell(agent, "into the void")

            def stopped(agent: str) -> bool:
                lost = [r for r in caplog.records if r.levelno == logging.CRITICAL and getattr(r, "agent", "") == agent]
                return bool(lost)

            await eventually(lambda: stopped("awake") and stopped("asleep"), PATIENCE_S, "the alarm for both")
            left = await read_all(mesh.transport, subjects.stream("journal"), subjects.journal(">"))
            assert left == [], "what the store has lost, nobody may paint over"
            # What is new has a journal of its own.
            await mesh.client.start_agent("newcomer", kind="Recorder", timeout=PATIENCE_S)
            assert (await mesh.client.ask("newcomer", "afterwards", timeout=PATIENCE_S)).text == "afterwards"
            await reports(mesh, "the store has lost data of asleep, awake")

    with caplog.at_level(logging.CRITICAL):
        run(main(), LONG_S)


@pytest.mark.parametrize("taken_up", ["awake", "anew"])
def test_a_mail_stream_that_was_put_back_alone_stops_its_agents(
    fresh_server: Server, subjects: Subjects, caplog: pytest.LogCaptureFixture, taken_up: str
) -> None:
    """Its sequences are given again: what is new would be taken for consumed, and be answered with older outcomes."""

    async def main() -> None:
        async with local_mesh(fresh_server, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder")
            for number in range(3):
                await mesh.client.ask("coder", f"before {number}")
            if taken_up == "anew":
                await mesh.nodes["n1"].close()
            stream = subjects.stream("mail")
            config = msgspec.json.decode(await call_api(mesh.transport, f"STREAM.INFO.{stream}"))["config"]
            await delete(mesh, stream)
            await call_api(mesh.transport, f"STREAM.CREATE.{stream}", config | {"first_seq": 0})
            if taken_up == "anew":
                await mesh.node("n2")
            else:
                await asyncio.to_thread(fresh_server.restart)  # the node looks at the store when it is connected again
            await mesh.client.tell("coder", "meanwhile", timeout=PATIENCE_S)

            def stopped() -> bool:
                lost = [r for r in caplog.records if r.levelno == logging.CRITICAL and getattr(r, "agent", "") == "coder"]
                return bool(lost)

            await eventually(stopped, PATIENCE_S, "the alarm")
            turns = [record.turn.prompt for record in await mesh.records("coder") if record.turn is not None]
            assert turns == ["before 0", "before 1", "before 2"], "nothing more was written"

    with caplog.at_level(logging.CRITICAL):
        run(main(), LONG_S)


# --- too few servers ------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_without_a_majority_callers_are_told_and_service_returns_with_it(
    subjects: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(cluster: Cluster) -> None:
        async with connected(cluster.url) as transport:
            await ensure(transport, subjects, replicas=3)
        async with local_mesh(cluster, subjects) as mesh:
            await mesh.client.start_agent("coder", kind="Recorder", timeout=PATIENCE_S)
            await mesh.client.ask("coder", "before", timeout=PATIENCE_S)
            first, second, _ = cluster.servers
            for server in (first, second):
                await asyncio.to_thread(server.kill)

            async def no_leader() -> bool:
                error = await refused(mesh)
                assert isinstance(error, Unavailable | AskTimeout), error
                return isinstance(error, NoLeader) and "bring" in error.message

            await eventually(no_leader, PATIENCE_S, "the reason at a caller")
            await reports(mesh, "no_leader")
            for server in (first, second):
                await asyncio.to_thread(server.launch)
            for server in (first, second):
                await asyncio.to_thread(server.wait_ready)
            await serves(mesh)
            prompts = (await state_of(mesh, "coder"))["prompts"]
            assert (prompts[0], prompts[-1]) == ("before", "afterwards")

    with caplog.at_level(logging.WARNING), Cluster() as cluster:
        run(main(cluster), LONG_S)


def test_three_replicas_on_one_server_are_refused_with_what_to_do(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as transport:
            with pytest.raises(Unavailable, match=r"start more, or ask for fewer \(--replicas\)"):
                await ensure(transport, subjects, replicas=3)

    run(main(), LONG_S)
