"""Control requests that name their operation, beside owners of an older build (cases 690, 691 and 719)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NamedTuple

import msgspec
import pytest

from agentmesh.control_operations import GIVEN
from agentmesh.edge.clock import SYSTEM
from agentmesh.edge.connection import NatsTransport
from agentmesh.edge.permissions import USER_INFO
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Message, NoResponders
from agentmesh.keys import KEY
from agentmesh.registry_values import NodeLease
from agentmesh.subjects import Subjects, node_key
from agentmesh.wire import RELAYED, encode
from agentmesh_node.formats import Formats
from agentmesh_node.gateway.older_owners import OlderOwners
from support import Server, connected, eventually, run

pytestmark = pytest.mark.case(690, 691)

OLD = b'{"boot":"b","reads":2}'
NEW = encode(NodeLease(boot="b", reads=2, by_operation=True))


class Place(NamedTuple):
    """A gateway's part for older owners, on a real server."""

    transport: NatsTransport
    subjects: Subjects
    registry: Registry
    heard: list[Message]
    """What the older owner of `coder` was sent."""

    async def ask(self, op: str, agent: str = "coder", body: bytes = b"", **headers: str) -> Any:
        """The JSON that a request is answered with, which names its operation in the subject."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        subject = self.subjects.control_op(op, agent)
        return msgspec.json.decode((await self.transport.request(subject, body, headers=named, timeout=30)).data)

    async def sent_on(self) -> bool:
        """Whether such requests are sent on now: else the server says that nobody answers."""
        try:
            return bool(await self.ask("status", "nobody"))
        except NoResponders:
            return False

    async def older_owner(self, message: Message) -> None:
        """Answer as an owner that knows the form with the operation in its body, and not all operations."""
        if ".live.control." not in message.subject:
            return
        self.heard.append(message)
        op = msgspec.json.decode(message.data)["op"]
        error = {"code": "bad_request", "message": f"unknown operation {op!r}", "details": {}}
        await self.transport.publish(message.reply, msgspec.json.encode({"error": error} if op == "set" else {"did": op}))


@contextlib.asynccontextmanager
async def place(server: Server, subjects: Subjects) -> AsyncIterator[Place]:
    """It, with an older owner of the agent `coder`."""
    async with connected(server.url) as t, asyncio.TaskGroup() as group:
        await ensure(t, subjects)
        it = Place(t, subjects, Registry(t, subjects), [])
        formats = Formats(it.registry, SYSTEM.monotonic)
        await formats.start()
        older = OlderOwners(t, subjects, formats, lambda work: _spawn(group, work))
        await older.start()
        await t.subscribe(subjects.copies("coder"), it.older_owner)
        await t.flush()
        try:
            yield it
        finally:
            await older.close()
            await formats.close()


def _spawn(group: asyncio.TaskGroup, work: Coroutine[Any, Any, Any]) -> None:
    group.create_task(work)


def test_they_are_sent_on_while_a_lease_is_of_an_older_build_and_no_longer(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with place(server, subjects) as it:
            assert not await it.sent_on(), "nobody of an older build is there"
            revision = await it.registry.create(node_key("n1"), OLD)
            await eventually(it.sent_on, what="they are sent on")
            assert await it.ask("interrupt", body=b'{"ref":"17"}', Mesh_Key="k" * 16) == {"did": "interrupt"}
            sent = it.heard[-1]
            assert msgspec.json.decode(sent.data) == {"op": "interrupt", "ref": "17"}
            assert (sent.headers[RELAYED], sent.headers[KEY]) == ("1", "k" * 16)
            assert await it.ask("state") == {"did": "status"} and msgspec.json.decode(it.heard[-1].data)["content"] is True
            await it.registry.update(node_key("n1"), NEW, revision)
            await eventually(lambda: _not(it.sent_on()), what="all know the other form")

    run(scenario())


async def _not(asked: Any) -> bool:
    return not await asked


def test_what_an_older_owner_cannot_do_is_told_with_the_cause(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with place(server, subjects) as it:
            await it.registry.create(node_key("n1"), OLD)
            await eventually(it.sent_on, what="they are sent on")
            told = [
                (await it.ask(*asked))["error"] for asked in (("set",), ("status", "nobody"), ("status", "coder", b"no json"))
            ]
            assert [error["code"] for error in told] == ["unavailable", "unavailable", "bad_request"]
            assert "older build" in told[0]["message"] and told[1]["details"] == {"agent": "nobody", "nobody": True}
            wrong = await it.ask("status", body=b'{"op":"interrupt"}')
            assert wrong["error"]["code"] == "bad_request" and len(it.heard) == 1, "the subject alone counts here too"

    run(scenario())


class Line:
    """A connection of a gateway, on which the test says what is answered; and what the leases say."""

    def __init__(self, subjects: Subjects) -> None:
        self.subjects = subjects
        self.by_operation = False
        self.open: set[str] = set()
        self.may_close = asyncio.Event()
        self.permissions: dict[str, Any] = {}
        self.answers: list[bytes | None] = []
        """What requests to the agent are answered with, in turn; None: nobody is there."""
        self.sent: list[dict[str, str]] = []
        """The headers of those requests."""
        self.told: list[bytes] = []
        self.handler: Any = None
        self._changed: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []

    def on_change(self, call: Any) -> None:
        self._changed.append(call)

    def change(self, *, by_operation: bool) -> None:
        """The leases say something else."""
        self.by_operation = by_operation
        for call in self._changed:
            call()

    async def started(self) -> OlderOwners:
        def spawn(work: Coroutine[Any, Any, None]) -> None:
            self._tasks.append(asyncio.ensure_future(work))

        it: Any = self
        older = OlderOwners(it, self.subjects, it, spawn)
        await older.start()
        return older

    async def settled(self) -> None:
        await asyncio.gather(*self._tasks)

    async def subscribe(self, subject: str, handler: Any, *, queue: str = "") -> Any:
        line, self.handler = self, handler

        class Open:
            async def drain(self) -> None:
                await line.may_close.wait()
                line.open.discard(subject)

        self.open.add(subject)
        return Open()

    async def request(self, subject: str, data: bytes = b"", *, headers: Any = None, timeout: float = 0.0) -> Message:
        if subject == USER_INFO:
            return Message(subject, encode({"data": {"permissions": self.permissions}}), {})
        self.sent.append(dict(headers))
        answer = self.answers.pop(0) if self.answers else None
        if answer is None:
            raise NoResponders
        return Message(subject, answer, {})

    async def publish(self, subject: str, data: bytes) -> None:
        self.told.append(data)

    async def ask(self, op: str) -> Any:
        """What a request that names its operation is answered with."""
        reply = "_INBOX.asker.1"
        self.handler(Message(self.subjects.control_op(op, "coder"), b"", {KEY: "k" * 16}, reply))
        await self.settled()
        return msgspec.json.decode(self.told.pop())


def of_all(subjects: Subjects) -> set[str]:
    return {subjects.control_op(op, ">") for op in GIVEN}


@pytest.mark.case(719)
def test_an_older_node_that_comes_back_while_the_subscriptions_are_being_closed_is_sent_all_operations(
    subjects: Subjects,
) -> None:
    async def scenario() -> None:
        line = Line(subjects)
        older = await line.started()
        assert line.open == of_all(subjects)
        line.change(by_operation=True)
        await asyncio.sleep(0)
        line.change(by_operation=False)
        line.may_close.set()
        await line.settled()
        assert line.open == of_all(subjects)
        await older.close()
        assert line.open == set()

    run(scenario())


def test_what_reads_reaches_the_owner_that_comes_next_and_nothing_else_is_sent_twice(subjects: Subjects) -> None:
    async def scenario() -> None:
        line = Line(subjects)
        await line.started()
        line.answers = [None, None, b'{"did":"status"}']
        assert await line.ask("state") == {"did": "status"}
        assert line.sent == [{RELAYED: "1", KEY: "k" * 16}, {KEY: "k" * 16}, {KEY: "k" * 16}]
        line.sent.clear()
        line.answers = [None, b'{"did":"set"}']
        assert (await line.ask("set"))["error"]["details"] == {"agent": "coder", "nobody": True}
        assert line.sent == [{RELAYED: "1", KEY: "k" * 16}]

    run(scenario())


def test_operations_that_the_user_may_not_hear_are_not_subscribed_to(
    subjects: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        line = Line(subjects)
        line.may_close.set()
        line.permissions = {"subscribe": {"allow": [f"{subjects.control_op(op, '>')} asks" for op in ("status", "poll")]}}
        await line.started()
        assert line.open == {subjects.control_op(op, ">") for op in ("status", "poll")}
        assert "may not hear" in caplog.text
        line.permissions = {}
        line.change(by_operation=True)
        line.change(by_operation=False)
        await line.settled()
        assert line.open == of_all(subjects)

    run(scenario())
