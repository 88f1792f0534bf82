"""Who has work among the agents that a node takes up, and who of them comes first: those that somebody waits for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from agentmesh.edge.publish import store
from agentmesh.edge.streams import ensure
from agentmesh.records import Record, RecordKind, encode_record
from agentmesh.subjects import Subjects
from agentmesh_node.host.work_scan import agents_with_work
from support import Server, connected, run


def record(kind: RecordKind, positions: dict[str, int] | None = None) -> bytes:
    return encode_record(
        Record(kind=kind, id=kind, at=1.0, incarnation="l", epoch=1, generation=1, node="n1", boot="b", positions=positions)
    )


def test_waiting_callers_come_first_and_those_at_rest_are_left_asleep(server: Server, subjects: Subjects) -> None:
    async def scenario() -> None:
        async with connected(server.url) as transport:
            await ensure(transport, subjects)

            async def mail(agent: str) -> int:
                return (await store(transport, subjects.inbox(agent), b"hello")).seq

            async def journal(agent: str, kind: RecordKind, positions: dict[str, int] | None = None) -> None:
                await store(transport, subjects.journal(agent), record(kind, positions))

            await journal("asleep", "rest", {"inbox": await mail("asleep")})
            await journal("asked", "rest", {"inbox": await mail("asked")})
            await mail("asked")
            await journal("busy", "turn")
            await mail("busy")
            await mail("chained")
            await journal("chained", "turn")
            await mail("new")
            services: Any = SimpleNamespace(transport=transport, subjects=subjects)
            agents = ["asleep", "asked", "busy", "chained", "new", "silent"]
            urgent: list[str] = []
            later = await agents_with_work(services, agents, urgent.append)
            assert sorted(urgent) == ["asked", "busy", "new"]
            assert later == {"chained", "silent"}
            assert await agents_with_work(services, agents) == {*urgent, *later}
            assert await agents_with_work(services, []) == set()

    run(scenario())
