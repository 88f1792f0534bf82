"""Real servers, killed as docs/nats.md#what-a-killed-server-forgets describes: what they forget and bring back is no more than
what the simulated one may."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentmesh.edge.manage import purge
from agentmesh.edge.publish import Stored, store
from agentmesh.edge.read import StoredMessage, read_by_leader
from agentmesh.edge.registry import Registry
from agentmesh.edge.streams import ensure
from agentmesh.edge.transport import Transport
from agentmesh.errors import Unavailable
from agentmesh.subjects import Subjects
from support import Cluster, Server, connected, run

pytestmark = pytest.mark.processes

S = Subjects()
MAIL = S.stream("mail")
INBOX = S.inbox("a")
BOUND_S = 110


def all_at_once(servers: list[Server], deed: Callable[[Server], object]) -> None:
    """Do `deed` to all servers at the same time."""
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(deed, servers))


def killed(servers: list[Server]) -> None:
    """Kill all servers and start them again."""
    all_at_once(servers, Server.kill)
    for server in servers:
        server.launch()
    for server in servers:
        server.wait_ready()


async def send(t: Transport, first: int, last: int) -> list[Stored]:
    """Prompts with ids."""
    return [await store(t, INBOX, f"prompt {n}".encode(), msg_id=f"id-{n}") for n in range(first, last)]


async def held(t: Transport) -> dict[int, StoredMessage]:
    """What the lane holds, once its stream has a leader again."""
    while True:
        try:
            return {message.seq: message async for message in read_by_leader(t, MAIL, INBOX)}
        except Unavailable:
            await t.flush()


@pytest.mark.parametrize("durable", [True, False])
def test_what_two_kills_bring_back_was_there_before_and_nothing_else_is_lost(durable: bool) -> None:
    with Server(durable=durable) as server:

        async def before() -> tuple[dict[int, bytes], int]:
            async with connected(server.url) as t:
                await ensure(t, S)
                sent = await send(t, 0, 120)
                await purge(t, MAIL, INBOX, below=sent[60].seq)
                registry = Registry(t, S)
                revision = await registry.create("nodes.n1", b"{}")
                assert await registry.delete("nodes.n1", revision)
                return {ack.seq: f"prompt {n}".encode() for n, ack in enumerate(sent)}, sent[60].seq

        async def after(ever: dict[int, bytes], kept: int) -> None:
            async with connected(server.url) as t:
                found = await held(t)
                assert {seq: ever[seq] for seq in found} == {seq: message.data for seq, message in found.items()}
                assert {seq for seq in ever if seq >= kept} <= set(found)
                assert await Registry(t, S).get("nodes.n1") is None, "its marker keeps it away"
                again = await send(t, 60, 120)
                assert all(ack.duplicate for ack in again), "one replica forgets no id whose message is stored"

        ever, kept = run(before(), BOUND_S)
        for _ in range(2):
            killed([server])
            run(after(ever, kept), BOUND_S)


def test_three_replicas_that_were_killed_may_store_ids_again_and_lose_nothing() -> None:
    with Cluster(durable=True) as cluster:

        async def first() -> None:
            async with connected(cluster.url) as t:
                await ensure(t, S, replicas=3)
                await send(t, 0, 5)

        async def second() -> list[Stored]:
            async with connected(cluster.url) as t:
                last = max(await held(t))
                await purge(t, MAIL, INBOX, below=last + 1)
                return await send(t, 10, 70)

        async def third(sent: list[Stored]) -> None:
            async with connected(cluster.url) as t:
                found = await held(t)
                assert {ack.seq for ack in sent} <= set(found), "what was acknowledged is there"
                again = await send(t, 10, 70)
                new = [ack for ack in again if not ack.duplicate]  # not in each run
                assert {ack.seq for ack in new}.isdisjoint(found), "no sequence is given twice"

        run(first(), BOUND_S)
        all_at_once(cluster.servers, Server.stop)  # a clean stop makes a snapshot
        for server in cluster.servers:
            server.launch()
        for server in cluster.servers:
            server.wait_ready()
        sent = run(second(), BOUND_S)
        killed(cluster.servers)
        run(third(sent), BOUND_S)
