"""How a program gets its connection: what ends it at once, and that it is closed whatever happens in the block."""

from __future__ import annotations

from typing import Any

import pytest

from agentmesh.errors import BadRequest, Unavailable
from agentmesh.subjects import Subjects
from agentmesh_client.connections import connect
from support import Server, run


@pytest.mark.parametrize("arguments", [{"url": "http://x"}, {"url": ""}, {"root": "No Root"}, {"domain": "a b"}])
def test_an_address_that_cannot_be_meant_is_refused(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_NATS_URL", "ftp://nowhere")

    async def main() -> None:
        with pytest.raises(BadRequest):
            async with connect(**arguments):
                raise AssertionError("it is refused")

    run(main())


def test_a_server_that_is_not_there_ends_it_at_once_if_nobody_waits() -> None:
    async def main() -> None:
        with pytest.raises(Unavailable, match=r"no NATS server answers at nats://127\.0\.0\.1:1 \(nobody listens there\)"):
            async with connect("nats://127.0.0.1:1", wait_s=0):
                raise AssertionError("nobody is there")

    run(main())


def test_the_connection_is_closed_whatever_happens_in_the_block(server: Server, subjects: Subjects) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="mine"):
            async with connect(server.url, root=subjects.root) as mesh:
                assert mesh.transport.connected
                raise RuntimeError("mine")
        assert not mesh.transport.connected

    run(main())
