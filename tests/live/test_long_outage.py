"""An agent's mail whose node stays dead for longer than the server remembers message ids (docs/architecture.md#effects)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentmesh.edge.publish import store
from agentmesh.edge.streams import duplicate_window, ensure
from agentmesh.edge.transport import Message
from agentmesh.subjects import Subjects
from agentmesh.wire import FROM, ORIGIN
from live.mesh import PATIENCE_S, Host, ProcessMesh, process_mesh
from live.test_between_agents import do
from live.test_kills import state_of
from support import Server, connected, eventually, run

LONG_S = 110
WINDOW_S = 1.0
VARIABLE = "MESH_DUPLICATE_WINDOW_S"
DOOMED = Path(__file__).with_name("doomed.py")
TELL = do(["tell", {"target": "receiver", "prompt": "once", "tag": "t"}])
ANSWER = {"answer": "t", "agent": "receiver", "ok": True, "text": "once", "code": None}


class Outage:
    """A mesh whose node n1, alone in running `sender`, dies BEFORE or AFTER its mail to `receiver` is stored."""

    def __init__(self, mesh: ProcessMesh, doomed: Host) -> None:
        self.mesh = mesh
        self.doomed = doomed
        self.stored: list[Message] = []
        """Mail to the receiver, as the server has republished it."""
        self.asked: asyncio.Task[Any]

    async def begin(self) -> None:
        """Let it die, and wait until the server has forgotten all ids of the time before."""
        mesh = self.mesh
        await mesh.transport.subscribe(mesh.subjects.copies("receiver"), self._note)
        await mesh.client.start_agent("receiver", kind="Recorder", labels={"of": "receiver"}, timeout=PATIENCE_S)
        await mesh.client.start_agent("sender", kind="Puppet", labels={"of": "sender"}, timeout=PATIENCE_S)
        self.asked = asyncio.create_task(mesh.client.ask("sender", TELL, timeout=PATIENCE_S))
        await self.doomed.ended()
        probe = mesh.subjects.inbox("probe")
        await store(mesh.transport, probe, b"x", msg_id="probe.1")

        async def forgotten() -> bool:
            return not (await store(mesh.transport, probe, b"x", msg_id="probe.1")).duplicate

        await eventually(forgotten, PATIENCE_S, "the end of the duplicate window")

    def _note(self, message: Message) -> None:
        if message.headers.get(FROM) == "sender":
            self.stored.append(message)

    async def end(self) -> None:
        """Another node takes the sender up; its caller is answered."""
        await self.mesh.node("n3", "--label", "of=sender")
        assert (await self.asked).text == TELL
        await self.mesh.client.ask("sender", "[]", timeout=PATIENCE_S)  # from here on it has an owner

    async def events(self, count: int) -> list[Any]:
        """What the sender has been told, once it is so much; and when its effects are done."""
        found: list[Any] = []

        async def told() -> bool:
            found[:] = (await state_of(self.mesh, "sender"))["events"]
            return len(found) >= count

        await eventually(told, PATIENCE_S, f"{count} events of the sender")
        await self.mesh.client.ask("sender", "[]", timeout=PATIENCE_S)

        async def at_rest() -> bool:
            records = await self.mesh.records("sender")
            return records[-1].kind == "rest"  # it has no open effect

        await eventually(at_rest, PATIENCE_S, "the sender's rest")
        return list((await state_of(self.mesh, "sender"))["events"])


@contextlib.asynccontextmanager
async def outage(server: Server, subjects: Subjects, logs: Path, when: str) -> AsyncIterator[Outage]:
    async with connected(server.url) as transport:
        await ensure(transport, subjects, duplicate_window_s=WINDOW_S)
    async with process_mesh(server, subjects, logs) as mesh:
        doomed = await mesh.node("n1", "--label", "of=sender", before=(str(DOOMED), when, "peer-inbox.receiver"))
        await mesh.node("n2", "--label", "of=receiver")
        made = Outage(mesh, doomed)
        await made.begin()
        try:
            yield made
        finally:
            made.asked.cancel()
            await asyncio.gather(made.asked, return_exceptions=True)


@pytest.mark.case(216)
@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
def test_mail_of_a_node_that_was_dead_for_longer_than_the_window_arrives_once(
    server: Server, subjects: Subjects, tmp_path: Path, when: str
) -> None:
    async def main() -> None:
        async with outage(server, subjects, tmp_path, when) as it:
            published = 1 if when == "AFTER" else 0
            assert len(it.stored) == published
            await it.end()
            assert await it.events(1) == [ANSWER]
            await it.mesh.client.ask("receiver", "behind it", timeout=PATIENCE_S)
            assert (await state_of(it.mesh, "receiver"))["prompts"] == ["once", "behind it"]
            # The server could not tell any more, the receiver could: what was stored again bears the same origin.
            assert len(it.stored) == published + 1
            assert len({message.headers[ORIGIN] for message in it.stored}) == 1

    run(main(), LONG_S)


@pytest.mark.case(217)
@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
def test_mail_to_an_agent_that_has_gone_meanwhile_is_given_up_only_if_it_never_arrived(
    server: Server, subjects: Subjects, tmp_path: Path, when: str
) -> None:
    async def main() -> None:
        async with outage(server, subjects, tmp_path, when) as it:
            if when == "AFTER":
                await eventually(lambda: took_effect(it.mesh), PATIENCE_S, "the turn of the receiver")
            await it.mesh.client.stop("receiver", timeout=PATIENCE_S)
            await it.end()
            undelivered = {"undelivered": {"kind": "tell", "target": "receiver", "tag": "t"}, "code": "not_found"}
            assert await it.events(1) == [ANSWER if when == "AFTER" else undelivered]
            assert len(it.stored) == (1 if when == "AFTER" else 0)

    async def took_effect(mesh: ProcessMesh) -> bool:
        return bool((await state_of(mesh, "receiver"))["prompts"] == ["once"])

    run(main(), LONG_S)


def test_setup_sets_the_window_and_all_processes_take_it_from_there(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main() -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
        where = ("--nats", server.url, "--root", subjects.root)

        async def setup(*options: str, **window: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "agentmesh_node", "setup", *where, *options]
            return await asyncio.to_thread(
                subprocess.run, command, env=clean | window, capture_output=True, text=True, timeout=PATIENCE_S, check=False
            )

        assert (await setup("--new", MESH_DUPLICATE_WINDOW_S="7")).returncode == 0
        host = Host("first", tmp_path / "first.log")
        try:
            await host.start("supervisor", "--id", "first", *where, env=clean | {VARIABLE: "9"})
        finally:
            await host.close()
        async with connected(server.url) as transport:
            assert await duplicate_window(transport, subjects) == 7
            refused = await setup("--duplicate-window", "5")
            assert refused.returncode == 1
            assert "duplicate_window" in refused.stderr, "it says what does not agree"
            assert (await setup("--duplicate-window", "9")).returncode == 0
            assert await duplicate_window(transport, subjects) == 9

    run(main(), LONG_S)
