"""Requests to `mesh.node.<id>`, as any NATS client makes them (docs/protocol.md#requests-to-a-process)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from nats.aio.msg import Msg

from agentmesh.subjects import Subjects
from live.mesh import PATIENCE_S
from live.test_plain_nats import Plain, decoded, plain_mesh
from support import Server, run

PROCESSES = ("n1", "s1")


async def node(plain: Plain, process: str, **request: Any) -> dict[str, Any]:
    subject = f"{plain.root}.node.{process}"
    return decoded(await plain.nc.request(subject, json.dumps(request).encode(), timeout=PATIENCE_S))


@pytest.mark.case(220)
def test_a_process_publishes_nothing_into_the_mesh_on_a_strangers_word(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            published: list[Msg] = []

            async def note(message: Msg) -> None:
                published.append(message)

            lane, long = f"{plain.root}.peer-inbox.coder", "a" * 257
            for subject in (lane, "$elsewhere", long):
                await plain.nc.subscribe(subject, cb=note)
                for process in PROCESSES:
                    await plain.nc.publish(f"{plain.root}.node.{process}", b'{"op":"ping"}', reply=subject)
            for process in PROCESSES:  # their answers show that the requests before were passed over
                assert (await node(plain, process, op="ping"))["node"] == process
            assert (await plain.ask("coder", b"hello"))["text"] == "hello"
            await plain.nc.flush()
            assert published == []
            assert [record.kind for record in await plain.mesh.records("coder")].count("turn") == 1

    run(main(), 110)


@pytest.mark.parametrize("process", PROCESSES)
def test_stats_and_the_shape_of_an_error(server: Server, subjects: Subjects, process: str) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            stats = await node(plain, process, op="stats")
            assert (stats["node"], stats["running"], stats["draining"]) == (process, 0, False)
            error = (await node(plain, process, op="nonsense"))["error"]
            assert (error["code"], error["details"]) == ("bad_request", {})
            assert "stats" in error["message"]

    run(main(), 110)


def test_a_field_of_the_wrong_type_is_named(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with plain_mesh(server, subjects) as plain:
            error = (await node(plain, "n1", op="cordon", on="x"))["error"]
            assert error["code"] == "bad_request"
            assert "$.on" in error["message"]

    run(main(), 110)
