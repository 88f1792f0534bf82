"""Mail for nobody on a real server: answered when its time is over, and left to an agent that comes in time."""

from __future__ import annotations

import contextlib

import pytest

import roled
from agentmesh import wire
from agentmesh.edge.connection import connect
from agentmesh.edge.journal_reader import JournalReader
from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.edge.streams import ensure
from agentmesh.errors import NotFound
from agentmesh.subjects import Subjects
from agentmesh_node.liveness_thread import LivenessThread
from agentmesh_node.settings import SupervisorSettings
from agentmesh_node.supervisor.supervisor import Supervisor
from live.mesh import LocalMesh
from support import Server, eventually, run

AGE_S = 1.0


@pytest.mark.case(290)
@pytest.mark.case(291)
def test_mail_for_nobody_is_answered_and_who_comes_later_finds_it_answered(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            transport = await connect(server.url, name="observer")
            stack.push_async_callback(transport.close)
            await ensure(transport, subjects)
            mesh = LocalMesh(server, transport, subjects, stack)
            client = await mesh.connect()
            url = roled.logged_in(server.url, "supervisor", subjects.root)
            line = await connect(url, name="s1")
            stack.push_async_callback(line.close)
            settings = SupervisorSettings(unclaimed_age_s=AGE_S)
            supervisor = Supervisor(line, subjects, "s1", settings, liveness=LivenessThread(url))
            stack.push_async_callback(supervisor.close)
            heard: list[bytes] = []
            await transport.subscribe("_INBOX.a.here", lambda message: heard.append(message.data))
            ref = str((await store(transport, subjects.inbox("nobody"), b"hello", headers={wire.REPLY_TO: "_INBOX.a.here"})).seq)
            assert (await client.poll("nobody", ref)).reason is not None
            await supervisor.start()  # a mesh without a node

            async def ended() -> bool:
                return (await client.poll("nobody", ref)).done

            await eventually(ended, 30)
            outcome = (await client.poll("nobody", ref)).outcome
            assert outcome is not None
            assert outcome.stored is not None, "it names its message"
            with pytest.raises(NotFound, match="no agent has had the name nobody for 1 s"):
                outcome.unwrap()
            assert [wire.decode_outcome(body) for body in heard] == [outcome]
            (letter,) = await client.dead_letters("nobody", True)
            assert (letter.text, letter.ref, letter.reason.code) == ("hello", ref, "not_found")

            async def purged() -> bool:
                return not await client.unclaimed_mail("nobody")

            await eventually(purged, 30)
            await mesh.node()
            await client.start_agent("nobody", kind="Recorder")
            assert (await client.ask("nobody", "are you there?", timeout=60)).text == "are you there?"
            again = await client.retry_dead_letter("nobody", letter.seq)

            async def answered() -> bool:
                return (await client.poll("nobody", again)).done

            await eventually(answered, 30)
            assert [turn.prompt for turn in await client.history("nobody", content=True)] == ["are you there?", "hello"]
            assert not (await JournalReader(transport, subjects).read("nobody")).foreign
            assert len(await read_all(transport, subjects.stream("result"), subjects.result("nobody", "*"))) == 3

    run(main(), 100)
