"""Reading who waits for whom: which agents are read whole, in how many requests, and what cannot be read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec import structs

from agentmesh import wire
from agentmesh.edge.journal_reader import RECORD
from agentmesh.edge.publish import store
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.errors import NotFound
from agentmesh.ledger import record_of
from agentmesh.records import Awaited, Caller, Change, Deferred, Ledger, Record, RecordKind, Resolve, encode_record
from agentmesh.registry_values import NodeLease, Placement, Spec
from agentmesh.subjects import Subjects, node_key, placement_key, spec_key
from agentmesh.wire import Outcome, encode_outcome
from agentmesh_client import WaitGraph
from agentmesh_client.directory import Directory
from agentmesh_client.owes import WaitReader
from support import Server, connected, run

LIFE = Ledger(incarnation="life", generation=1, node="n1", boot="b", phase="ready")


def record(kind: RecordKind, **fields: Any) -> Record:
    return structs.replace(record_of(LIFE, kind, id="r", at=1.0), **fields)


class Stored:
    """What a mesh without any process has stored, and what is asked of its server."""

    def __init__(self, transport: Any, subjects: Subjects) -> None:
        self.transport = transport
        self.subjects = subjects
        self.requests: list[str] = []
        self.reader = WaitReader(self, subjects, Directory(self, subjects, Registry(self, subjects)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    async def request(self, subject: str, *args: Any, **options: Any) -> Any:
        self.requests.append(subject)
        return await self.transport.request(subject, *args, **options)

    async def request_many(self, subject: str, *args: Any, **options: Any) -> Any:
        self.requests.append(subject)
        return await self.transport.request_many(subject, *args, **options)

    async def put(self, key: str, value: object) -> None:
        await store(self.transport, self.subjects.registry_key(key), wire.encode(value))

    async def agent(self, name: str, *records: Record, node: str | None = "n1", **spec: Any) -> None:
        await self.put(spec_key(name), Spec(**{"kind": "K", "incarnation": "life", "status": "running", **spec}))
        if node is not None:
            await self.put(placement_key(node, name), Placement(incarnation="life"))
        for one in records:
            await self.journal(name, encode_record(one))

    async def journal(self, name: str, body: bytes) -> None:
        await store(self.transport, self.subjects.journal(name), body, headers={RECORD: "r"})

    async def mail(self, name: str, lane: str = "inbox", headers: Mapping[str, str] | None = None) -> int:
        return (await store(self.transport, self.subjects.lane(lane, name), b"hello", headers=headers)).seq

    async def owes(self, agent: str | None = None) -> WaitGraph:
        self.requests.clear()
        return await self.reader.read(agent)


def stored(server: Server, subjects: Subjects, story: Any, timeout: float = 60) -> None:
    async def main() -> None:
        async with connected(server.url) as transport:
            await ensure(transport, subjects)
            world = Stored(transport, subjects)
            await world.put(node_key("n1"), NodeLease(boot="b"))
            await story(world)

    run(main(), timeout)


def brief(graph: WaitGraph) -> list[tuple[Any, ...]]:
    return [(entry.waiter, entry.agent, entry.kind, entry.stage, entry.state) for entry in graph.waits]


@pytest.mark.case(501)
def test_only_agents_that_are_not_at_rest_are_read(server: Server, subjects: Subjects) -> None:
    async def story(w: Stored) -> None:
        seq = await w.mail("asleep")
        await w.agent("asleep", record("rest", positions={"inbox": seq}, open=0))
        before = await w.mail("asked")
        turn = record("turn", change=Change(positions={"inbox": before}))
        await w.agent("asked", turn, record("rest", positions={"inbox": before}, open=0))
        await w.mail("asked", headers={wire.REPLY_TO: "answers.here"})
        kept: dict[str, Deferred | None] = {"7": Deferred(caller=Caller(ref="7", reply_to="r"), turn=1, since=5.0, until=9e9)}
        await w.agent("keeps", record("turn", change=Change(deferred=kept)), record("rest", positions={}, open=1))
        await w.agent("older", record("turn", change=Change(deferred=kept)), record("rest", positions={}))
        await w.agent("silent", record("turn"))
        await w.agent("new", status="wanted", node=None)
        await w.agent("over", record("tombstone", snapshot=LIFE), node=None, status="stopped")
        found = await w.owes()
        assert brief(found) == [
            (None, "keeps", "ask", "deferred", "idle"),
            (None, "older", "ask", "deferred", "idle"),
            (None, "asked", "ask", "running", "running"),
        ]
        assert (found.agents, found.read) == (7, 4), "asked, keeps, older, silent"
        read = {subject for subject in w.requests if "STREAM.MSG.GET" in subject}
        assert read, "each journal is proven complete by the leader"
        (kept_open,) = (await w.owes("keeps")).waits
        assert kept_open.deadline is not None and kept_open.node == "n1"

    stored(server, subjects, story)


@pytest.mark.case(504)
def test_names_that_no_agent_has_and_names_that_nobody_knows(server: Server, subjects: Subjects) -> None:
    async def story(w: Stored) -> None:
        await w.mail("nobody")
        await w.mail("events.only", "notify")
        await w.mail("*")
        await w.agent("b", record("rest", positions={}, open=0))
        assert brief(await w.owes()) == [(None, "nobody", "tell", "queued", "no_agent")]
        assert (await w.owes("b")).waits == ()
        for name in ("stranger", "events.only"):
            with pytest.raises(NotFound, match=name):
                await w.owes(name)

    stored(server, subjects, story)


def test_a_request_is_seen_from_both_ends_and_its_answer_on_the_way(server: Server, subjects: Subjects) -> None:
    async def story(w: Stored) -> None:
        asked: dict[str, Awaited | None] = {"1.3.0": Awaited("b", "first", 5.0), "1.4.0": Awaited("b", "second", 6.0)}
        await w.agent("a", record("turn", change=Change(awaiting=asked)), record("rest", positions={}, open=2))
        await w.agent("b", record("rest", positions={}, open=0), node="gone")
        sender = {wire.FROM: "a", wire.ORIGIN: "1.4.0", wire.TAG: "second", wire.FROM_LIFE: "life"}
        ref = str(await w.mail("b", "peer-inbox", sender))
        await w.mail("a", "peer-notify", {wire.FROM: "b", wire.TAG: "first"})
        first, second = (await w.owes("a")).waits
        assert (first.stage, first.ref, second.stage, second.ref) == ("answered", None, "queued", ref)
        assert {entry.state for entry in (first, second)} == {"not_placed"}, "there is no lease of its node"
        assert (await w.owes("b")).waits == (first, second)

    stored(server, subjects, story)


@pytest.mark.case(505)
def test_a_journal_that_cannot_be_read_hides_no_other(server: Server, subjects: Subjects) -> None:
    async def story(w: Stored) -> None:
        await w.agent("damaged")
        await w.journal("damaged", b'{"v":1,"kind":"rest","id')
        await w.agent("newer")
        await w.journal("newer", b'{"v":9,"kind":"fresh"}')
        for name in ("damaged", "newer", "sound"):
            await w.mail(name)
        await w.agent("sound", record("turn"))
        found = await w.owes()
        assert brief(found) == [
            (None, "damaged", "tell", "queued", "stuck"),
            (None, "newer", "tell", "queued", "stuck"),
            (None, "sound", "tell", "running", "running"),
        ]
        assert found.unread == ("damaged", "newer")
        assert found.waits[1].reason is not None and "version 9" in found.waits[1].reason.message

    stored(server, subjects, story)


def test_an_answer_that_stands_in_the_journal_and_was_told_to_nobody_is_still_owed(server: Server, subjects: Subjects) -> None:
    async def story(w: Stored) -> None:
        told, untold, old = (Resolve(outcome=Outcome(agent="a", ref=ref, ok=True), reply_to="r") for ref in ("1", "2", "3"))
        await store(w.transport, subjects.result("a", "1"), encode_outcome(told.outcome))
        await w.agent("a", record("turn", effects=(old,)), record("turn", effects=(told, untold), at=time.time()), node=None)
        (entry,) = (await w.owes()).waits
        assert (entry.agent, entry.ref, entry.stage, entry.state) == ("a", "2", "answered", "not_placed")

    stored(server, subjects, story)


# --- many agents ------------------------------------------------------------------------------------------------------
SLEEPING = 10_000
BUSY = 50


@pytest.mark.slow
@pytest.mark.case(501)
def test_of_ten_thousand_agents_those_at_rest_are_not_read(server: Server, subjects: Subjects) -> None:
    async def story(w: Stored) -> None:
        rest = encode_record(record("rest", positions={"inbox": 1}, open=0))
        spec = wire.encode(Spec(kind="K", incarnation="life", status="running"))
        place = wire.encode(Placement(incarnation="life"))
        for number in range(SLEEPING):
            name = f"s{number}"
            await w.transport.publish(subjects.registry_key(spec_key(name)), spec)
            await w.transport.publish(subjects.registry_key(placement_key("n1", name)), place)
            await w.transport.publish(subjects.journal(name), rest, headers={RECORD: "r"})
            if number % 250 == 0:
                await asyncio.sleep(0)
                await store(w.transport, subjects.dead("flow"), b"x")  # the server keeps up
        for number in range(BUSY):
            await w.agent(f"b{number}", record("turn"))
            await w.mail(f"b{number}")
        await w.owes()
        small, began = len(w.requests), time.perf_counter()
        found = await w.owes()
        seconds = time.perf_counter() - began
        print(f"mesh owes: {SLEEPING} agents at rest, {BUSY} busy: {seconds:.2f} s, {len(w.requests)} requests")
        assert (found.agents, found.read, len(found.waits)) == (SLEEPING + BUSY, BUSY, BUSY)
        assert len(w.requests) == small
        journals = {subject for subject in w.requests if "JOURNAL" in subject}
        assert len(w.requests) < 10 * BUSY and journals

    stored(server, subjects, story, 110)
