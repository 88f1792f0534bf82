"""The recorder has what the streams have dropped, and says what it has not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agentmesh.edge.api import call_api
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.subjects import Subjects
from chaos.tape import Tape
from support import Server, connected, eventually, run

ROLLUP = {"Nats-Rollup": "sub"}


@contextlib.asynccontextmanager
async def taped(server: Server, subjects: Subjects) -> AsyncIterator[tuple[NatsTransport, Tape]]:
    """A stream that republishes, with a tape that does nothing yet."""
    name = subjects.root.upper()
    async with connected(server.url) as t:
        config = {
            "name": name, "subjects": [f"{name}.>"], "allow_direct": True, "allow_rollup_hdrs": True,
            "republish": {"src": f"{name}.>", "dest": f"copy.{name}.>"},
        }  # fmt: skip
        await call_api(t, f"STREAM.CREATE.{name}", config)
        yield t, Tape(name, f"{name}.>", [t], asyncio.get_running_loop().time)


def test_what_a_rollup_drops_is_on_the_tape(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with taped(server, subjects) as (t, tape):
            await tape.listen(f"copy.{tape.stream}.>")
            for number in range(5):
                await store(t, f"{tape.stream}.a", b"%d" % number)
            await store(t, f"{tape.stream}.a", b"all", headers=ROLLUP)
            assert len(await read_all(t, tape.stream, f"{tape.stream}.>")) == 1
            await eventually(lambda: len(tape.messages) == 6)
            assert await tape.finish() == []
            assert [message.data for message in tape.in_order()] == [b"0", b"1", b"2", b"3", b"4", b"all"]
            assert tape.contradictions == []

    run(main())


def test_what_was_not_heard_is_read(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with taped(server, subjects) as (t, tape):
            await store(t, f"{tape.stream}.a", b"before")
            following = asyncio.create_task(tape.follow())
            await eventually(lambda: len(tape.messages) == 1)
            await tape.listen(f"copy.{tape.stream}.>")
            await store(t, f"{tape.stream}.b", b"behind")
            await eventually(lambda: len(tape.messages) == 2)
            following.cancel()
            await asyncio.wait((following,))
            assert await tape.finish() == []

    run(main())


def test_a_hole_is_owned_up_to_and_a_changed_message_too(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with taped(server, subjects) as (t, tape):
            for body in (b"1", b"2"):
                await store(t, f"{tape.stream}.a", body)
            await store(t, f"{tape.stream}.a", b"all", headers=ROLLUP)
            assert await tape.finish() == [1, 2]
            tape.messages[3] = tape.messages[3]._replace(data=b"something else")
            await tape.finish()
            assert len(tape.contradictions) == 1

    run(main())
