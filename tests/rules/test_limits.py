"""What could cost a node its connection or its process (docs/architecture.md#poison), on a real server."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh import wire
from agentmesh.edge.publish import store
from agentmesh.edge.read import read_all
from agentmesh.edge.streams import ensure
from agentmesh.registry_values import NodeLease
from agentmesh.subjects import Subjects
from agentmesh_node.host.heartbeat import Heartbeat
from live.mesh import PATIENCE_S, LocalMesh, local_mesh
from supervised import RecordingLivenessThread
from support import Server, connected, eventually, run

BOUND_S = 110


async def dead_letters(mesh: LocalMesh, agent: str, count: int) -> list[tuple[str, int]]:
    """Reason and size of each dead letter, once there are `count`."""
    found: list[tuple[str, int]] = []

    async def enough() -> bool:
        stored = await read_all(mesh.transport, mesh.subjects.stream("dead"), mesh.subjects.dead(agent))
        found[:] = [(message.headers["Mesh-Reason"], len(message.data)) for message in stored]
        return len(found) >= count

    await eventually(enough, PATIENCE_S, f"{count} dead letters of {agent}")
    return found


def test_a_reply_subject_of_5000_characters_costs_no_connection(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("echo", kind="Recorder", timeout=PATIENCE_S)
            lost: list[str] = []
            mesh.nodes["n1"].services.transport.on_gap(lambda: lost.append("the node's connection"))
            long = "reply." + "x" * 5000
            for header in (wire.REPLY_TO, wire.STREAM_TO):
                await store(mesh.transport, mesh.subjects.inbox("echo"), b"hello", headers={header: long})
            assert [reason for reason, _ in await dead_letters(mesh, "echo", 2)] == ["bad_request"] * 2
            assert (await mesh.client.ask("echo", "still there?", timeout=PATIENCE_S)).text == "still there?"
            assert lost == []

    run(main(), BOUND_S)


@pytest.mark.parametrize("padding", [0, 50_000], ids=["plain", "with large headers"])
def test_a_body_at_the_payload_limit_that_must_become_a_dead_letter_costs_no_connection(
    server: Server, subjects: Subjects, padding: int
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("echo", kind="Recorder", timeout=PATIENCE_S)
            lost: list[str] = []
            mesh.nodes["n1"].services.transport.on_gap(lambda: lost.append("the node's connection"))
            headers = {"Mesh-Padding": "p" * padding} if padding else {}
            room = mesh.transport.max_payload - (64 << 10) - sum(len(k) + len(v) + 4 for k, v in headers.items()) - 16
            body = b"\xff" * room  # the largest that the lane takes, and no UTF-8
            await store(mesh.transport, mesh.subjects.inbox("echo"), body, headers=headers)
            assert await dead_letters(mesh, "echo", 1) == [("bad_request", room)]
            assert (await mesh.client.ask("echo", "still there?", timeout=PATIENCE_S)).text == "still there?"
            assert lost == []

    run(main(), BOUND_S)


def test_a_loop_that_hangs_is_ended_from_the_heartbeat_s_thread(server: Server, subjects: Subjects) -> None:
    async def main() -> bool:
        async with connected(server.url) as transport:
            await ensure(transport, subjects)
            liveness = RecordingLivenessThread(server.url)
            heartbeat = Heartbeat(
                liveness,
                subjects,
                "n1",
                NodeLease(boot="b1"),
                ttl_s=3,
                on_request=lambda request: None,
                on_superseded=lambda: None,
                stall_limit_s=0.5,
            )
            await heartbeat.start()
            assert not liveness.ended.is_set()
            hung_long_enough = liveness.ended.wait(60)  # blocks this loop, as a callback does that never returns
            await heartbeat.close()
            return hung_long_enough

    assert run(main(), BOUND_S)


def test_a_loop_that_only_waits_is_not_ended(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with connected(server.url) as transport:
            await ensure(transport, subjects)
            liveness = RecordingLivenessThread(server.url)
            lease = NodeLease(boot="b1")
            heartbeat = Heartbeat(
                liveness, subjects, "n1", lease, ttl_s=3, on_request=lambda r: None, on_superseded=lambda: None, stall_limit_s=60
            )
            await heartbeat.start()
            await asyncio.sleep(0)
            await heartbeat.close()
            assert not liveness.ended.is_set()

    run(main(), BOUND_S)
