"""What strangers and operators write by hand: it is reported and skipped, and harms nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.edge.registry import decode_spec
from agentmesh.subjects import Subjects, placement_key, spec_key
from agentmesh.wire import encode
from live.mesh import LocalMesh, local_mesh, process_mesh
from support import Server, eventually, run

DEEP = b"[" * 20_000
NESTED = b"[" * 5_000 + b"]" * 5_000
GARBAGE = b"garbage"


async def write(mesh: LocalMesh, key: str, value: bytes) -> None:
    """As an operator does with a plain KV client."""
    await mesh.transport.publish(mesh.subjects.registry_key(key), value)
    await mesh.transport.flush()


@pytest.mark.parametrize("body", [DEEP, NESTED], ids=["cut off", "whole"])
def test_json_nested_without_end_is_a_dead_letter_and_later_mail_is_handled(
    server: Server, subjects: Subjects, body: bytes
) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("a", kind="Recorder")
            await mesh.transport.publish(mesh.subjects.lane("notify", "a"), body)
            await mesh.transport.publish(mesh.subjects.lane("inbox", "a"), b'{"prompt":"x","metadata":{"a":' + body + b"}}")
            response = await mesh.client.ask("a", "after it", timeout=60)
            assert response.text == "after it"
            await mesh.saw("dead_lettered", "a")

    run(main())


def test_one_malformed_key_hides_no_other_and_stops_nothing(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("good", kind="Recorder")
            for key in (spec_key("bad"), "nodes.ghost", placement_key("n1", "bad"), "placements.n1", "placements.n1.no.such"):
                await write(mesh, key, GARBAGE)
            assert [entry.name for entry in await mesh.client.list_agents()] == ["good"]
            assert [entry.id for entry in await mesh.client.nodes()] == ["n1"]
            await mesh.client.start_agent("later", kind="Recorder")
            assert (await mesh.client.ask("later", "hello", timeout=60)).text == "hello"
            await mesh.client.stop("good")
            assert [entry.name for entry in await mesh.client.list_agents()] == ["later"]

    run(main())


def test_a_placement_beside_a_malformed_spec_delays_no_other(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        async with local_mesh(server, subjects) as mesh:
            await mesh.client.start_agent("a", kind="Recorder")
            entry = await mesh.registry.get(spec_key("a"))
            assert entry is not None
            await write(mesh, spec_key("bad"), GARBAGE)
            await write(mesh, placement_key("n1", "bad"), encode({"incarnation": "x", "since": ""}))
            await mesh.client.start_agent("b", kind="Recorder")
            assert (await mesh.client.ask("b", "hello", timeout=60)).text == "hello"
            assert decode_spec(entry).kind == "Recorder"

    run(main())


def test_a_drain_without_a_server_ends_soon(server: Server, subjects: Subjects, tmp_path: Path) -> None:
    async def main(own: Server) -> None:
        async with process_mesh(own, subjects, tmp_path, "n1") as mesh:
            await mesh.client.start_agent("a", kind="Recorder")
            own.kill()
            assert await mesh.hosts["n1"].terminate() == 0
            await eventually(lambda: "leaving without a handover" in mesh.hosts["n1"].log)

    with Server() as own:
        run(main(own), 60)
